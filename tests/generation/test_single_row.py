"""The kernels of one row, and of the draw, against torch: on a GPU, or interpreted on a CPU."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from genvid import noise
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.draft import DraftConfig, DraftHeads
from genvid.ar.groups import GroupConfig, GroupTransformer
from genvid.ar.model import BlockTransformer
from genvid.ar.published import PublishedConfig, PublishedTransformer
from genvid.ar.row_model import RowModel
from genvid.generation.engine.attention import PlainAttention
from genvid.generation.engine.network import SlotNetwork
from genvid.generation.engine.scheduler import Engine, Request
from genvid.generation.sampler import Sampler, SamplingConfig, draw
from genvid.tokens.rows import BlockLayout

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("on a CPU kernels are interpreted: TRITON_INTERPRET=1, before anything starts", allow_module_level=True)
pytest.importorskip("triton", reason="the kernels of a GPU need triton, which is not installed here")

from genvid.generation.engine import kernels, single_row

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
LENGTH = BlockLayout(codebook_size=13, num_classes=3, num_blocks=3, block_capacity=6, sizes=(1, 3, 6))
END = replace(LENGTH, sizes=(), framing="end")
SMALL = TransformerConfig(width=64, depth=2, heads=4, kv_heads=4, hidden=176, max_positions=150)


def model_of(layout: BlockLayout = LENGTH, **changes: int | None) -> RowModel:
    sizes = replace(SMALL, **changes)
    if sizes.rope_theta is None:
        model: RowModel = PublishedTransformer(PublishedConfig(layout, sizes))
    else:
        model = BlockTransformer(ARConfig(layout, sizes))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.to(DEVICE).eval()


def one_row(model: RowModel, **settings: torch.dtype) -> SlotNetwork:
    """A network that goes by the kernels whatever the device, its cache filled."""
    network = SlotNetwork(model, 1, **settings)
    assert single_row.SingleRow.fits(network.cache)
    network._single_row = network._single_row or single_row.SingleRow(
        network._layers, network._norm, network._head, network.cache, network._rotary, network._eps
    )
    torch.manual_seed(1)
    network.cache.normal_()
    return network


MODELS = {
    "rotary": {},
    "grouped": {"kv_heads": 2},
    "odd sizes": {"width": 24, "heads": 3, "kv_heads": 1, "hidden": 43},
    "several tiles": {"width": 320, "heads": 5, "kv_heads": 5, "hidden": 600, "depth": 1},
    "many columns": {"hidden": 4500, "depth": 1},
    "learned positions": {"rope_theta": None, "layout": END},
}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_one_row_is_the_general_pass(changes):
    model = model_of(**changes)
    ours, theirs = one_row(model), SlotNetwork(model, 1, attention=PlainAttention())
    theirs.cache.copy_(ours.cache)
    for token, position, limit in ((14, 0, 1), (3, 5, 192), (1, 63, 64), (2, 64, 192), (0, 149, 150)):
        at = torch.tensor([position], device=DEVICE)
        found, wanted = (net(torch.tensor([token], device=DEVICE), at, at + 1, limit) for net in (ours, theirs))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.cache, theirs.cache, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.logits(found), theirs.logits(wanted), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_row_that_has_ended_is_finite():
    network = one_row(model_of())
    zero = torch.zeros(1, dtype=torch.long, device=DEVICE)
    assert network(zero, zero, zero, 64).isfinite().all()


def test_what_the_kernels_cannot_do_goes_the_general_way():
    assert not single_row.SingleRow.fits(SlotNetwork(model_of(), 2).cache)
    assert not single_row.SingleRow.fits(SlotNetwork(model_of(width=48), 1).cache)  # heads of 12 channels


@pytest.mark.parametrize("outputs", [5, 64, 1100])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_tokens_are_drawn_as_by_torch(outputs, temperature):
    torch.manual_seed(0)
    logits = 3 * torch.randn(40, outputs)
    allowed = torch.rand(40, outputs) < 0.5
    allowed[:, 1] = True
    allowed[:9] = torch.arange(outputs) == torch.arange(9)[:, None] % 5  # only one is possible
    seeds = torch.arange(40)
    uniform = noise.uniform(seeds, "token", 1)[:, 0]
    wanted = draw(logits, allowed, seeds, SamplingConfig(temperature=temperature))
    given = (tensor.to(DEVICE) for tensor in (logits, allowed, uniform))
    assert torch.equal(kernels.draw_tokens(*given, temperature).cpu(), wanted)


@pytest.mark.parametrize("share", [2.0**-53, 1 - 2.0**-53])
def test_what_has_no_probability_is_never_drawn(share):
    logits, allowed = torch.zeros(1, 700, device=DEVICE), torch.zeros(1, 700, dtype=torch.bool, device=DEVICE)
    allowed[:, 100:600:7] = True
    drawn = kernels.draw_tokens(logits, allowed, torch.tensor([share], dtype=torch.float64, device=DEVICE), 1.0)
    assert drawn.tolist() == [100 if share < 0.5 else 599 - (599 - 100) % 7]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=GPU)], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("heads", "kv_heads", "width", "together"), [(4, 2, 16, 5), (3, 1, 8, 15), (2, 2, 64, 2)])
def test_several_tokens_of_a_slot_attend_as_by_torch(heads, kv_heads, width, together, dtype, monkeypatch):
    """Tokens of other slots, tokens that are absent (length 0), and some that attend beyond their own place."""
    monkeypatch.setattr(kernels, "CHUNK", 64)
    torch.manual_seed(0)
    slots, capacity = 3, 150
    cache = torch.randn(2, slots, kv_heads, capacity, width, device=DEVICE).to(dtype)
    qkv = torch.randn(slots * together, (heads + 2 * kv_heads) * width, device=DEVICE).to(dtype)
    positions = (torch.tensor([[0], [62], [130]]) + torch.arange(together)).flatten().to(DEVICE)
    lengths = positions + 1
    lengths[1], lengths[together] = 0, capacity
    rotary = (torch.rand(capacity, width, device=DEVICE), torch.rand(capacity, width, device=DEVICE))
    found = []
    for attention in (PlainAttention(), kernels.TritonAttention()):
        own = cache.clone()
        queries = attention.append(qkv, own, None, positions, rotary, together)
        attended = attention.attend(queries, own, None, lengths, capacity, together)
        found.append((own, attended[lengths > 0]))
        assert attended.isfinite().all()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), atol=tolerance, rtol=tolerance)


@GPU
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_several_tokens_a_step_on_a_gpu_are_those_on_a_cpu(compiled, guidance):
    """Groups by their rows, guesses by greedy rows, which are those of the plain sampler."""
    null = (LENGTH.null_id,)
    requests = [Request((LENGTH.num_outputs + number % 3,), number, 3, null) for number in range(7)]
    plain = model_of()
    torch.manual_seed(0)
    grouped = GroupTransformer(GroupConfig(LENGTH, SMALL, groups=(1, 2, 3))).eval()
    heads = DraftHeads(DraftConfig(SMALL.width, 2))
    for model, draft, temperature in ((grouped, None, 1.0), (plain, heads, 0.0)):
        config, rows = SamplingConfig(temperature, guidance=guidance), []
        for device in ("cpu", DEVICE):
            engine = Engine(model.to(device), config, slots=3, compiled=compiled, draft=draft)
            found = dict(engine.run(requests))
            rows.append([found[number].tolist() for number in range(7)])
        assert rows[0] == rows[1]


@GPU
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "config",
    [SamplingConfig(temperature=0), SamplingConfig(), SamplingConfig(top_k=9, top_p=0.9), SamplingConfig(guidance=2.0)],
    ids=str,
)
def test_rows_on_a_gpu_are_those_of_the_plain_sampler(config, compiled, slots):
    for layout in (LENGTH, END):
        model = model_of(layout)
        null = layout.null_prefix(1, DEVICE)
        requests = [
            Request((layout.num_outputs + number % 3,), number, 3, tuple(null[0].tolist())) for number in range(5)
        ]
        rows = dict(Engine(model, config, slots=slots, compiled=compiled).run(requests))
        for number, request in enumerate(requests):
            prefix, seed = torch.tensor([request.prefix], device=DEVICE), torch.tensor([number], device=DEVICE)
            wanted = Sampler(model)(prefix, seed, config, null_prefix=null)
            assert torch.equal(rows[number], wanted[0].cpu())


@GPU
@torch.no_grad()
def test_kernels_that_overlap_give_what_they_give_one_after_another(monkeypatch):
    """In bf16 and at many positions, from one cache."""
    model = model_of(width=1280, heads=20, kv_heads=20, hidden=3584, depth=4)
    networks = [one_row(model, dtype=torch.bfloat16)]
    monkeypatch.setattr(single_row, "OVERLAP", False)
    networks.append(one_row(model, dtype=torch.bfloat16))
    token = torch.zeros(1, dtype=torch.long, device=DEVICE)
    for position in range(150):
        at = token + position
        found = [network.logits(network(token, at, at + 1, 192)) for network in networks]
        assert torch.equal(*found)
    assert torch.equal(networks[0].cache, networks[1].cache)
