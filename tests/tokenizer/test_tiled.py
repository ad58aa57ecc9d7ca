"""Attention in tiles gives the results and gradients of the plain path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genvid.tokenizer.adaptok import tiled
from genvid.tokenizer.adaptok.attention import alone, block_causal, latents_then_pixels

SIZES, PIXELS = (256, 256, 128), 128


def cut(*lengths: tuple[int, ...]) -> Tensor:
    """(B, S) kept tokens of clips with blocks of these lengths."""
    rows = [torch.cat([torch.arange(n) < kept for n, kept in zip(SIZES, row, strict=True)]) for row in lengths]
    return torch.stack(rows)


KEEP = cut((256, 100, 128), (3, 0, 60))


def inputs(tokens: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 2, tokens, 16) for _ in range(3)]


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("keep", [None, KEEP], ids=["all", "cut"])
def test_tiles_of_blocks_are_those_of_the_plain_path(window, keep):
    queries, keys, values = inputs(sum(SIZES))
    allowed = tiled.block_rule(SIZES, (), window, queries.device)
    found = alone(tiled.attention(queries, keys, values, allowed, keep), values, keep)
    torch.testing.assert_close(found, block_causal(SIZES, keep, window)(queries, keys, values))


@pytest.mark.parametrize("blocks", [(0, 1, 2), (2,)])
@pytest.mark.parametrize("window", [None, 1])
def test_tiles_of_pixel_queries_are_those_of_the_plain_path(blocks, window):
    queries, keys, values = inputs(sum(SIZES) + PIXELS * len(blocks))
    allowed = tiled.block_rule(SIZES, [(block, PIXELS) for block in blocks], window, queries.device)
    every = torch.cat([KEEP, KEEP.new_ones(2, PIXELS * len(blocks))], 1)
    found = alone(tiled.attention(queries, keys, values, allowed, every), values, every)
    plain = latents_then_pixels(SIZES, PIXELS, blocks, KEEP, window)
    torch.testing.assert_close(found, plain(queries, keys, values))


def test_tiles_without_a_kept_token_are_not_computed():
    allowed = tiled.block_rule(SIZES, (), None, KEEP.device)
    pairs = (allowed.repeat_interleave(128, 0).repeat_interleave(128, 1) & KEEP[:, None]).unflatten(1, (-1, 128))
    needed = pairs.unflatten(3, (-1, 128)).any(4).any(2)
    assert torch.equal(tiled.tile_mask(allowed, KEEP).to_dense()[:, 0].bool(), needed)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1])
def test_a_compiled_pass_gives_the_plain_results_and_gradients(gpu, window, dtype):
    """On a CPU both passes take the plain path."""
    blocks = (0, 1, 2)
    given = [x.to(gpu, dtype) for x in inputs(sum(SIZES) + PIXELS * len(blocks))]
    keep = KEEP.to(gpu)

    def run(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        seen = sum(SIZES)
        first = block_causal(SIZES, None, window)(queries[:, :, :seen], keys[:, :, :seen], values[:, :, :seen])
        pixels = queries[:, :, seen:]
        rule = latents_then_pixels(SIZES, PIXELS, blocks, keep, window)
        return rule(torch.cat([first, pixels], 2), keys, values)

    def results(function, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in given]
        out = function(*leaves)
        return [out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)]

    expected = results(run, torch.float64)
    error = 2e-2 if dtype == torch.bfloat16 else 2e-3
    for found, exact in zip(results(torch.compile(run), dtype), expected, strict=True):
        assert (found.double() - exact).norm() <= error * exact.norm()
