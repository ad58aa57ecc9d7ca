"""Attention of every query to a range of the keys, with gradients.

Every key has a number, and a query attends to the keys whose numbers are from its `first` to its `last`, or its `own`.
So tokens of several clips lie one after another without padding, and no key is copied.

In a step that is compiled for a GPU this is torch's FlexAttention, which passes over tiles of keys that no query of a
tile attends to. Elsewhere it is a mask of all queries and keys: exact on any device, and large. Blocks of which no
token is dropped are faster without masks (`attention.py`).

Symbols: Q queries, S keys, H heads, D channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from genvid.tokenizer.layers import Attend

TILE = 128
"""Queries, and keys, of a tile: the fewest that FlexAttention takes for 64 channels on an H100."""


def attend_to_ranges(numbers: Tensor, first: Tensor, last: Tensor, own: Tensor | None = None) -> Attend:
    """Attention (B, H, Q, D) to the ranges `first` to `last`, and `own`, all (Q,), of keys with `numbers` (S,).

    Every query attends to a key.
    """
    own = torch.full_like(first, -1) if own is None else own  # no key has this number
    if torch.compiler.is_compiling() and numbers.is_cuda:
        # Imported here: it imports the compiler, which coding a video does not need.
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        *places, partial, partial_order, whole, whole_order = tiles_of_ranges(numbers, first, last, own)
        tiles = BlockMask.from_kv_blocks(
            partial,
            partial_order,
            whole,
            whole_order,
            BLOCK_SIZE=TILE,
            mask_mod=_allowed(*places),
            seq_lengths=(len(first), len(numbers)),
        )

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            channels = queries.shape[-1]
            options: Any = _SIZES if channels <= 64 else None
            if channels < _LEAST_CHANNELS:
                queries, keys, values = (pad(x, (0, _LEAST_CHANNELS - channels)) for x in (queries, keys, values))
            scale = 1 / math.sqrt(channels)
            attended: Any = flex_attention(queries, keys, values, block_mask=tiles, scale=scale, kernel_options=options)
            return attended[..., :channels]  # type: ignore[no-any-return]

        return attend
    query, key = (torch.arange(len(x), device=x.device) for x in (first, numbers))
    mask = _allowed(numbers, first, last, own)(query, query, query[:, None], key)
    return lambda queries, keys, values: scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


_LEAST_CHANNELS = 16
"""Of a head, in FlexAttention."""
_SIZES = {
    "fwd_BLOCK_M": 64,
    "fwd_BLOCK_N": 64,
    "bwd_BLOCK_M1": 64,
    "bwd_BLOCK_N1": 64,
    "bwd_BLOCK_M2": 64,
    "bwd_BLOCK_N2": 64,
    "num_stages": 3,
    "num_warps": 4,
}
"""Sizes of FlexAttention's kernels for 64 channels. Its search found these fastest on an H200, by 20 to 25 % of the
time, but for the forward pass, where 128 keys take 4 % less time and more memory than smaller GPUs have."""


def _allowed(numbers: Tensor, first: Tensor, last: Tensor, own: Tensor) -> Callable[..., Tensor]:
    """Whether a query attends to a key, as FlexAttention calls it."""

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        number = numbers[key]
        return (number >= first[query]) & (number <= last[query]) | (number == own[query])

    return allowed


@torch.library.custom_op("genvid::tiles_of_ranges", mutates_args=())
def tiles_of_ranges(
    numbers: Tensor, first: Tensor, last: Tensor, own: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same four (S,) or (Q,) int64 as int32, and FlexAttention's tables.

    These are, for every tile of queries, the number of tiles of keys that it attends to in part, with these in front of
    the others, and the same of those that it attends to as a whole. An operation by itself, because FlexAttention reads
    tensors in memory alone, which the compiler would compute within its kernels.
    """
    low, high = _extremes(numbers)
    (least_first, most_first), (least_last, most_last), (least_own, most_own) = (
        (part[:, None] for part in _extremes(value)) for value in (first, last, own)
    )
    seen = (high >= least_first) & (low <= most_last) | (high >= least_own) & (low <= most_own)
    whole = (low >= most_first) & (high <= least_last) | (low == high) & (low == least_own) & (low == most_own)
    places = (value.int() for value in (numbers, first, last, own))
    return *places, *_in_order(seen & ~whole), *_in_order(whole)  # type: ignore[return-value]


@tiles_of_ranges.register_fake
def _(numbers: Tensor, first: Tensor, last: Tensor, own: Tensor) -> tuple[Tensor, ...]:
    queries, keys = (-(-len(value) // TILE) for value in (first, numbers))
    places = (torch.empty_like(value, dtype=torch.int32) for value in (numbers, first, last, own))
    tables = (first.new_empty(1, 1, *shape, dtype=torch.int32) for shape in [(queries,), (queries, keys)] * 2)
    return *places, *tables


def _extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) -> the least and the greatest of every tile."""
    count = -(-len(values) // TILE) * TILE
    tiles = values[torch.arange(count, device=values.device).clamp(max=len(values) - 1)].view(-1, TILE)
    return tiles.amin(1), tiles.amax(1)


def _in_order(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """(Q tiles, S tiles) -> the number of chosen ones in every row, and all columns, these first."""
    order = torch.argsort(chosen.to(torch.int8), dim=1, descending=True, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]
