"""Decoding of kept tokens alone equals decoding under masks, whatever is kept."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from compiled import graphs_of
from disturbed import disturbed
from torch.nn.functional import scaled_dot_product_attention

from genvid import noise
from genvid.hardware import Hardware
from genvid.tokenizer.adaptok import model as model_module
from genvid.tokenizer.adaptok import packed as packed_module
from genvid.tokenizer.adaptok.config import AbsoluteGeometry, AdapTokConfig, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.packed import PackedTokens, Spans, _gathered, attend_spans, causal_spans, has_kernel
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens import BlockTokens

CONFIG = AdapTokConfig(
    frames=16,
    resolution=(16, 24),
    patch=(4, 8, 8),
    block_capacity=7,
    encoder=StackConfig(24, 2, 2),
    decoder=StackConfig(24, 3, 3),
    quantizer=VQConfig(codebook_size=32, code_dim=8),
)
ROTARY = RotaryGeometry(window=2, sides=(16, 40), aspect=(2, 1))
SINGLE = replace(ROTARY, single_first_frame=True)
MODELS = {
    "absolute": CONFIG,
    "pooled": replace(CONFIG, pooled_queries=True),
    "rotary": replace(CONFIG, pooled_queries=True, geometry=ROTARY),
    "single first frame": replace(CONFIG, frames=13, pooled_queries=True, geometry=SINGLE),
}
LENGTHS = {
    "ragged": [[7, 3, 1, 5], [2, 4, 7, 1], [1, 1, 1, 1]],
    "empty blocks": [[0, 3, 0, 7], [2, 0, 0, 0], [0, 0, 0, 0]],
    "all": [[7] * 4] * 3,
    "one clip": [[3, 7, 2, 4]],
    "one block": [[3], [7]],
}


def lengths_or_mask(kept: str) -> torch.Tensor:
    """(B, G, 7) bool."""
    if kept == "any positions":
        return torch.rand(3, 4, 7, generator=torch.Generator().manual_seed(2)) < 0.4
    return torch.arange(7) < torch.tensor(LENGTHS[kept])[..., None]


@pytest.fixture(params=MODELS)
def model(request) -> AdapTok:
    torch.manual_seed(0)
    return disturbed(AdapTok(MODELS[request.param]))


@pytest.mark.parametrize("kept", [*LENGTHS, "any positions"])
@torch.no_grad()
def test_kept_tokens_alone_give_the_frames_of_the_masked_pass(model, kept):
    keep = lengths_or_mask(kept)
    embeddings = torch.randn(*keep.shape, 24, dtype=torch.double)
    frames, masked = model.double().render_kept(embeddings, keep, int(keep.sum())), model.render(embeddings, keep)
    assert frames.std() > 0.1
    torch.testing.assert_close(frames, masked, atol=1e-9, rtol=0)
    wild = torch.where(keep[..., None], embeddings, torch.nan)
    assert model.render_kept(wild, keep, int(keep.sum())).equal(frames)
    torch.testing.assert_close(model.render_kept(wild, keep, int(keep.sum()) + 5), frames, atol=1e-9, rtol=0)


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("kept", ["ragged", "empty blocks", "any positions"])
def test_gradients_of_kept_tokens_alone_are_those_of_the_masked_pass(model, kept, spare):
    keep = lengths_or_mask(kept)
    model.double()
    embeddings = torch.randn(*keep.shape, 24, dtype=torch.double, requires_grad=True)

    def found(most_kept: int | None) -> list[torch.Tensor]:
        frames, states = model.render_with_states(embeddings, keep, 1, most_kept)
        weights = noise.uniform(torch.tensor([0]), "weights", frames.numel() + states.numel())[0]
        loss = torch.cat([frames.flatten(), states.flatten()]) @ weights
        of_layers = [parameter for parameter in model.decoder.parameters() if parameter.requires_grad]
        return [frames, states, *torch.autograd.grad(loss, [embeddings, *of_layers])]

    torch.testing.assert_close(found(int(keep.sum()) + spare), found(None), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kept", ["ragged", "empty blocks", "all", "any positions"])
def test_decode_is_the_same_on_a_device_with_the_kernel(model, kept, monkeypatch):
    keep = lengths_or_mask(kept)
    tokens = BlockTokens(keep, torch.randint(32, keep.shape))
    expected = model.decode(tokens)
    monkeypatch.setattr(model_module, "has_kernel", lambda *device: True)
    torch.testing.assert_close(model.decode(tokens), expected, atol=1e-5, rtol=1e-5)


def test_the_kernel_takes_half_precision_and_heads_of_at_most_128_channels(monkeypatch):
    device = torch.device("cpu")
    assert not has_kernel(device, torch.bfloat16, 64)
    for found, taken in ((Hardware((8, 0), True), True), (Hardware((8, 0), False), False)):
        monkeypatch.setattr(packed_module, "hardware", lambda device, found=found: found)
        assert has_kernel(device, torch.bfloat16, 128) is has_kernel(device, torch.float16, 24) is taken
        assert not has_kernel(device, torch.float32, 64)
        assert not has_kernel(device, torch.bfloat16, 129)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("window", [None, 0, 1, 2])
def test_attention_equals_that_under_the_dense_mask(window, gradients):
    keep, pixels = lengths_or_mask("empty blocks"), 5
    keep[0, 2, 4] = True
    with torch.set_grad_enabled(gradients):
        tokens = PackedTokens(keep, int(keep.sum()), pixels, window)
    clip, block, _ = keep.nonzero().unbind(1)
    queries = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(pixels))
    clip, block = torch.cat([clip, queries[:, 0]]), torch.cat([block, queries[:, 1]])
    is_pixel = torch.arange(len(clip)) >= keep.sum()
    past = block[:, None] - block
    seen = (past >= 0) & ~is_pixel & ((past <= window) if window is not None else True)
    allowed = (clip[:, None] == clip) & (seen | (is_pixel[:, None] & is_pixel & (past == 0)))
    query, key, value = torch.randn(3, 1, 2, len(clip), 4, dtype=torch.double)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    torch.testing.assert_close(tokens.attend(query, key, value), expected)
    torch.testing.assert_close(tokens.attend_pixels(query, key, value), expected[:, :, is_pixel])


def test_a_span_without_keys_attends_to_nothing():
    places = torch.tensor([[[0, 2], [1, 1], [0, 0]], [[2, 3], [0, 2], [2, 3]]], dtype=torch.int32)
    query, key, value = torch.randn(3, 1, 2, 3, 4)
    attended = Spans(places, 2).attend(query, key, value)
    assert attended[:, :, :2].eq(0).all()
    expected = scaled_dot_product_attention(query[:, :, 2:], key, value)
    torch.testing.assert_close(attended[:, :, 2:], expected)


@torch.no_grad()
def test_one_compilation_serves_all_lengths(monkeypatch):
    """Of all layers but the last, and of the last one; the second length that occurs compiles both once more."""
    monkeypatch.setattr(model_module, "has_kernel", lambda *device: True)
    torch.manual_seed(0)
    model = disturbed(AdapTok(CONFIG)).requires_grad_(False)
    graphs = graphs_of(model.decoder)
    for step in range(6):
        keep = torch.rand(3, 4, 7, generator=torch.Generator().manual_seed(step)) < 0.5
        embeddings = torch.randn(*keep.shape, 24)
        frames = model.render_kept(embeddings, keep, int(keep.sum()))
    assert len(graphs) == 4
    torch.testing.assert_close(frames, model.render(embeddings, keep), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "geometry", [AbsoluteGeometry(), RotaryGeometry(2, (64, 64), (1, 1))], ids=["absolute", "rotary"]
)
@torch.no_grad()
def test_the_kernel_gives_the_same_frames(gpu, geometry):
    torch.manual_seed(0)
    large = replace(CONFIG, resolution=(64, 64), decoder=StackConfig(128, 3, 2), block_capacity=200)
    model = disturbed(AdapTok(replace(large, pooled_queries=True, geometry=geometry))).to(gpu)
    keep = (torch.arange(200) < torch.randint(0, 201, (5, 4, 1))).to(gpu)
    keep[0, 0] = False
    tokens = BlockTokens(keep, torch.randint(32, keep.shape, device=gpu))
    exact = model.decode(tokens)
    with torch.autocast("cuda", torch.bfloat16):
        frames, masked = model.decode(tokens), model.render(model.embed(tokens), keep)
    assert (frames - exact).norm() < 1.2 * (masked - exact).norm() + 1e-3 * exact.norm()


@pytest.fixture
def triton_device(device) -> torch.device:
    """A GPU, or a CPU whose kernels are interpreted: TRITON_INTERPRET=1, before anything starts."""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("on a CPU the kernel is interpreted: TRITON_INTERPRET=1, before anything starts")
    return device


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [24, 64, 128])
def test_the_kernel_attends_as_padded_spans_do(triton_device, channels):
    from genvid.tokenizer.adaptok.packed_kernels import attend

    spans = [[[0, 150], [0, 150], [0, 0]], [[150, 150], [0, 150], [0, 0]], [[150, 160], [20, 90], [150, 160]]]
    places = torch.tensor([*spans, [[160, 163], [5, 5], [0, 0]]], dtype=torch.int32)
    torch.manual_seed(0)
    query, key, value = torch.randn(163, 3, 2, channels).half().unbind(1)
    past_key, past_value = torch.randn(150, 2, 2, channels).half().unbind(2)
    tokens = query, key, value, past_key, past_value
    expected = attend_spans(*(x.float() for x in tokens), places, 150)
    attended, _ = attend(*(x.to(triton_device) for x in (*tokens, places)), 150)
    torch.testing.assert_close(attended.cpu().float(), expected, atol=2e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [24, 64, 128])
@pytest.mark.parametrize("tokens", ["all", "pixel queries", "causal"])
def test_the_kernels_give_the_gradients_of_padded_spans(triton_device, channels, tokens):
    from genvid.tokenizer.adaptok.packed_gradients import gradients
    from genvid.tokenizer.adaptok.packed_kernels import attend

    torch.manual_seed(0)
    keep, pixels, spare = torch.arange(150) < torch.tensor([[0, 149, 7], [66, 0, 130]])[..., None], 70, 9
    count = int(keep.sum()) + spare
    packed, total = PackedTokens(keep, count, pixels, window=1), count + 6 * pixels
    spans = {
        "all": packed.spans,
        "pixel queries": packed.spans_of_pixels,
        "causal": causal_spans(keep.sum((1, 2)), 450, total),
    }[tokens]
    assert spans.readers is not None
    key, value = torch.randn(total, 2, 2, channels).half().unbind(1)
    query = torch.randn(6 * pixels if tokens == "pixel queries" else total, 2, channels).half()
    key[:, :, 0], query[:, :, 0] = 40, -40  # scores far below 0, those of zeros in place of keys
    weights = torch.randn(query.shape).half()
    exact = [x.double().requires_grad_() for x in (query, key, value)]
    expected = _gathered(*exact, *exact[1:], spans.places, spans.causal)
    wanted = torch.autograd.grad((expected * weights).sum(), exact)
    given = [x.to(triton_device) for x in (query, key, value)]
    tables = spans.places.to(triton_device), spans.longest
    attended, sums = attend(*given, *given[1:], *tables, causal=spans.causal)
    torch.testing.assert_close(attended.cpu().double(), expected.detach(), atol=4e-3, rtol=0)
    readers = spans.readers.places.to(triton_device), spans.readers.longest
    found = gradients(weights.to(triton_device), *given, attended, sums, *tables, *readers, causal=spans.causal)
    for one, other in zip(found, wanted, strict=True):
        assert (one.cpu() - other).norm() < 4e-3 * other.norm()
