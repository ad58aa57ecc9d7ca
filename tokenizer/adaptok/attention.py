"""Block-causal attention, exact, by prefixes.

A block attends to a run of the sequence (pixel queries also to their own block): all blocks up to it, or with a
`window` itself and so many blocks before it. So one call per block on sliced keys is exact: no (S, S) mask is built, no
masked product is computed, and without dropped tokens the fast kernels run unmasked. Dropped tokens are a (B, 1, 1, S)
mask over keys.

The block-causal functions return an `Attend` for one pass over the layers. No other token attends to a dropped one,
and a dropped one attends to itself alone, as in the published models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from genvid.tokenizer.layers import Attend


def full_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Every token attends to every token."""
    return scaled_dot_product_attention(queries, keys, values)


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Every token attends to itself and those before it."""
    return scaled_dot_product_attention(queries, keys, values, is_causal=True)


def block_causal(sizes: Sequence[int], keep: Tensor | None = None, window: int | None = None) -> Attend:
    """Tokens of block g attend to the kept tokens of blocks <= g, with a `window` of blocks g - window to g.

    The sequence holds `sizes[g]` tokens of each block, in order. `keep` (B, sum(sizes)) bool; None: all kept.
    """
    seen = _seen(sizes, window)
    masks = [None if keep is None else key_mask(keep[:, run]) for run in seen]

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        parts = _to_runs(queries, keys, values, seen, sizes, masks)
        return alone(joined(parts), values, keep) if parts else values

    return attend


def last_of_blocks(sizes: Sequence[int], count: int, window: int | None = None) -> Attend:
    """`block_causal` of nothing but the last `count` tokens of each block, one block after the other."""
    seen = _seen(sizes, window)
    counts, masks = [count] * len(seen), [None] * len(seen)
    return lambda queries, keys, values: joined(_to_runs(queries, keys, values, seen, counts, masks))


def latents_then_pixels(
    sizes: Sequence[int],
    pixels: int,
    blocks: Sequence[int],
    keep: Tensor | None = None,
    window: int | None = None,
) -> Attend:
    """The decoder's rule, for `sizes[g]` latents of every block g followed by `pixels` queries of each of `blocks`.

    Latents are block-causal among themselves and never attend to pixel queries. Pixel queries of block g attend to
    the kept latents that latents of block g attend to and to each other, not to queries of other blocks. `keep`
    (B, sum(sizes)) bool; None: all.
    """
    seen = _seen(sizes, window)
    total = sum(sizes)
    among_latents = block_causal(sizes, keep, window)
    masks: list[Tensor | None] = [None] * len(blocks)
    if keep is not None:
        own = keep.new_ones(len(keep), pixels)
        masks = [torch.cat([keep[:, seen[block]], own], 1)[:, None, None] for block in blocks]

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        parts = [among_latents(queries[:, :, :total], keys[:, :, :total], values[:, :, :total])]
        for index, (block, mask) in enumerate(zip(blocks, masks, strict=True)):
            own = slice(total + index * pixels, total + (index + 1) * pixels)
            key, value = (torch.cat([x[:, :, seen[block]], x[:, :, own]], 2) for x in (keys, values))
            parts.append(scaled_dot_product_attention(queries[:, :, own], key, value, attn_mask=mask))
        return joined(parts)

    return attend


def lengths_then_pixels(
    sizes: Sequence[int], lengths: Sequence[int], pixels: int, keep: Tensor, window: int | None = None
) -> Attend:
    """`latents_then_pixels` of one block at each of several lengths, which share the blocks before it.

    The sequence holds `sizes[g]` latents of each earlier block, kept where `keep` (B, sum(sizes)), then the first n
    latents of the block for each n of `lengths`, then `pixels` queries for each.
    """
    among_earlier = block_causal(sizes, keep, window)
    seen = _seen((*sizes, 0), window)[-1]
    total, ends = sum(sizes), list(accumulate(lengths, initial=sum(sizes)))
    mask = None
    if sizes:
        mask = torch.cat([keep[:, seen], keep.new_ones(len(keep), max(lengths) + pixels)], 1)[:, None, None]

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        latents: list[Tensor] = []
        others: list[Tensor] = []
        for index, (start, end) in enumerate(pairwise(ends)):
            first = ends[-1] + index * pixels
            own, pictures = slice(start, end), slice(first, first + pixels)
            key, value = (torch.cat([x[:, :, seen], x[:, :, own], x[:, :, pictures]], 2) for x in (keys, values))
            for parts, run, count in ((latents, own, key.shape[2] - pixels), (others, pictures, key.shape[2])):
                shown = None if mask is None else mask[..., :count]
                parts.append(
                    scaled_dot_product_attention(
                        queries[:, :, run], key[:, :, :count], value[:, :, :count], attn_mask=shown
                    )
                )
        earlier = among_earlier(queries[:, :, :total], keys[:, :, :total], values[:, :, :total])
        return joined([earlier, *latents, *others])

    return attend


def _to_runs(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    runs: Sequence[slice],
    counts: Sequence[int],
    masks: Sequence[Tensor | None],
) -> list[Tensor]:
    """Attention of the last tokens of every run, of which there are `counts`, to the run; none of empty parts."""
    return [
        scaled_dot_product_attention(
            queries[:, :, run.stop - count : run.stop], keys[:, :, run], values[:, :, run], attn_mask=mask
        )
        for run, count, mask in zip(runs, counts, masks, strict=True)
        if count
    ]


def _seen(sizes: Sequence[int], window: int | None) -> list[slice]:
    """The tokens that those of each block attend to."""
    ends = [0, *accumulate(sizes)]
    first = [0 if window is None else max(0, block - window) for block in range(len(sizes))]
    return [slice(ends[start], end) for start, end in zip(first, ends[1:], strict=True)]


def key_mask(keep: Tensor) -> Tensor:
    """(B, S) kept keys -> (B, 1, 1, S) attention mask; all True in a row without kept keys.

    The queries of such a row are all dropped and their result is replaced (`alone`); an empty softmax would be NaN.
    """
    return (keep | ~keep.any(-1, keepdim=True))[:, None, None]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Attended tokens (B, heads, S, head_dim) of each part, one after the other. In memory the heads of a token are
    beside each other, as attention writes them and as the product after it reads them."""
    return torch.cat([part.transpose(1, 2) for part in parts], 1).transpose(1, 2)


def alone(attended: Tensor, values: Tensor, keep: Tensor | None) -> Tensor:
    """Replace the attention of tokens dropped in `keep` (B, S) by their own values."""
    return attended if keep is None else torch.where(keep[:, None, :, None], attended, values)
