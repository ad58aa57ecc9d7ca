"""The decoder's pass over kept tokens alone: kept latents of all clips one after another, then the pixel queries.

Every product is of kept tokens, without padding. In attention the kept latents of a block are a span of queries, and so
are its pixel queries; both attend to the kept latents of their clip up to that block, which are a span of keys. Pixel
queries also attend to those of their own block, a second span. So no key is copied.

`packed_past.py` has the scorer's pass, by the same spans.

On a GPU in half precision a Triton kernel attends (`packed_kernels.py`). On a CPU spans are gathered, padded, for the
attention alone: exact in any precision, and slow. With gradients, keys are ranges of numbers (`key_ranges.py`).

Symbols: B clips, G blocks, L latents and P pixel queries of a block, N tokens, R spans, H heads, D channels of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genvid.hardware import HALF, hardware
from genvid.tokenizer.adaptok.key_ranges import TILE, attend_to_ranges
from genvid.tokenizer.layers import Attend, of_chosen

MOST_TOKENS = 1 << 19
"""Of videos of any length in one pass, if all were kept: 10 GB of activations at a width of 768."""
SPARE = 256
"""Tokens that a pass may have beyond the kept ones, so that few sizes occur."""


def has_kernel(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether the kernel takes heads of `channels` in `dtype` on a device."""
    return dtype in HALF and channels <= 128 and hardware(device).kernels


@dataclass(frozen=True)
class Spans:
    """Spans of queries, and for each a span of past keys and one of its own keys that it attends to, which may overlap
    or be empty."""

    places: Tensor
    """(R, 3, 2) int32 first and end: of queries, which together, in order, are all queries; of past keys; of own keys.
    Contiguous."""
    longest: int
    """Most queries of a span."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(1, H, N, D) -> (1, H, N, D); zeros for queries without keys. `past`: past keys and values (M, H, D); None:
        these are among the own ones."""
        queries, *own = (x[0].transpose(0, 1) for x in (query, key, value))
        attended: Tensor = attend_spans(queries, *own, *(own if past is None else past), self.places, self.longest)
        return attended.transpose(0, 1)[None]


class PackedTokens:
    """Places of the tokens of a pass, and which attend to which. Made without reading a value from the device."""

    def __init__(self, keep: Tensor, count: int, pixels: int, window: int | None) -> None:
        """`keep` (B, G, L), `pixels` queries a block, and the decoder's `window`.

        `count`: of the latents, all that are kept and others, which no kept token attends to; without gradients these
        are `SPARE` at most.
        """
        clips, blocks, capacity = keep.shape
        self.latents = torch.nonzero_static(keep.flatten(), size=count)[:, 0]
        """(count,) places of the kept latents in (B, G, L), and -1."""
        queries = torch.arange(blocks * pixels, device=keep.device).repeat(clips)
        self.places = torch.cat([self.latents % (blocks * capacity), queries + blocks * capacity])
        """(N,) places in a clip: of all its latents, and then of its pixel queries."""
        self.attend: Attend
        """Of all tokens: (1, H, N, D) -> (1, H, N, D)."""
        self.attend_pixels: Attend
        """Of pixel queries alone, in the last layer: (1, H, N, D) -> (1, H, B G P, D)."""
        if torch.is_grad_enabled():
            self.attend, self.attend_pixels = _by_ranges(self.latents, keep, pixels, window)
        else:
            self.attend, self.attend_pixels = _by_spans(count, keep, pixels, window)


