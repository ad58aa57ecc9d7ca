"""Attention in tiles of 128 tokens, for compiled steps on a GPU: one kernel where the plain path runs one per block.

The tokens of a tile belong to one block and are of one kind, so the block-causal rules are rules of whole tiles
(FlexAttention, arXiv 2412.05496). Tiles without a kept token are skipped: a clip with short blocks costs the attention
of its kept tokens, rounded up to tiles. The plain path (genvid.tokenizer.adaptok.attention) is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

TILE = 128
"""Tokens."""
_LEAST_HEAD_DIM = 16


def fits(queries: Tensor, sizes: Sequence[int]) -> bool:
    """Whether the attention of `queries` runs in tiles: compiled, on a GPU, groups of `sizes` tokens in whole tiles."""
    return (
        torch.compiler.is_compiling()
        and queries.is_cuda
        and queries.shape[-1] >= _LEAST_HEAD_DIM
        and all(size % TILE == 0 for size in sizes)
    )


def block_rule(
    latents: Sequence[int], pixels: Sequence[tuple[int, int]], window: int | None, device: torch.device
) -> Tensor:
    """(T, T) bool: whether the queries of tile i attend to the keys of tile j.

    The sequence holds `latents[g]` tokens of every block g, then for each (block, number) of `pixels` its queries.
    Every query attends to the latents of its block and of those before it, with a `window` of so many, and a pixel
    query to those of its block.
    """
    groups = [*enumerate(latents), *pixels]
    block = torch.cat([torch.full((size // TILE,), number, device=device) for number, size in groups])
    is_latent = torch.arange(len(block), device=device) < sum(latents) // TILE
    behind = block[:, None] - block
    seen = behind >= 0 if window is None else (behind >= 0) & (behind <= window)
    return torch.where(is_latent, seen, ~is_latent[:, None] & (behind == 0))


def attention(queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, keep: Tensor | None) -> Tensor:
    """Queries of tile i attend to the kept keys of tile j where `allowed` (T, T) holds at [i, j].

    `keep` (B, 128 T) bool; None: all kept. The result of a query that attends to nothing is 0.
    """
    attended = flex_attention(queries, keys, values, block_mask=tile_mask(allowed, keep))
    assert isinstance(attended, Tensor)
    return attended


def tile_mask(allowed: Tensor, keep: Tensor | None) -> BlockMask:
    """The mask of `attention`; nothing of size (S, S) is built."""
    tiles = len(allowed)
    if keep is None:
        whole, partly = allowed[None], torch.zeros_like(allowed)[None]
    else:
        kept = keep.view(-1, tiles, TILE).sum(2)[:, None]
        whole, partly = allowed & (kept == TILE), allowed & (kept > 0) & (kept < TILE)

    def attends(clip: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = allowed[query // TILE, key // TILE]
        return seen if keep is None else seen & keep[clip, key]

    lengths = (tiles * TILE, tiles * TILE)
    return BlockMask.from_kv_blocks(
        *_listed(partly), *_listed(whole), BLOCK_SIZE=TILE, mask_mod=attends, seq_lengths=lengths
    )


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, T) bool -> (B, 1, T) int32 number of true tiles in each row, and (B, 1, T, T) int32 with those first."""
    order = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]
