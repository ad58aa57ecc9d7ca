"""The engine gives the rows of the plain sampler, whoever shares its slots."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.published import PublishedConfig, PublishedTransformer
from genvid.ar.row_model import RowModel
from genvid.generation.engine import attention
from genvid.generation.engine import slots as slots_module
from genvid.generation.engine.scheduler import Engine, Request
from genvid.generation.sampler import Sampler, SamplingConfig
from genvid.hardware import Hardware
from genvid.tokens import BlockTokens
from genvid.tokens.rows import BlockLayout

LENGTH = BlockLayout(codebook_size=13, num_classes=3, num_blocks=3, block_capacity=6, sizes=(1, 3, 6))
END = replace(LENGTH, sizes=(), framing="end")
TINY = TransformerConfig(width=32, depth=2, heads=4, kv_heads=2, hidden=48, max_positions=60)
GREEDY = SamplingConfig(temperature=0)


def rotary(layout: BlockLayout = LENGTH, **changes: int) -> RowModel:
    return _lively(BlockTransformer(ARConfig(layout, replace(TINY, **changes))))


def learned() -> RowModel:
    return _lively(PublishedTransformer(PublishedConfig(END, replace(TINY, rope_theta=None))))


def _lively(model: RowModel) -> RowModel:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def class_requests(layout: BlockLayout, count: int) -> list[Request]:
    labels = torch.arange(count) % 3
    prefixes = layout.class_prefix(labels).tolist()
    null = tuple(layout.null_prefix(1)[0].tolist())
    return [Request(tuple(p), 50 + i, layout.num_blocks, null) for i, p in enumerate(prefixes)]


def prompt_requests(layout: BlockLayout, count: int) -> list[Request]:
    """Prompts of 2 to 8 ids; the first and the fourth are the same."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([[1], [6], [3]])[torch.arange(count) % 3]
    codes = torch.randint(13, (3, 1, 6), generator=generator)[torch.arange(count) % 3]
    context = BlockTokens(torch.arange(6) < lengths[..., None], codes)
    rows = layout.frame_prediction_prefix(context)
    return [
        Request(tuple(row[:n]), 70 + i, 2)
        for i, (row, n) in enumerate(zip(rows.tolist(), layout.prefix_lengths(rows), strict=True))
    ]


def rows_of(engine: Engine, requests: list[Request]) -> list[list[int]]:
    found = dict(engine.run(requests))
    return [found[number].tolist() for number in range(len(requests))]


def plain_rows(model: RowModel, requests: list[Request], config: SamplingConfig) -> list[list[int]]:
    found = []
    for request in requests:
        row = Sampler(model)(
            torch.tensor([request.prefix]),
            torch.tensor([request.seed]),
            config,
            num_blocks=request.num_blocks,
            null_prefix=None if request.null_prefix is None else torch.tensor([request.null_prefix]),
            planned=None if request.planned is None else torch.tensor([request.planned]),
        )
        found.append(row[0].tolist())
    return found


