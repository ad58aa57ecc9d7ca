"""The decoder's pass over kept tokens alone: kept latents of all clips one after another, then the pixel queries.

Every product is of kept tokens, without padding. In attention the kept latents of a block are a span of queries, and so
are its pixel queries; both attend to the kept latents of their clip up to that block, which are a span of keys. Pixel
queries also attend to those of their own block: a second attention, joined to the first by the sums of both softmaxes.
So no key is copied.

Where a GPU has it, in half precision, attention of spans is torch's variable-length flash attention. Everywhere else
spans are gathered, padded, for the attention alone: exact in any precision, and slow.

Symbols: B clips, G blocks, L latents and P pixel queries of a block, N tokens, R spans, H heads, D channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_TOKENS = 1 << 19
"""Of videos of any length in one pass, if all were kept: 10 GB of activations at a width of 768."""
SPARE = 256
"""Tokens that a pass may have beyond the kept ones, so that few sizes occur."""


@dataclass(frozen=True)
class Spans:
    """Spans of queries, and for each the span of keys that it attends to. Spans of keys may overlap or be empty."""

    queries: Tensor
    """(R, 2) int32 first and end of every span. Together, in order, they are all queries."""
    keys: Tensor
    """(R, 2) int32."""
    longest: tuple[int, int]
    """Most queries and most keys of a span."""


SpanAttention = Callable[[Tensor, Tensor, Tensor, Spans], tuple[Tensor, Tensor]]
"""Queries (N, H, D), and keys and values -> (N, H, D), and (H, N) float logarithms of the sums of the softmax.

A query without keys has zeros, and -inf."""


class PackedTokens:
    """Places of the tokens of a pass, and which attend to which. Made without reading a value from the device."""

    def __init__(self, keep: Tensor, count: int, pixels: int, window: int | None, *, flash: bool) -> None:
        """`keep` (B, G, L), `pixels` queries a block, and the decoder's `window`.

        `count`: of the latents, those that are kept and at most `SPARE` others.
        `flash`: attention by flash attention, which the device has.
        """
        clips, blocks, capacity = keep.shape
        self._attend_to: SpanAttention = attend_by_flash if flash else attend_to_gathered
        self.pixels = clips * blocks * pixels
        self.latents = torch.nonzero_static(keep.flatten(), size=count)[:, 0]
        """(count,) places of the kept latents in (B, G, L), and -1."""
        queries = torch.arange(blocks * pixels, device=keep.device).repeat(clips)
        self.places = torch.cat([self.latents % (blocks * capacity), queries + blocks * capacity])
        """(N,) places in a clip: of all its latents, and then of its pixel queries."""
        own, seen = _spans_of_latents(keep.sum(2, dtype=torch.int32), window)
        tiles = torch.arange(0, self.pixels, pixels, dtype=torch.int32, device=keep.device)
        tiles = torch.stack([tiles, tiles + pixels], 1)
        most = capacity * (blocks if window is None else min(blocks, window + 1))
        own[-1, 1].fill_(count)  # spare tokens attend as the last kept ones do; none attends to them
        everyone = torch.cat([own, tiles + count])
        self._to_latents = Spans(everyone, torch.cat([seen, seen]), (max(capacity + SPARE, pixels), most))
        self._pixels_to_latents = Spans(tiles, seen, (pixels, most))
        self._pixels_to_own = Spans(tiles, tiles, (pixels, pixels))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`Attend` of all tokens: (1, H, N, D) -> (1, H, N, D)."""
        query, key, value = (x[0].transpose(0, 1) for x in (queries, keys, values))
        attended, sums = self._attend_to(query, key, value, self._to_latents)
        pixels = slice(-self.pixels, None)
        attended[pixels] = self._with_own(attended[pixels], sums[:, pixels], query, key, value)
        return attended.transpose(0, 1)[None]

    def attend_pixels(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`Attend` of pixel queries alone, in the last layer: (1, H, N, D) -> (1, H, B G P, D)."""
        query, key, value = (x[0].transpose(0, 1) for x in (queries, keys, values))
        attended, sums = self._attend_to(query[-self.pixels :], key, value, self._pixels_to_latents)
        return self._with_own(attended, sums, query, key, value).transpose(0, 1)[None]

    def _with_own(self, attended: Tensor, sums: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of pixel queries to latents -> that to latents and to the queries of their block."""
        pixels = slice(-self.pixels, None)
        own, own_sums = self._attend_to(query[pixels], key[pixels], value[pixels], self._pixels_to_own)
        share = torch.sigmoid(sums - own_sums).transpose(0, 1)[..., None]
        return torch.lerp(own.to(share.dtype), attended.to(share.dtype), share).to(own.dtype)


def _spans_of_latents(lengths: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Kept latents (B, G) int32 -> (B G, 2) spans of the latents of each block, and of those that it attends to."""
    ends = lengths.flatten().cumsum(0, dtype=torch.int32).view_as(lengths)
    starts = ends - lengths
    blocks = torch.arange(lengths.shape[1], device=lengths.device)
    first = torch.zeros_like(blocks) if window is None else (blocks - window).clamp(min=0)
    return torch.stack([starts, ends], 2).flatten(0, 1), torch.stack([starts[:, first], ends], 2).flatten(0, 1)


def attend_by_flash(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """`SpanAttention` by torch's variable-length flash attention."""
    # Imported here: it takes a second, and is of use on a GPU alone.
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    # Flattened, spans and the gaps between them are the rows of a call. A gap has no queries, so it is not computed.
    rows = spans.queries.flatten(), spans.keys.flatten()
    attended, sums = varlen_attn(query, key, value, *rows, *spans.longest, return_aux=AuxRequest(lse=True))
    return attended, sums.masked_fill(sums.isposinf(), -math.inf)  # flash attention's sum of no keys is +inf


def attend_to_gathered(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """`SpanAttention` by padded spans."""
    (queries, filled), (keys, present) = (
        _padded(*span) for span in zip((spans.queries, spans.keys), spans.longest, strict=True)
    )
    queries, keys = queries.clamp(max=len(query) - 1), keys.clamp(max=len(key) - 1)
    scores = torch.einsum("rqhd, rkhd -> rhqk", query[queries], key[keys]) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~present[:, None, None], -math.inf)
    sums = scores.logsumexp(-1, keepdim=True)
    weights = (scores - sums.clamp(min=torch.finfo(scores.dtype).min)).exp()
    attended = torch.einsum("rhqk, rkhd -> rqhd", weights, value[keys])
    return attended[filled], sums[..., 0].transpose(1, 2)[filled].transpose(0, 1)


def _padded(spans: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """(R, 2) first and end of spans -> (R, longest) their tokens, and which of these are inside the span."""
    first, end = spans.long().unbind(1)
    tokens = first[:, None] + torch.arange(longest, device=spans.device)
    return tokens, tokens < end[:, None]
