"""The decoder's pass over kept tokens alone: kept latents of all clips one after another, then the pixel queries.

Every product is of kept tokens, without padding. In attention the kept latents of a block are a span of queries, and so
are its pixel queries; both attend to the kept latents of their clip up to that block, which are a span of keys. Pixel
queries also attend to those of their own block, a second span. So no key is copied.

`packed_past.py` has the scorer's pass, by the same spans.

On a GPU in half precision Triton kernels attend (`packed_kernels.py`) and compute gradients (`packed_gradients.py`).
Elsewhere spans are gathered, padded, for the attention alone: exact in any precision, and slow.

Symbols: B clips, G blocks, L latents and P pixel queries of a block, N tokens, R spans, H heads, D channels of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genvid.hardware import HALF, hardware
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
    readers: Spans | None = None
    """For gradients, with all keys among the own ones: spans of keys, which together are all keys, and for each two
    spans of queries that attend to it."""
    causal: bool = False
    """Of its own keys a query attends to those up to its own place. With `readers`."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(1, H, N, D) -> (1, H, N, D); zeros for queries without keys. `past`: past keys and values (M, H, D); None:
        these are among the own ones."""
        queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
        attended: Tensor
        if self.readers is None:
            past_keys, past_values = (keys, values) if past is None else past
            attended = attend_spans(queries, keys, values, past_keys, past_values, self.places, self.longest)
        elif query.is_cuda:
            tables = self.places, self.longest, self.readers.places, self.readers.longest
            attended, _ = attend_spans_with_gradients(queries, keys, values, *tables, self.causal)
        else:
            attended = _gathered(queries, keys, values, keys, values, self.places, self.causal)
        return attended.transpose(0, 1)[None]


class PackedTokens:
    """Places of the tokens of a pass, and which attend to which. Made without reading a value from the device."""

    def __init__(self, keep: Tensor, count: int, pixels: int, window: int | None) -> None:
        """`keep` (B, G, L), `pixels` queries a block, and the decoder's `window`.

        `count`: of the latents, all that are kept and spare ones, which attend to nothing; without gradients these are
        `SPARE` at most.
        """
        clips, blocks, capacity = keep.shape
        self.latents = torch.nonzero_static(keep.flatten(), size=count)[:, 0]
        """(count,) places of the kept latents in (B, G, L), and -1."""
        queries = torch.arange(blocks * pixels, device=keep.device).repeat(clips)
        self.places = torch.cat([self.latents % (blocks * capacity), queries + blocks * capacity])
        """(N,) places in a clip: of all its latents, and then of its pixel queries."""
        self.spans, self.spans_of_pixels = _spans(keep.sum(2, dtype=torch.int32), count, capacity, pixels, window)
        """Of all tokens; and of pixel queries alone, for the last layer."""
        self.attend: Attend = self.spans.attend
        """Of all tokens: (1, H, N, D) -> (1, H, N, D)."""
        self.attend_pixels: Attend = of_chosen(self.spans_of_pixels.attend, slice(count, None))
        """Of pixel queries alone: (1, H, N, D) -> (1, H, B G P, D)."""


def causal_spans(lengths: Tensor, longest: int, count: int) -> Spans:
    """Of `count` tokens of clips one after another, of each clip (B,) so many and `longest` at most, which attend to
    those of their clip up to themselves; the spare ones at the end attend to nothing."""
    ends = lengths.cumsum(0)
    clips = torch.stack([ends - lengths, ends], 1).int()
    spare = _spare(clips, longest, count, count)
    readers = Spans(_table((clips, clips, None), (spare, None, None)), longest)
    return Spans(_table((clips, None, clips), (spare, None, None)), longest, readers, causal=True)


def _spans(lengths: Tensor, count: int, capacity: int, pixels: int, window: int | None) -> tuple[Spans, Spans]:
    """Of all tokens, and of pixel queries alone, where `lengths` (B, G) int32 latents of each block are kept."""
    own, seen, reading = _spans_of_blocks(lengths, window)
    tiles, _, reading_tiles = _spans_of_blocks(torch.full_like(lengths, pixels), window)
    queries, longest = tiles + count, max(capacity, pixels)
    spare = _spare(own, longest, count, count if torch.is_grad_enabled() else SPARE)
    readers = readers_alone = None
    if torch.is_grad_enabled():
        to_latents, to_pixels = (own, reading, reading_tiles + count), (queries, queries, None)
        readers = Spans(_table(to_latents, (spare, None, None), to_pixels), longest)
        alone = (own, reading_tiles, None), (spare, None, None), (queries, tiles, None)
        readers_alone = Spans(_table(*alone), longest)
    everyone = Spans(_table((own, seen, None), (spare, None, None), (queries, seen, queries)), longest, readers)
    return everyone, Spans(_table((tiles, seen, queries)), pixels, readers_alone)


def _spans_of_blocks(lengths: Tensor, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, G) int32 of blocks -> (B G, 2) spans of the tokens of each block, of those that it attends to, and of
    those that attend to it."""
    ends = lengths.flatten().cumsum(0, dtype=torch.int32).view_as(lengths)
    starts, blocks = ends - lengths, torch.arange(lengths.shape[1], device=lengths.device)
    first, last = torch.zeros_like(blocks), torch.full_like(blocks, len(blocks) - 1)
    if window is not None:
        first, last = (blocks - window).clamp(min=0), (blocks + window).clamp(max=len(blocks) - 1)
    spans = (starts, ends), (starts[:, first], ends), (starts, ends[:, last])
    own, seen, reading = (torch.stack(ends, 2).flatten(0, 1) for ends in spans)
    return own, seen, reading


