"""Attention by prefixes equals attention under the dense masks that it never builds."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from genvid.tokenizer.adaptok import attention
from genvid.tokenizer.adaptok.attention import (
    block_causal,
    causal_attention,
    full_attention,
    last_of_blocks,
    latents_then_pixels,
)


def qkv(length, batch=3):
    torch.manual_seed(length)
    return [torch.randn(batch, 2, length, 4, dtype=torch.double, requires_grad=True) for _ in range(3)]


def dense(query, key, value, allowed):
    return scaled_dot_product_attention(query, key, value, attn_mask=allowed[:, None])


def drop(allowed, keep):
    """Dropped tokens (B, S) see themselves alone and are seen by none, in a dense (B, S, S) mask."""
    allowed = allowed & keep[:, :, None] & keep[:, None, :]
    return allowed | torch.eye(keep.shape[1], dtype=torch.bool)


def some_kept(total):
    keep = torch.rand(3, total) < 0.6
    keep[0], keep[1] = True, False
    return keep


@pytest.mark.parametrize("sizes", [(5,), (3, 3, 3), (4, 0, 1, 6), (0, 2)])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("window", [None, 0, 1])
def test_block_causal_equals_the_dense_mask(sizes, ragged, window):
    inputs = qkv(sum(sizes))
    block = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    ahead = block[:, None] - block
    allowed = ((ahead >= 0) & (ahead <= (len(sizes) if window is None else window))).expand(3, -1, -1)
    keep = some_kept(sum(sizes)) if ragged else None
    expected = dense(*inputs, allowed if keep is None else drop(allowed, keep))
    torch.testing.assert_close(block_causal(sizes, keep, window)(*inputs), expected)


@pytest.mark.parametrize("window", [None, 0, 1])
def test_the_last_tokens_of_blocks_attend_as_among_all(window):
    inputs = qkv(12)
    last = torch.tensor([1, 2, 6, 7, 10, 11])
    expected = block_causal((3, 5, 4), window=window)(*inputs)[:, :, last]
    torch.testing.assert_close(last_of_blocks((3, 5, 4), 2, window)(*inputs), expected)


@pytest.mark.parametrize("blocks", [(0, 1, 2), (1,), (2,)])
@pytest.mark.parametrize("ragged", [False, True])
def test_decoder_rule_equals_the_dense_mask(blocks, ragged):
    sizes, pixels = (3, 5, 2), 4
    latent_block = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    pixel_block = torch.tensor(blocks).repeat_interleave(pixels)
    block, is_pixel = torch.cat([latent_block, pixel_block]), torch.arange(10 + len(pixel_block)) >= 10
    to_latents = (block[:, None] >= block) & ~is_pixel
    to_own_pixels = (block[:, None] == block) & is_pixel[:, None] & is_pixel
    allowed = (to_latents | to_own_pixels).expand(3, -1, -1)
    keep = some_kept(10) if ragged else None
    if keep is not None:
        allowed = drop(allowed, torch.cat([keep, keep.new_ones(3, len(pixel_block))], 1))
    inputs = qkv(len(block))
    torch.testing.assert_close(latents_then_pixels(sizes, pixels, blocks, keep)(*inputs), dense(*inputs, allowed))


def test_rows_that_keep_nothing_have_finite_gradients():
    inputs = qkv(6)
    keep = torch.zeros(3, 6, dtype=torch.bool)
    block_causal((3, 3), keep)(*inputs).square().sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_no_mask_is_larger_than_the_keys(monkeypatch):
    masks = []

    def spy(*args, attn_mask=None):
        masks.append(attn_mask)
        return scaled_dot_product_attention(*args, attn_mask=attn_mask)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", spy)
    latents_then_pixels((4, 4), 6, (0, 1), some_kept(8))(*qkv(20))
    assert [tuple(mask.shape) for mask in masks] == [(3, 1, 1, 4), (3, 1, 1, 8), (3, 1, 1, 10), (3, 1, 1, 14)]
    masks.clear()
    latents_then_pixels((4, 4), 6, (0, 1))(*qkv(20))
    assert masks == [None] * 4


def test_full_and_causal_attention():
    inputs = qkv(5)
    every = torch.ones(3, 5, 5, dtype=torch.bool)
    torch.testing.assert_close(full_attention(*inputs), dense(*inputs, every))
    torch.testing.assert_close(causal_attention(*inputs), dense(*inputs, every.tril()))