CONFIGS = [
    GREEDY,
    SamplingConfig(),
    SamplingConfig(temperature=2.0, top_k=9, top_p=0.9),
    replace(GREEDY, guidance=1.5),
    SamplingConfig(guidance=2.0),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(
    "model",
    [rotary(), rotary(END), rotary(kv_heads=4), learned(), rotary(replace(LENGTH, budget_bins=4))],
    ids=["length", "end", "mha", "published", "budgets"],
)
def test_rows_are_those_of_the_plain_sampler(model, config):
    """13 requests on 4 slots: rows end at different times, and others take their places."""
    requests = class_requests(model.layout, 13)
    assert rows_of(Engine(model, config, slots=4), requests) == plain_rows(model, requests, config)


@pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
@pytest.mark.parametrize("slots", [1, 3, 16])
def test_prompts_are_read_once_and_shared(layout, slots, monkeypatch):
    monkeypatch.setattr(slots_module, "CHUNK", 5)
    model, requests = rotary(layout), prompt_requests(layout, 9)
    engine = Engine(model, GREEDY, slots=slots)
    read: list[int] = []
    original = engine.slots._read
    engine.slots._read = lambda prompt, limit: (read.append(prompt.shape[1]), original(prompt, limit))[1]
    assert rows_of(engine, requests) == plain_rows(model, requests, GREEDY)
    if slots == 16:
        assert sum(read) == sum(len(request.prefix) - 1 for request in requests[:3])
    again = sum(read)
    same = [replace(requests[1], seed=seed) for seed in range(5)]
    assert rows_of(engine, same) == plain_rows(model, same, GREEDY)
    assert sum(read) - again <= len(requests[1].prefix) - 1


def test_a_prompt_is_read_again_after_a_row_without_one():
    """A prefix of one id is not read in advance: its row overwrites the prompt that its slot held."""
    model, prompt, alone = rotary(), prompt_requests(LENGTH, 2)[1], class_requests(LENGTH, 1)[0]
    requests = [prompt, alone, prompt]
    assert rows_of(Engine(model, GREEDY, slots=1), requests) == plain_rows(model, requests, GREEDY)


def test_a_row_depends_on_its_own_request_only():
    model, config = rotary(), SamplingConfig(temperature=1.5)
    requests = class_requests(LENGTH, 12)
    rows = rows_of(Engine(model, config, slots=12), requests)
    assert len({tuple(row) for row in rows}) > 8
    for slots, chosen in [(1, [3, 0]), (5, [11, 2, 7, 5, 9, 1, 3]), (3, list(range(12)))]:
        engine = Engine(model, config, slots=slots)
        for _ in range(2):  # what an earlier run left in the slots does not matter
            assert rows_of(engine, [requests[i] for i in chosen]) == [rows[i] for i in chosen]


@pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
def test_plans_and_numbers_of_blocks_are_obeyed(layout):
    model, config = rotary(layout), SamplingConfig()
    plans = [(1, 3, 6), (6, 6), (3,), (1, 1, 1), (6, 1, 3)]
    requests = [
        replace(request, planned=plan, num_blocks=len(plan))
        for request, plan in zip(class_requests(layout, 5), plans, strict=True)
    ]
    rows = rows_of(Engine(model, config, slots=2), requests)
    assert rows == plain_rows(model, requests, config)
    for row, plan in zip(rows, plans, strict=True):
        assert tuple(layout.unpack(torch.tensor([row])).lengths[0].tolist()) == plan


@pytest.mark.parametrize(
    "layout", [LENGTH, END, replace(LENGTH, framing="end")], ids=["length", "end", "end with sizes"]
)
@pytest.mark.parametrize("limit", [3, 4, 5, 8, 10, 17, 18, 99, 2**70])
def test_limits_are_hard_and_leave_enough_for_later_blocks(layout, limit):
    requests = [replace(request, limit=limit) for request in class_requests(layout, 40)]
    engine = Engine(rotary(layout), SamplingConfig(temperature=5.0), slots=8)
    spent = [int(layout.unpack(torch.tensor([row])).lengths.sum()) for row in rows_of(engine, requests)]
    assert max(spent) <= limit
    if limit >= 18:
        free = [replace(request, limit=None) for request in requests]
        assert rows_of(engine, requests) == rows_of(engine, free)
    else:
        assert max(spent) >= limit - 2


@pytest.mark.parametrize("found", [Hardware(None), Hardware((7, 5), True), Hardware((9, 0), False)], ids=str)
def test_a_gpu_without_the_kernels_goes_the_plain_way(found, monkeypatch):
    monkeypatch.setattr(attention, "hardware", lambda device: found)
    monkeypatch.setitem(sys.modules, "genvid.generation.engine.kernels", None)  # importing it would fail
    assert isinstance(attention.plain_or_triton(torch.device("cuda")), attention.PlainAttention)


def test_an_unfinished_run_leaves_nothing_behind():
    model, requests = rotary(), class_requests(LENGTH, 6)
    engine = Engine(model, GREEDY, slots=2)
    next(engine.run(requests))
    assert rows_of(engine, requests) == plain_rows(model, requests, GREEDY)


def test_tokens_are_counted():
    engine = Engine(rotary(), SamplingConfig(), slots=4)
    rows = rows_of(engine, class_requests(LENGTH, 7))
    assert engine.tokens == engine.row_steps == sum(len(row) - 1 for row in rows)


def test_what_cannot_be_sampled_is_said_before_anything_is_computed():
    model = rotary(max_positions=22)
    engine = Engine(model, SamplingConfig(), slots=2)
    engine.slots.step = lambda reach: pytest.fail("a step was made")
    good = class_requests(LENGTH, 1)[0]
    for change, message in [
        ({"num_blocks": 4}, "got a prefix of 1 and 4 blocks"),
        ({"prefix": ()}, "got a prefix of 0"),
        ({"prefix": (1,) * 10}, "may need 30 positions, but the model has 22"),
        ({"planned": (1, 1)}, "3 blocks need as many planned lengths, got 2"),
        ({"planned": (1, 1, 2)}, "2 tokens is none of the sizes"),
        ({"limit": 2}, "a budget of 2 tokens cannot pay for 3 blocks, which need at least 3"),
        ({"seed": 2**70}, "a seed is a whole number from -2"),
        ({"planned": (1, 1, 2**70)}, "tokens is none of the sizes"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.run([good, replace(good, **change)])
    with pytest.raises(ValueError, match="needs a null prefix"):
        Engine(model, SamplingConfig(guidance=2.0), slots=1).run([replace(good, null_prefix=None)])
    with pytest.raises(ValueError, match="at least 1 slot"):
        Engine(model, SamplingConfig(), slots=0)