def _spare(kept: Tensor, longest: int, count: int, most: int) -> Tensor:
    """(R, 2) spans of the tokens, `most` of them at most, between the last span of those `kept` and `count`."""
    starts = kept[-1, 1] + torch.arange(0, most, longest, dtype=torch.int32, device=kept.device)
    return torch.stack([starts, starts + longest], 1).clamp(max=count)


def _table(*rows: tuple[Tensor, Tensor | None, Tensor | None]) -> Tensor:
    """Three spans (R, 2) of each row, of which None are empty -> (R, 3, 2) of all rows."""
    return torch.cat(
        [torch.stack([torch.zeros_like(spans[0]) if span is None else span for span in spans], 1) for spans in rows]
    )


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

    attended, _ = attend(query, key, value, past_key, past_value, places, longest)
    return attended


@attend_spans.register_fake
def _(query: Tensor, *others: Tensor | int) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


@attend_spans.register_kernel("cpu")
def _(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, places: Tensor, longest: int
) -> Tensor:
    return _gathered(query, key, value, past_key, past_value, places, causal=False)


@torch.library.custom_op("genvid::attend_spans_with_gradients", mutates_args=(), device_types="cuda")
def attend_spans_with_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Tensor,
    longest: int,
    readers: Tensor,
    longest_reader: int,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """The same with all keys among the own ones, by the fields of `Spans`; and the sums of the softmax (Q, H)."""
    from genvid.tokenizer.adaptok.packed_kernels import attend

    return attend(query, key, value, key, value, places, longest, causal=causal)


@attend_spans_with_gradients.register_fake
def _(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device), query.new_empty(
        query.shape[:2], dtype=torch.float32
    )


@torch.library.custom_op("genvid::gradients_of_spans", mutates_args=(), device_types="cuda")
def gradients_of_spans(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    sums: Tensor,
    places: Tensor,
    longest: int,
    readers: Tensor,
    longest_reader: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries, keys and values."""
    from genvid.tokenizer.adaptok.packed_gradients import gradients

    tensors = gradient, query, key, value, attended, sums
    return gradients(*tensors, places, longest, readers, longest_reader, causal=causal)


@gradients_of_spans.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    of_queries, of_keys, of_values = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value))
    return of_queries, of_keys, of_values


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, places, longest, readers, longest_reader, causal = inputs
    ctx.save_for_backward(query, key, value, *output, places, readers)
    ctx.constants = longest, longest_reader, causal


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, places, readers = ctx.saved_tensors
    longest, longest_reader, causal = ctx.constants
    return *gradients_of_spans(gradient, *tensors, places, longest, readers, longest_reader, causal), *(None,) * 5


attend_spans_with_gradients.register_autograd(_backward, setup_context=_set_up)


def _gathered(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, places: Tensor, causal: bool
) -> Tensor:
    """`attend_spans` by gathered tokens, padded."""
    (queries, filled), (past, among), (own, inside) = map(_padded, places.unbind(1))
    inside = inside[:, None] & (own[:, None] <= queries[..., None]) if causal else inside[:, None]
    among, inside = (part.expand(-1, queries.shape[1], -1) for part in (among[:, None], inside))
    found, past, own = (of.clamp(max=len(x) - 1) for of, x in ((queries, query), (past, past_key), (own, key)))
    keys, values = torch.cat([past_key[past], key[own]], 1), torch.cat([past_value[past], value[own]], 1)
    present = torch.cat([among, inside], 2)[:, None]
    scores = torch.einsum("rqhd, rkhd -> rhqk", query[found], keys) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~present, torch.finfo(scores.dtype).min).softmax(-1) * present
    attended = torch.einsum("rhqk, rkhd -> rqhd", weights, values)
    return attended[filled]


def _padded(spans: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 2) first and end of spans -> (R, length of the longest) their tokens, and which of these are inside."""
    first, end = spans.long().unbind(1)
    tokens = first[:, None] + torch.arange(int((end - first).max()))
    return tokens, tokens < end[:, None]