def _by_spans(count: int, keep: Tensor, pixels: int, window: int | None) -> tuple[Attend, Attend]:
    """Attention of all tokens, and of pixel queries, without gradients."""
    clips, blocks, capacity = keep.shape
    own, seen = _spans_of_latents(keep.sum(2, dtype=torch.int32), window)
    tiles = torch.arange(0, clips * blocks * pixels, pixels, dtype=torch.int32, device=keep.device)
    tiles = torch.stack([tiles, tiles + pixels], 1)
    own[-1, 1].fill_(count)  # spare tokens attend as the last kept ones do
    of_latents = torch.stack([own, seen, torch.zeros_like(seen)], 1)
    of_pixels = torch.stack([tiles + count, seen, tiles + count], 1)
    everyone = Spans(torch.cat([of_latents, of_pixels]), max(capacity + SPARE, pixels))
    alone = Spans(torch.stack([tiles, seen, tiles + count], 1), pixels)
    return everyone.attend, of_chosen(alone.attend, slice(count, None))


def _by_ranges(latents: Tensor, keep: Tensor, pixels: int, window: int | None) -> tuple[Attend, Attend]:
    """The same with gradients. Blocks of all clips are numbered, first as those of latents, then as those of queries.
    Spare tokens have numbers after these, each with the others of its tile."""
    clips, blocks, capacity = keep.shape
    total = clips * blocks
    block = latents // capacity
    spare = 2 * total + torch.arange(len(latents), device=keep.device) // TILE
    queries = torch.arange(total, device=keep.device).repeat_interleave(pixels)
    last = torch.cat([torch.where(latents < 0, spare, block), queries])
    first = last // blocks * blocks
    first = first if window is None else torch.maximum(first, last - window)
    first = torch.where(last < total, first, last)
    numbers = torch.cat([last[: len(latents)], total + queries])
    own = torch.cat([torch.full_like(latents, -1), total + queries])
    of_pixels = slice(len(latents), None)
    alone = attend_to_ranges(numbers, first[of_pixels], last[of_pixels], own[of_pixels])
    return attend_to_ranges(numbers, first, last, own), of_chosen(alone, of_pixels)


def _spans_of_latents(lengths: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Kept latents (B, G) int32 -> (B G, 2) spans of the latents of each block, and of those that it attends to."""
    ends = lengths.flatten().cumsum(0, dtype=torch.int32).view_as(lengths)
    starts = ends - lengths
    blocks = torch.arange(lengths.shape[1], device=lengths.device)
    first = torch.zeros_like(blocks) if window is None else (blocks - window).clamp(min=0)
    return torch.stack([starts, ends], 2).flatten(0, 1), torch.stack([starts[:, first], ends], 2).flatten(0, 1)


@torch.library.custom_op("genvid::attend_spans", mutates_args=(), device_types="cuda")
def attend_spans(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    places: Tensor,
    longest: int,
) -> Tensor:
    """Queries (Q, H, D), own keys and values (N, H, D) and past ones (M, H, D) -> (Q, H, D), by the places and the
    longest of `Spans`."""
    # Imported here: Triton is not installed everywhere.
    from genvid.tokenizer.adaptok.packed_kernels import attend

    return attend(query, key, value, past_key, past_value, places, longest)


@attend_spans.register_fake
def _(query: Tensor, *others: Tensor | int) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


@attend_spans.register_kernel("cpu")
def _(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, places: Tensor, longest: int
) -> Tensor:
    (queries, filled), (past, among), (own, inside) = map(_padded, places.unbind(1))
    queries, past, own = (of.clamp(max=len(x) - 1) for of, x in ((queries, query), (past, past_key), (own, key)))
    keys, values = torch.cat([past_key[past], key[own]], 1), torch.cat([past_value[past], value[own]], 1)
    present = torch.cat([among, inside], 1)[:, None, None]
    scores = torch.einsum("rqhd, rkhd -> rhqk", query[queries], keys) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~present, torch.finfo(scores.dtype).min).softmax(-1) * present
    return torch.einsum("rhqk, rkhd -> rqhd", weights, values)[filled]


def _padded(spans: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 2) first and end of spans -> (R, length of the longest) their tokens, and which of these are inside."""
    first, end = spans.long().unbind(1)
    tokens = first[:, None] + torch.arange(int((end - first).max()))
    return tokens, tokens < end[:, None]
