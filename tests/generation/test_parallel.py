"""Several tokens a step: guesses that the model verifies keep its distribution; groups are what their training says."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from test_engine import END, GREEDY, LENGTH, TINY, _lively, class_requests, plain_rows, prompt_requests, rotary, rows_of

from genvid import noise
from genvid.ar.config import ARConfig
from genvid.ar.draft import DraftConfig, DraftHeads, DraftTask, guessed_places
from genvid.ar.groups import GroupConfig, GroupTask, GroupTransformer, group_offsets, spread
from genvid.ar.model import BlockTransformer
from genvid.ar.rows import IGNORED, PackedRows, RowConfig
from genvid.ar.task import ARTask
from genvid.checkpoint import load_model
from genvid.config import decode
from genvid.generation.budget import BudgetConfig, with_budget
from genvid.generation.engine.scheduler import Engine
from genvid.generation.engine.transformers_engine import TransformersEngine
from genvid.generation.grammar import BlockGrammar
from genvid.generation.guidance import ByTokens
from genvid.generation.sampler import SamplingConfig, draw, probabilities
from genvid.tokens.rows import BlockLayout
from genvid.train.task import TrainingTask

GUIDED = SamplingConfig(temperature=1.5, guidance=ByTokens((3.0, 1.0), (2,)))


def heads_of(model: BlockTransformer, count: int = 3) -> DraftHeads:
    """Heads that guess badly, but not at random."""
    return _lively(DraftHeads(DraftConfig(model.config.transformer.width, count)))


def grouped(groups: tuple[int, ...], layout: BlockLayout = LENGTH, **changes: object) -> GroupTransformer:
    return _lively(GroupTransformer(GroupConfig(layout, TINY, groups=groups, **changes)))


def cache_of(lengths: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(lengths=lengths)


def packed(config: ARConfig, count: int) -> dict[str, torch.Tensor]:
    """A training batch of rows whose codes count up from the number of the row, 13 codes in a circle."""
    lengths = torch.tensor([1, 3, 6])[torch.randint(3, (count, 3), generator=torch.Generator().manual_seed(0))]
    codes = (torch.arange(18).view(1, 3, 6) + torch.arange(count)[:, None, None]) % 13
    rows = PackedRows(cache_of(lengths), config, RowConfig(class_dropout=0.0, token_multiple=16))
    seeds = torch.arange(count)
    batch = rows.pack({"codes": codes, "lengths": lengths, "label": seeds % 3, "seed": seeds})
    return {name: value[None] for name, value in batch.items()}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("config", [GREEDY, replace(GREEDY, guidance=1.5)], ids=["greedy", "guided"])
def test_verified_rows_are_greedy_where_the_plain_ones_are(config, count):
    model, requests = rotary(), [*class_requests(LENGTH, 9)]
    requests[1] = replace(requests[1], planned=(6, 3, 6))
    rows = rows_of(Engine(model, config, slots=4, draft=heads_of(model, count)), requests)
    assert rows == plain_rows(model, requests, config)


@pytest.mark.parametrize("config", [SamplingConfig(), GUIDED], ids=["drawn", "guided"])
@pytest.mark.parametrize("kind", ["speculative", "groups"])
def test_a_row_depends_on_its_own_request_only(config, kind):
    model = rotary() if kind == "speculative" else grouped((1, 2, 4))
    draft = heads_of(model) if kind == "speculative" else None
    requests = class_requests(LENGTH, 10)
    rows = rows_of(Engine(model, config, slots=10, draft=draft), requests)
    assert len({tuple(row) for row in rows}) > 6
    engine = Engine(model, config, slots=3, draft=draft)
    for _ in range(2):
        assert rows_of(engine, [requests[i] for i in (7, 2, 9, 4, 0)]) == [rows[i] for i in (7, 2, 9, 4, 0)]
    assert engine.steps < engine.tokens
    for row in rows:
        LENGTH.unpack(torch.tensor([row]))


def exact(model: BlockTransformer, request: object, config: SamplingConfig, size: int) -> dict[tuple[int, ...], float]:
    """Probability of every row of one block of `size` codes, by the model alone."""
    layout = model.layout
    length = int(layout.length_ids(torch.tensor([size])))
    every = list(product(range(layout.codebook_size), repeat=size))
    ends = torch.tensor([[length, *codes] for codes in every])
    logits = []
    for prefix in (request.prefix, request.null_prefix):
        rows = torch.cat([torch.tensor(prefix).expand(len(ends), -1), ends], 1)
        logits.append(model(rows)[:, len(prefix) - 1 : -1].float())
    grammar, total = BlockGrammar(layout, len(ends), 1, planned=torch.full((len(ends), 1), size)), torch.ones(len(ends))
    for place in range(ends.shape[1]):
        conditional, null = (part[:, place] for part in logits)
        if config.guided:
            conditional = null + config.schedule.scale(grammar.progress())[:, None] * (conditional - null)
        share = probabilities(conditional, grammar.allowed(), config)
        total = total * share.gather(1, ends[:, place, None])[:, 0]
        grammar.advance(ends[:, place], torch.ones(len(ends), dtype=torch.bool))
    return {(length, *codes): float(chance) for codes, chance in zip(every, total, strict=True)}


@pytest.mark.parametrize(
    "config",
    [SamplingConfig(), replace(GUIDED, guidance=ByTokens((2.0, 0.5), (1,))), SamplingConfig(0.8, top_k=3, top_p=0.9)],
    ids=["plain", "guided", "truncated"],
)
@torch.no_grad()
def test_verified_rows_have_the_distribution_of_the_model(config):
    """A chi-square test over all 64 rows of a block of 3 of 4 codes."""
    layout = BlockLayout(codebook_size=4, num_classes=2, num_blocks=1, block_capacity=3, sizes=(1, 3))
    model, count = rotary(layout, width=16, depth=1), 6000
    for parameter in model.parameters():
        parameter.mul_(0.6)
    request = replace(class_requests(layout, 1)[0], planned=(3,))
    engine = Engine(model, config, slots=500, draft=heads_of(model, 2))
    rows = [tuple(row[1:]) for row in rows_of(engine, [replace(request, seed=seed) for seed in range(count)])]
    chances = {row: chance for row, chance in exact(model, request, config, 3).items() if chance > 0}
    assert set(rows) <= set(chances)
    wanted = torch.tensor(list(chances.values())) * count
    seen = torch.tensor([float(rows.count(row)) for row in chances])
    rare = wanted < 5  # these count as one outcome
    wanted, seen = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (wanted, seen))
    statistic = ((seen - wanted) ** 2 / wanted.clamp(min=1e-9))[wanted > 0].sum()
    freedom = torch.tensor(float((wanted > 0).sum() - 1))
    assert len(wanted) > 8
    assert torch.special.gammaincc(freedom / 2, statistic / 2) > 1e-3
    assert engine.tokens / sum(len(row) for row in rows) * 4 / 3 > 1.2  # all tokens are counted


def test_groups_of_one_are_the_plain_model():
    model = grouped((1,), null_context=False)
    requests = class_requests(LENGTH, 7)
    requests[2] = replace(requests[2], planned=(3, 1, 6))
    requests[3] = replace(requests[3], limit=8)
    for config in (SamplingConfig(), GUIDED):
        limited = [replace(r, limit=None) for r in requests]
        assert rows_of(Engine(model, config, slots=3), limited) == plain_rows(model, limited, config)
    prompts = prompt_requests(LENGTH, 5)
    assert rows_of(Engine(model, GREEDY, slots=2), prompts) == plain_rows(model, prompts, GREEDY)


@pytest.mark.parametrize("config", [SamplingConfig(), replace(GUIDED, guidance=2.0)], ids=["plain", "guided"])
@pytest.mark.parametrize("groups", [(1, 2, 4), (3,), (2, 5)], ids=str)
@torch.no_grad()
def test_groups_are_sampled_from_what_training_computes(groups, config):
    """Every token of a sampled row is the one that its random number draws from the pass of training."""
    model = grouped(groups)
    requests = [replace(request, limit=None) for request in class_requests(LENGTH, 6)]
    rows = rows_of(Engine(model, config, slots=4), requests)
    assert any(row[2] != rows[0][2] for row in rows)
    for row, request in zip(rows, requests, strict=True):
        ids = torch.tensor([row])
        targets = ids[:, 1:]
        offsets = group_offsets(model.config, ids[:, :-1], targets)
        logits = []
        for start in (request.prefix, request.null_prefix):
            states, queried = model.group_states(torch.cat([torch.tensor([start]), ids[:, 1:-1]], 1), offsets)
            logits.append(model.logits(queried.where(offsets[..., None] > 0, states))[0])
        grammar = BlockGrammar(LENGTH, 1, 3)
        for place, token in enumerate(row[1:]):
            scale = config.schedule.scale(grammar.progress())
            chosen = logits[1][place] + scale * (logits[0][place] - logits[1][place])
            seeds = noise.fold(torch.tensor([request.seed]), place + 1)
            assert int(draw(chosen[None], grammar.allowed(), seeds, config)) == token
            grammar.advance(torch.tensor([token]), torch.tensor([True]))


@torch.no_grad()
def test_queries_leave_the_states_of_tokens_as_they_are():
    model, batch = grouped((1, 2, 4)), packed(grouped((1, 2, 4)).config, 5)
    tokens, targets = spread(batch, LENGTH.pad_id)
    offsets = group_offsets(model.config, tokens, targets)
    torch.testing.assert_close(model.group_states(tokens, offsets)[0], model.states(tokens))
    assert set(offsets.unique().tolist()) == {0, 1, 2}
    assert model.config.group_starts() == [0, 1, 1, 3, 3, 3]


def test_heads_are_trained_on_codes_of_the_block_of_the_next_token():
    model = rotary()
    batch = packed(model.config, 6)
    first, second = guessed_places(model, batch, 2)
    for place in range(batch["tokens"].shape[1] - 3):
        following = batch["targets"][0, place : place + 3].tolist()
        inside = IGNORED not in following[:2] and following[1] < LENGTH.codebook_size
        assert bool(first[0, place]) == inside
        inside = inside and following[2] != IGNORED and following[2] < LENGTH.codebook_size
        assert bool(second[0, place]) == inside


@pytest.mark.parametrize("kind", ["draft", "groups"])
def test_both_learn_and_are_saved(kind, tmp_path):
    """Rows that count: the codes of a group follow from the token before it."""
    torch.manual_seed(0)
    if kind == "draft":
        model = BlockTransformer(ARConfig(LENGTH, replace(TINY, depth=1)))
        batch = packed(model.config, 24)
        learned(ARTask(model), batch)
        task = DraftTask(model, DraftHeads(DraftConfig(32, 2)))
        model.requires_grad_(False)
        before = float(task(batch, "model", 0, {}).terms["accepted_2"])
        assert before < 0.3
        losses = learned(task, batch)
        assert float(task(batch, "model", 0, {}).terms["accepted_2"]) > before + 0.2
    else:
        task = GroupTask(GroupTransformer(GroupConfig(LENGTH, TINY, groups=(1, 2, 3))))
        losses = learned(task, packed(task.model.config, 24))
    assert losses[-1] < 0.7 * losses[0]
    task.exportable().save(tmp_path)
    loaded = load_model(tmp_path)
    for ours, theirs in zip(task.exportable().state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def learned(task: TrainingTask, batch: dict[str, torch.Tensor]) -> list[float]:
    """The losses of a few steps on one batch."""
    optimizer, losses = torch.optim.Adam(task.trainable("model"), lr=1e-2), []
    for step in range(25):
        output = task(batch, "model", step, {})
        (output.loss / task.num_items(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.loss.detach() / task.num_items(batch)))
    return losses


def test_heads_of_before_have_no_residual_layers():
    old = decode(DraftConfig, {"width": 8, "heads": 2})
    assert old == DraftConfig(8, 2, depth=0)
    states = torch.randn(1, 3, 8)
    assert DraftHeads(old).following(1, states, states).shape == states.shape


def test_requests_of_all_kinds_keep_to_their_budgets():
    torch.manual_seed(0)
    requests = class_requests(LENGTH, 12)
    plain = rotary()
    for model, draft in ((plain, None), (plain, heads_of(plain)), (grouped((1, 2, 4)), None)):
        for config, streamed in ((GUIDED, False), (SamplingConfig(3.0), True)):
            engine = Engine(model, config, slots=8, draft=draft)
            for budget in (
                BudgetConfig(tokens_per_video=5, forecast_rows=4),
                BudgetConfig(tokens_per_video=4, plan=False),
                BudgetConfig(total=60, group_size=6, forecast_rows=4),
            ):
                budgeted = with_budget(engine, requests, budget)
                ends = {number: row for number, row, last in engine.run_blocks(budgeted) if last} if streamed else {}
                rows = [ends[number] for number in range(12)] if streamed else rows_of(engine, budgeted)
                spent = torch.tensor([len(row) - 4 for row in rows])
                limit = budget.tokens_per_video or 60
                assert (spent.max() if budget.total is None else spent.sum()) <= limit


def test_what_does_not_fit_is_said_in_words(tmp_path):
    model = rotary()
    with pytest.raises(ValueError, match='plain model of "length" framing'):
        Engine(rotary(END), GREEDY, draft=heads_of(model))
    with pytest.raises(ValueError, match='plain model of "length" framing'):
        Engine(grouped((2,)), GREEDY, draft=heads_of(model))
    with pytest.raises(ValueError, match="draft heads of width 8 belong to another model: this one has 32"):
        Engine(model, GREEDY, draft=DraftHeads(DraftConfig(8)))
    with pytest.raises(ValueError, match='"length" framing'):
        GroupConfig(END, TINY)
    with pytest.raises(ValueError, match="transformers has no group_llama"):
        TransformersEngine(grouped((2,)), GREEDY)
    model.save(tmp_path / "model")
    rotary(kv_heads=4).save(tmp_path / "other")
    ours, other = load_model(tmp_path / "model", BlockTransformer), load_model(tmp_path / "other", BlockTransformer)
    heads = DraftTask(ours, heads_of(ours)).exportable()
    Engine(ours, GREEDY, slots=1, draft=heads)
    with pytest.raises(ValueError, match="made"):
        Engine(other, GREEDY, slots=1, draft=heads)
