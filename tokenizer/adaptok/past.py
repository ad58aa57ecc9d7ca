"""The last blocks of a stream, as the keys, values and latents that the next one reads; equal to a pass over all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from genvid.tokenizer.adaptok.attention import alone, key_mask
from genvid.tokenizer.adaptok.positions import Placement
from genvid.tokenizer.layers import Attend

KeysAndValues = tuple[Tensor, Tensor]
"""(B, heads, S, head_dim) each."""


class PastLatents:
    """Latents of the last `window` blocks, of which dropped ones are carried over; None: of all blocks so far."""

    def __init__(self, window: int | None) -> None:
        self._blocks: deque[tuple[Tensor, Tensor]] = deque(maxlen=window)

    def then(self, embeddings: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The next block (B, L, W), kept where (B, L) -> (B, G, L, W) and (B, G, L): the blocks before it, and it."""
        latents, kept = zip(*self._blocks, (embeddings, keep), strict=True)
        return torch.stack(latents, 1), torch.stack(kept, 1)

    def append(self, embeddings: Tensor, keep: Tensor) -> None:
        """Go on to the block after this one."""
        self._blocks.append((embeddings, keep))


class PastBlocks:
    """Keys and values of the last `window` blocks in each of `depth` layers; None: of all blocks so far."""

    def __init__(self, depth: int, window: int | None) -> None:
        self.count = 0
        """Blocks so far."""
        self.latents = PastLatents(window)
        """Of the same blocks, for a decoder or scorer."""
        self._layers: list[deque[KeysAndValues]] = [deque(maxlen=window) for _ in range(depth)]
        self._keep: deque[Tensor] = deque(maxlen=window)
        self._ragged: deque[bool] = deque(maxlen=window)

    def run(
        self,
        layers: Iterable[nn.Module],
        x: Tensor,
        keep: Tensor,
        place: Placement,
        *,
        ragged: bool = True,
        remember: bool = True,
        ahead: bool = False,
    ) -> Tensor:
        """The next block (B, S, W) through `layers` -> (B, S, W).

        Its first tokens, kept where `keep` (B, n), attend to each other and to the kept ones of earlier blocks; with
        `remember`, later blocks attend to them. The others are pixel queries (`attention.latents_then_pixels`), or with
        `ahead` tokens of the block after it, whose window begins a block later. Attention needs no mask where no block
        is `ragged`: all of `keep` is True.
        """
        outside = self._keep[0].shape[1] if ahead and len(self._keep) == self._keep.maxlen else 0
        masks: tuple[Tensor, Tensor] | None = None
        if ragged or any(self._ragged):
            masks = _masks(torch.cat([*self._keep, keep], 1), x.shape[1] - keep.shape[1], outside)
        records: list[list[KeysAndValues]] = [[] for _ in self._layers]
        for layer, past, record in zip(layers, self._layers, records, strict=True):
            x = layer(x, place(_after(tuple(past), masks, keep, outside, record)))
        if remember:
            self.count += 1
            self._keep.append(keep)
            self._ragged.append(ragged)
            for past, [(keys, values)] in zip(self._layers, records, strict=True):
                # Views would keep queries and pixels in memory.
                past.append((keys[:, :, : keep.shape[1]].clone(), values[:, :, : keep.shape[1]].clone()))
        return x


def _masks(seen: Tensor, others: int, outside: int) -> tuple[Tensor, Tensor]:
    """Tokens of the past and the next block, kept where `seen` (B, S) -> the key masks of its tokens, and of its
    `others`, which do not see the first tokens `outside` their window. They are the same in every layer."""
    return key_mask(seen), key_mask(torch.cat([seen[:, outside:], seen.new_ones(len(seen), others)], 1))


def _after(
    past: Sequence[KeysAndValues],
    masks: tuple[Tensor, Tensor] | None,
    keep: Tensor,
    outside: int,
    record: list[KeysAndValues],
) -> Attend:
    """Attention of the next block to `past` and itself; its keys and values are added to `record`."""
    count = keep.shape[1]
    of_tokens, of_others = (None, None) if masks is None else masks

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        record.append((keys, values))
        own, others = values[:, :, :count], queries.shape[2] - count
        keys, values = (torch.cat(parts, 2) for parts in zip(*past, (keys, values), strict=True))
        end = keys.shape[2] - others
        tokens = scaled_dot_product_attention(
            queries[:, :, :count], keys[:, :, :end], values[:, :, :end], attn_mask=of_tokens
        )
        tokens = alone(tokens, own, None if masks is None else keep)
        if not others:
            return tokens
        other = scaled_dot_product_attention(
            queries[:, :, count:], keys[:, :, outside:], values[:, :, outside:], attn_mask=of_others
        )
        return torch.cat([tokens, other], 2)

    return attend
