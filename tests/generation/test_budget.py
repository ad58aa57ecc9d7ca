"""Budgets of generation: never exceeded, used up where the model wants more, and spent where the model wants it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from test_engine import LENGTH, class_requests, prompt_requests, rotary, rows_of
from torch.nn.utils.rnn import pad_sequence

from genvid.allocation import BudgetError
from genvid.ar.rows import PackedRows, RowConfig
from genvid.ar.task import ARTask
from genvid.generation.budget import (
    BudgetConfig,
    GroupPlanner,
    VideoPlanner,
    block_weights,
    expected_worth,
    forecast,
    groups,
    plan_worth,
    with_budget,
)
from genvid.generation.engine.scheduler import Engine
from genvid.generation.sampler import SamplingConfig, length_scores

FREE = SamplingConfig(temperature=1.0)


def lengths_of(engine: Engine, requests) -> torch.Tensor:
    rows = [torch.tensor(row) for row in rows_of(engine, requests)]
    return LENGTH.unpack(pad_sequence(rows, batch_first=True, padding_value=LENGTH.pad_id)).lengths


def budgeted(count: int, budget: BudgetConfig, config: SamplingConfig = FREE, slots: int = 8) -> torch.Tensor:
    engine = Engine(rotary(), config, slots=slots)
    return lengths_of(engine, with_budget(engine, class_requests(LENGTH, count), budget))


@pytest.mark.parametrize("config", [FREE, SamplingConfig(temperature=0), SamplingConfig(guidance=1.5)], ids=str)
@pytest.mark.parametrize("tokens", [3, 5, 8, 11])
def test_no_video_exceeds_its_budget(tokens, config):
    for plan in (True, False):
        lengths = budgeted(24, BudgetConfig(tokens_per_video=tokens, plan=plan, forecast_rows=6), config)
        assert lengths.sum(1).max() <= tokens
        assert len(lengths) == 24


@pytest.mark.parametrize("total", [72, 90, 120, 150])
def test_a_total_is_used_up_and_not_exceeded(total):
    """The model wants more than all of these: 24 videos take about 240 tokens when they are free."""
    budget = BudgetConfig(total=total, group_size=8, forecast_rows=8)
    lengths = budgeted(24, budget)
    assert 0.97 * total - 3 <= lengths.sum() <= total
    for part in lengths.split(8):  # every group has its part
        assert part.sum() <= total // 3
    assert torch.equal(lengths, budgeted(24, budget, slots=24))


@pytest.mark.parametrize(
    "budget", [BudgetConfig(tokens_per_video=18), BudgetConfig(total=18 * 20, group_size=7)], ids=str
)
def test_a_budget_that_is_not_short_changes_nothing(budget):
    """Perturbed scores are a sample of the model's lengths, whoever picks the greatest."""
    lengths = budgeted(20, budget)
    watched = Engine(rotary(), FREE, slots=8)
    scores = forecast(watched, class_requests(LENGTH, 20))
    assert torch.equal(lengths, torch.tensor(LENGTH.sizes)[scores.argmax(-1)])


def test_lengths_that_are_left_alone_are_distributed_as_the_model_says():
    engine = Engine(rotary(), FREE, slots=64)
    request = class_requests(LENGTH, 1)[0]
    requests = [replace(request, seed=seed, num_blocks=1) for seed in range(600)]
    told = LENGTH.length_ids(torch.tensor(LENGTH.sizes)[forecast(engine, requests)[:, 0].argmax(-1)])
    drawn = torch.tensor([row[1] for row in rows_of(engine, requests)])
    for size in LENGTH.length_ids(torch.tensor(LENGTH.sizes)):
        assert abs((told == size).double().mean() - (drawn == size).double().mean()) < 0.07


CUT = [SamplingConfig(top_k=1), SamplingConfig(top_k=2), SamplingConfig(temperature=1.5, top_p=0.6)]


