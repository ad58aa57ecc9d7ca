"""Sampled rows: decodable, repeatable, independent of their neighbours, and of the right distribution."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.rows import PackedRows, RowConfig
from genvid.ar.task import ARTask
from genvid.generation.sampler import Sampler, SamplingConfig, draw
from genvid.tokens import BlockTokens
from genvid.tokens.rows import BlockLayout

LENGTH = BlockLayout(codebook_size=13, num_classes=3, num_blocks=3, block_capacity=6, sizes=(1, 3, 6))
END = replace(LENGTH, sizes=(), framing="end")
BOTH = pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
TINY = TransformerConfig(width=32, depth=2, heads=4, kv_heads=2, hidden=48, max_positions=40)


def model_of(layout: BlockLayout) -> BlockTransformer:
    torch.manual_seed(0)
    model = BlockTransformer(ARConfig(layout, TINY)).eval()
    torch.nn.init.normal_(model.llama.lm_head.weight)
    return model


def trimmed(rows: torch.Tensor, pad: int) -> list[list[int]]:
    return [[i for i in row if i != pad] for row in rows.tolist()]


@BOTH
@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0),
        SamplingConfig(temperature=3.0, top_k=4, top_p=0.8, guidance=2.0),
    ],
)
def test_every_row_unpacks_and_ends_at_its_last_block(layout, config):
    labels = torch.arange(24) % 3
    rows = Sampler(model_of(layout))(
        layout.class_prefix(labels), torch.arange(24), config, null_prefix=layout.null_prefix(24)
    )
    tokens = layout.unpack(rows)
    assert tokens.keep.shape == (24, 3, 6)
    assert layout.length_allowed()[tokens.lengths].all()
    assert torch.equal(layout.pack(tokens, layout.class_prefix(labels)).tokens, rows)


@BOTH
def test_planned_lengths_are_obeyed(layout):
    planned = torch.tensor([1, 3, 6])[torch.randint(3, (8, 3))]
    rows = Sampler(model_of(layout))(layout.null_prefix(8), torch.arange(8), SamplingConfig(), planned=planned)
    assert torch.equal(layout.unpack(rows).lengths, planned)


@BOTH
def test_a_row_depends_on_its_own_seed_and_condition_only(layout):
    sampler, labels = Sampler(model_of(layout)), torch.tensor([0, 1, 2, 0, 1, 2])

    def sample(chosen: list[int], first_seed: int = 100) -> list[list[int]]:
        index = torch.tensor(chosen)
        rows = sampler(layout.class_prefix(labels[index]), first_seed + index, SamplingConfig())
        return trimmed(rows, layout.pad_id)

    rows = sample([0, 1, 2, 3, 4, 5])
    assert rows == sample([0, 1, 2, 3, 4, 5])
    assert [rows[i] for i in (3, 1, 5)] == sample([3, 1, 5])
    assert rows == [sample([i])[0] for i in range(6)]
    # One condition, many seeds: rows differ, but for the few that end almost at once.
    many = sampler(
        layout.class_prefix(torch.zeros(60, dtype=torch.long)), torch.arange(60), SamplingConfig(temperature=4.0)
    )
    assert len({tuple(row) for row in trimmed(many, layout.pad_id)}) > 40
    assert rows != sample([0, 1, 2, 3, 4, 5], first_seed=1000)


@BOTH
def test_contexts_of_different_lengths_share_a_batch(layout):
    lengths = torch.tensor([[1], [6], [3]])
    context = BlockTokens(torch.arange(6) < lengths[..., None], torch.randint(13, (3, 1, 6)))
    sampler, seeds = Sampler(model_of(layout)), torch.arange(3)
    prefix = layout.frame_prediction_prefix(context)
    rows = sampler(prefix, seeds, SamplingConfig(), num_blocks=2)
    for i in range(3):
        short = layout.frame_prediction_prefix(context[i : i + 1])
        alone = sampler(short, seeds[i : i + 1], SamplingConfig(), num_blocks=2)
        assert trimmed(alone, layout.pad_id)[0] == trimmed(rows, layout.pad_id)[i]
    tokens = layout.unpack(rows)
    assert torch.equal(tokens.keep[:, :1], context.keep)
    assert torch.equal(tokens.codes[:, :1][context.keep], context.codes[context.keep])


@BOTH
def test_greedy_rows_are_what_the_uncached_model_finds_most_likely(layout):
    model = model_of(layout)
    planned = torch.tensor([[3, 1, 6]])
    prefix = layout.class_prefix(torch.tensor([1]))
    rows = Sampler(model)(prefix, torch.tensor([0]), SamplingConfig(temperature=0), planned=planned)
    with torch.no_grad():
        best = model(rows)[0, :, : layout.codebook_size].argmax(-1)
    codes = rows[0, 1:] < layout.codebook_size
    assert torch.equal(best[:-1][codes], rows[0, 1:][codes])


def test_guidance_moves_away_from_the_null_condition_and_1_is_none():
    model = model_of(LENGTH)
    prefix, null, seeds = LENGTH.class_prefix(torch.arange(3)), LENGTH.null_prefix(3), torch.arange(3)
    sampler, plain = Sampler(model), SamplingConfig()
    rows = sampler(prefix, seeds, plain)
    assert torch.equal(sampler(prefix, seeds, replace(plain, guidance=1.0), null_prefix=null), rows)
    zero = sampler(prefix, seeds, replace(plain, guidance=0.0), null_prefix=null)  # the null condition alone
    assert torch.equal(zero[:, 1:], sampler(null, seeds, plain)[:, 1:])
    assert trimmed(sampler(prefix, seeds, replace(plain, guidance=4.0), null_prefix=null), 0) != trimmed(rows, 0)


def test_draw_follows_the_distribution_it_is_given():
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0, -1.0]).expand(40_000, 5)
    allowed = torch.tensor([True, True, False, True, True]).expand_as(logits)
    seeds = torch.arange(40_000)

    def shares(config: SamplingConfig) -> torch.Tensor:
        return torch.bincount(draw(logits, allowed, seeds, config), minlength=5) / 40_000

    def softmax(kept: list[int], temperature: float = 1.0) -> torch.Tensor:
        masked = torch.full((5,), float("-inf"))
        masked[kept] = logits[0, kept] / temperature
        return masked.softmax(0)

    for config, wanted in [
        (SamplingConfig(), softmax([0, 1, 3, 4])),
        (SamplingConfig(temperature=2.0), softmax([0, 1, 3, 4], 2.0)),
        (SamplingConfig(top_k=2), softmax([1, 3])),
        (SamplingConfig(top_p=0.9), softmax([1, 3])),  # 0.83 alone is not enough
        (SamplingConfig(top_p=0.8), softmax([3])),
        (SamplingConfig(top_p=1e-60), softmax([3])),
        (SamplingConfig(top_k=2**70), softmax([0, 1, 3, 4])),
        (SamplingConfig(temperature=1e-6), softmax([3])),
        (SamplingConfig(temperature=1e6), softmax([0, 1, 3, 4], 1e6)),
        (SamplingConfig(temperature=0), softmax([3])),
    ]:
        assert (shares(config) - wanted).abs().max() < 0.01
        assert (shares(config)[wanted == 0] == 0).all()


@BOTH
def test_a_small_set_is_learned_by_heart_and_sampled_back(layout):
    task = ARTask(model_of(layout)).train()
    torch.manual_seed(1)
    lengths = torch.tensor([[1, 3, 6], [6, 1, 1], [3, 3, 3]])
    codes, label = torch.randint(13, (3, 3, 6)), torch.arange(3)
    rows = PackedRows(SimpleNamespace(lengths=lengths), task.model.config, RowConfig(class_dropout=0.0))
    packed = rows.pack({"codes": codes, "lengths": lengths, "label": label, "seed": label})
    batch = {name: value[None] for name, value in packed.items()}
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for step in range(120):
        loss = task(batch, "model", step, {}).loss / task.num_items(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    sampler = Sampler(task.eval().exportable())
    tokens = layout.unpack(sampler(layout.class_prefix(label), label, SamplingConfig(temperature=0)))
    assert torch.equal(tokens.lengths, lengths)
    assert torch.equal(tokens.codes[tokens.keep], codes[tokens.keep])


def test_what_cannot_be_sampled_is_said_in_words():
    sampler, seeds, config = Sampler(model_of(LENGTH)), torch.arange(2), SamplingConfig()
    prefix = LENGTH.null_prefix(2)
    with pytest.raises(ValueError, match="needs a null prefix"):
        sampler(prefix, seeds, replace(config, guidance=2.0))
    with pytest.raises(ValueError, match="there are 1 seeds"):
        sampler(prefix, seeds[:1], config)
    with pytest.raises(ValueError, match="1 to 3 blocks, got 4"):
        sampler(prefix, seeds, config, num_blocks=4)
    with pytest.raises(ValueError, match="may need 50 positions, but the model has 40"):
        sampler(prefix.repeat(1, 30), seeds, config)
    with pytest.raises(ValueError, match="top_p is in"):
        SamplingConfig(top_p=0.0)
    for number in ({"temperature": 1e-40}, {"temperature": 1e300}, {"guidance": 1e38}):
        with pytest.raises(ValueError, match="float32 logits overflow"):
            SamplingConfig(**number)