def chances(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """(K,) logits -> exact probability of each size: of the k likeliest, the fewest that have the mass p."""
    probability = (logits.double() / config.temperature).softmax(0)
    order = probability.argsort(descending=True).tolist()
    order = order[: config.top_k or len(order)]
    kept, whole = [], sum(float(probability[k]) for k in order)
    while sum(float(probability[k]) for k in kept) < config.top_p * whole:
        kept.append(order[len(kept)])
    mask = torch.zeros(len(logits), dtype=torch.bool)
    mask[kept] = True
    return probability.where(mask, 0) / probability[kept].sum()


@pytest.mark.parametrize("config", [*CUT, FREE, SamplingConfig(top_k=2, top_p=0.5, guidance=1.5)], ids=str)
@pytest.mark.parametrize(
    "budget",
    [None, BudgetConfig(tokens_per_video=6), BudgetConfig(tokens_per_video=2**70), BudgetConfig(total=6 * 1200)],
    ids=str,
)
def test_a_budget_that_is_not_short_draws_lengths_as_without_one(config, budget):
    """Against the exact probabilities of the first length, of 1,200 seeds."""
    model, one = rotary(), class_requests(LENGTH, 1)[0]
    with torch.no_grad():
        logits = model(torch.tensor([one.prefix, one.null_prefix]))[:, -1, LENGTH.codebook_size :]
    wanted = chances(logits[1] + config.guidance * (logits[0] - logits[1]), config)
    engine = Engine(model, config, slots=64)
    requests = [replace(one, seed=seed, num_blocks=1) for seed in range(1200)]
    lengths = lengths_of(engine, requests if budget is None else with_budget(engine, requests, budget))[:, 0]
    seen = torch.tensor([float((lengths == size).sum()) for size in LENGTH.sizes]).double()
    assert (seen[wanted == 0] == 0).all()
    expected = 1200 * wanted[wanted > 0]
    assert ((seen[wanted > 0] - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, 0.1 %


@pytest.mark.parametrize("budget", [BudgetConfig(tokens_per_video=8), BudgetConfig(total=90, group_size=8)], ids=str)
def test_the_likeliest_of_one_is_planned_as_the_likeliest(budget):
    """top_k=1 is temperature 0 under a short budget too: noise that decides nothing moves no tokens."""
    lengths = [budgeted(12, budget, config) for config in (SamplingConfig(top_k=1), SamplingConfig(temperature=0))]
    assert torch.equal(*lengths)


def test_sizes_that_are_dropped_follow_those_that_are_kept():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(500, 4)
    scores = length_scores(logits, torch.arange(500), SamplingConfig(top_k=2))
    assert (scores[:, 2:].amin(1) > scores[:, 1]).all()
    torch.testing.assert_close(scores[:, 2:].amin(1) - scores[:, 1], torch.ones(500).double())
    torch.testing.assert_close(scores[:, 1] - scores[:, 0], torch.ones(500).double())


def test_the_last_round_is_the_most_probable_choice():
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(3)).double()
    sizes = torch.tensor(LENGTH.sizes)
    planner = GroupPlanner(11, 4, 1, LENGTH, torch.zeros(2, 1, 3).double())
    chosen = planner.choose(scores)
    best = max(
        (choice for choice in product(range(3), repeat=4) if sizes[list(choice)].sum() <= 11),
        key=lambda choice: float(scores[range(4), list(choice)].sum()),
    )
    assert torch.equal(chosen, sizes[list(best)])


def test_one_video_is_planned_as_well_as_can_be_expected():
    """Against every policy of two blocks, whose scores are drawn from three equally likely rows."""
    told = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(5)).double() * 3
    scores = told * block_weights(2, LENGTH)[:, None]
    sizes, budget = torch.tensor(LENGTH.sizes), 7
    worth = expected_worth(budget, 2, LENGTH, scores)

    def last(row: int, left: int) -> float:
        return max(float(scores[row, 1, k]) for k in range(3) if sizes[k] <= left)

    for row in range(3):
        values = {
            int(sizes[k]): float(scores[row, 0, k]) + sum(last(r, budget - int(sizes[k])) for r in range(3)) / 3
            for k in range(3)
        }
        planner = VideoPlanner(budget, worth, LENGTH)
        first = planner.choose(told[row : row + 1, 0])
        assert int(first) == max(values, key=values.get)
        second = planner.choose(told[row : row + 1, 1])
        assert float(scores[row, 1, sizes.tolist().index(int(second))]) == last(row, budget - int(first))
    assert worth[0, :2].tolist() == [-torch.inf] * 2


@pytest.mark.parametrize("tokens", [10, 16, 24, 30])
def test_videos_that_want_more_use_what_they_have(tokens):
    """Busy videos want much in all of their blocks, calm ones little; new ones are like those of the forecast."""
    layout = replace(LENGTH, num_blocks=4, block_capacity=12, sizes=tuple(range(1, 13)))
    sizes, generator = torch.tensor(layout.sizes), torch.Generator().manual_seed(2)
    liked = torch.tensor([3.0, 6.0, 9.0])[torch.randint(3, (232, 1, 1), generator=generator)]
    gumbel = -(-torch.rand(232, 4, 12, generator=generator).log()).log()
    scores = -((sizes - liked) ** 2) / 8 + gumbel
    worth = plan_worth(tokens, 4, layout, scores[:32] * block_weights(4, layout)[:, None])
    used = wanted = 0
    for video in scores[32:]:
        planner = VideoPlanner(tokens, worth, layout)
        spent = sum(int(planner.choose(video[block : block + 1])) for block in range(4))
        wish = sizes[video.argmax(-1)]
        assert spent <= tokens
        assert spent <= int(wish.sum())
        used, wanted = used + spent, wanted + min(int(wish.sum()), tokens)
    assert used >= 0.97 * wanted


def test_first_blocks_leave_what_later_ones_will_want():
    """Two blocks, 4 rows, 28 tokens: now the rows would take anything, but later ones are sure to want the most."""
    later = torch.tensor([0.0, 1.0, 9.0]).double().expand(1, 2, 3)
    planner = GroupPlanner(28, 4, 2, LENGTH, later)
    first = planner.choose(torch.tensor([[0.0, 0.1, 0.2]] * 4).double())
    second = planner.choose(torch.tensor([[0.0, 1.0, 9.0]] * 4).double())
    assert first.sum() <= 4
    assert second.tolist() == [6, 6, 6, 6]


def test_requests_of_a_group_stay_together():
    requests = class_requests(LENGTH, 10)
    engine = Engine(rotary(), FREE, slots=8)
    assert with_budget(engine, requests, BudgetConfig()) == requests
    assert groups(requests) == [range(i, i + 1) for i in range(10)]
    shared = with_budget(engine, requests, BudgetConfig(total=100, group_size=4))
    assert groups(shared) == [range(0, 4), range(4, 8), range(8, 10)]
    whole = lengths_of(engine, with_budget(engine, requests, BudgetConfig(total=100, group_size=4)))
    part = lengths_of(engine, shared[4:8])
    assert torch.equal(part, whole[4:8])


def test_budgets_that_cannot_be_kept_are_said_in_words():
    requests, engine = class_requests(LENGTH, 4), Engine(rotary(), FREE, slots=2)
    engine.slots.step = lambda reach: pytest.fail("a step was made")
    with pytest.raises(BudgetError, match="2 tokens cannot pay for 1 videos of 3 blocks, which need at least 3 each"):
        with_budget(engine, requests, BudgetConfig(tokens_per_video=2))
    with pytest.raises(BudgetError, match="11 tokens cannot pay for 4 videos"):
        with_budget(engine, requests, BudgetConfig(total=11))
    with pytest.raises(ValueError, match="either tokens_per_video or total"):
        BudgetConfig(tokens_per_video=10, total=10)
    ends = Engine(rotary(replace(LENGTH, framing="end")), FREE, slots=2)
    with pytest.raises(ValueError, match='needs a model of "length" framing'):
        with_budget(ends, requests, BudgetConfig(tokens_per_video=10))
    free = Engine(rotary(), FREE, slots=2)
    with pytest.raises(ValueError, match="4 rows share a budget, but the engine has 2 slots"):
        free.run(with_budget(free, requests, BudgetConfig(total=40)))


@pytest.mark.parametrize("budget", [BudgetConfig(tokens_per_video=10), BudgetConfig(total=99)], ids=str)
@pytest.mark.parametrize("change", [{"planned": (6, 6, 6)}, {"planned": (1, 1, 1)}, {"limit": 9}], ids=str)
def test_lengths_that_are_fixed_already_are_put_under_no_budget(budget, change):
    engine, requests = Engine(rotary(), FREE, slots=4), class_requests(LENGTH, 4)
    engine.slots.step = lambda reach: pytest.fail("a step was made")
    for plan in (True, False):
        with pytest.raises(ValueError, match="have planned or limited lengths"):
            with_budget(engine, [*requests[:3], replace(requests[3], **change)], replace(budget, plan=plan))
    both = replace(requests[0], planner=VideoPlanner(18, torch.zeros(4, 19), LENGTH), **change)
    with pytest.raises(ValueError, match="not both"):
        engine.run([both])
    with pytest.raises(ValueError, match=r"the same number of blocks, got \[2, 3\]"):
        with_budget(engine, [requests[0], replace(requests[1], num_blocks=2)], budget)
    assert with_budget(engine, [], budget) == []


def test_guidance_that_can_change_nothing_is_refused():
    """A row of no class, measured against one of no class; of a told budget, against any."""
    engine = Engine(rotary(TOLD), SamplingConfig(guidance=2.0), slots=2)
    null = tuple(TOLD.null_prefix(1)[0].tolist())
    requests = [replace(class_requests(TOLD, 1)[0], prefix=null)]
    with pytest.raises(ValueError, match="guidance other than 1 would change nothing"):
        engine.run(requests)
    assert rows_of(engine, with_budget(engine, requests, BudgetConfig(tokens_per_video=9)))


TOLD = replace(LENGTH, budget_bins=6)


@pytest.mark.parametrize("make", [class_requests, prompt_requests], ids=["class", "prompt"])
def test_a_budget_for_each_video_is_told_to_models_that_know_budgets(make):
    engine = Engine(rotary(TOLD), FREE, slots=4)
    requests = make(TOLD, 3)
    assert {request.prefix[1] for request in requests} == {TOLD.any_budget_id}
    told = with_budget(engine, requests, BudgetConfig(tokens_per_video=10, plan=False))
    blocks = requests[0].num_blocks
    bins = (10 * 3 // blocks) * 6 // 19  # of rows of 3 blocks of up to 6 tokens
    assert {request.prefix[1] for request in told} == {TOLD.frame_prediction_id + 1 + min(bins, 5)}
    assert [r.prefix[:1] + r.prefix[2:] for r in told] == [r.prefix[:1] + r.prefix[2:] for r in requests]
    assert [r.null_prefix for r in told] == [r.null_prefix for r in requests]
    together = with_budget(engine, requests, BudgetConfig(total=60))
    assert [r.prefix for r in together] == [r.prefix for r in requests]


def test_guidance_measures_a_told_budget_against_any():
    engine = Engine(rotary(TOLD), SamplingConfig(guidance=2.0), slots=4)
    requests = class_requests(TOLD, 3)
    assert requests[0].null_prefix == (TOLD.null_id, TOLD.any_budget_id)
    told = with_budget(engine, requests, BudgetConfig(tokens_per_video=9))
    tokens = torch.cat([TOLD.unpack(torch.tensor([row])).lengths for row in rows_of(engine, told)])
    assert tokens.shape == (3, 3)
    assert tokens.sum(1).max() <= 9


def test_a_model_learns_to_spend_what_it_is_told():
    """One class, whose clips are short or long: only the budget tells which is asked for."""
    task = ARTask(rotary(TOLD)).train()
    lengths, one = torch.tensor([[1, 3, 1], [6, 6, 6]]), torch.zeros(2, dtype=torch.long)
    rows = PackedRows(SimpleNamespace(lengths=lengths), task.model.config, RowConfig(0.0, 0.0))
    packed = rows.pack({"codes": torch.ones(2, 3, 6).long(), "lengths": lengths, "label": one, "seed": one})
    batch = {name: value[None] for name, value in packed.items()}
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        (task(batch, "model", step, {}).loss / task.num_items(batch)).backward()
        optimizer.step()
    engine = Engine(task.model.eval(), SamplingConfig(temperature=0), slots=2)
    for budget, wanted in ((5, [1, 3, 1]), (18, [6, 6, 6])):
        told = with_budget(engine, class_requests(TOLD, 1), BudgetConfig(tokens_per_video=budget, plan=False))
        assert TOLD.unpack(torch.tensor(rows_of(engine, told))).lengths.tolist() == [wanted]
