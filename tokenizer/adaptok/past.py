"""The last blocks of a stream, as the keys, values and latents that the next one reads; equal to a pass over all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from genvid.replay import Graphs
from genvid.tokenizer.adaptok.attention import alone, joined, key_mask
from genvid.tokenizer.adaptok.positions import Placement
from genvid.tokenizer.layers import Attend, dtype_of_products

Result = TypeVar("Result")
PastBlock = tuple[Tensor, Tensor, bool]
"""Keys and values (depth, 2, B, heads, S, head_dim) of a block in each layer, which of its tokens are kept (B, S), and
whether any is dropped."""
PastLatents = tuple[Tensor, Tensor]
"""Latents of a block (B, L, W), and which are kept (B, L)."""


class PastBlocks:
    """Keys, values and latents of the last `window` blocks; None: of all blocks so far."""

    def __init__(
        self,
        window: int | None,
        *,
        count: int | Tensor = 0,
        blocks: Iterable[PastBlock] = (),
        latents: Iterable[PastLatents] = (),
        graphs: Graphs | None = None,
    ) -> None:
        self.count = count
        """Blocks so far."""
        self.added: tuple[PastBlock | None, PastLatents | None] = None, None
        """The block and the latents that were remembered last."""
        self._window, self._graphs = window, graphs
        self._blocks, self._latents = deque(blocks, maxlen=window), deque(latents, maxlen=window)

    @property
    def empty(self) -> bool:
        """Whether the next block is the first one."""
        return not self._blocks

    def step(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(past, *arguments)` -> its value. `past` is this one, in which it remembers one block at most.

        With `graphs`, functions, arguments and values are as in `genvid.replay`, and `past.count` is a tensor.
        """
        given = self._window, self._count(arguments), tuple(self._blocks), tuple(self._latents), function, arguments
        value, block, latents = _step(*given) if self._graphs is None else self._graphs(_step, *given)
        if block is not None:
            self._append(block)
        if latents is not None:
            self.append_latents(*latents)
        result: Result = value
        return result

    def append_latents(self, embeddings: Tensor, keep: Tensor) -> None:
        """Remember latents (B, L, W) of the next block, kept where (B, L); dropped ones are carried over."""
        self._latents.append((embeddings, keep))
        self.added = self.added[0], (embeddings, keep)

    def latents_then(self, embeddings: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The next block (B, L, W), kept where (B, L) -> (B, G, L, W) and (B, G, L): the blocks before it, and it."""
        latents, kept = zip(*self._latents, (embeddings, keep), strict=True)
        return torch.stack(latents, 1), torch.stack(kept, 1)

    def run(
        self,
        layers: nn.ModuleList,
        x: Tensor,
        keep: Tensor,
        place: Placement,
        *,
        ragged: bool = True,
        remember: bool = True,
        ahead: bool = False,
        room: int = 0,
    ) -> Tensor:
        """The next block (B, S, W) through `layers` -> (B, S, W).

        Its first tokens, kept where `keep` (B, n), attend to each other and to the kept ones of earlier blocks; with
        `remember`, later blocks attend to them. The others are pixel queries (`attention.latents_then_pixels`), or with
        `ahead` tokens of the block after it, whose window begins a block later. Attention needs no mask where no block
        is `ragged`: all of `keep` is True. `room`: tokens that the block has among the past ones, the others dropped.
        """
        outside = self._blocks[0][1].shape[1] if ahead and len(self._blocks) == self._window else 0
        masks: tuple[Tensor, Tensor] | None = None
        if ragged or any(block[2] for block in self._blocks):
            seen = torch.cat([*(block[1] for block in self._blocks), keep], 1)
            masks = _masks(seen, x.shape[1] - keep.shape[1], outside, dtype_of_products(layers, x.device))
        record: list[tuple[Tensor, Tensor]] = []
        for index, layer in enumerate(layers):
            own: list[tuple[Tensor, Tensor]] = []  # new for each layer: compiled code depends on its length
            x = layer(x, place(_after([block[0][index] for block in self._blocks], masks, keep, outside, own)))
            record += own
        if remember:
            more = max(0, room - keep.shape[1])
            known = torch.stack([part for pair in record for part in pair]).view(len(record), 2, *record[0][0].shape)
            self._append((pad(known, (0, 0, 0, more)), pad(keep, (0, more)), ragged or more > 0))
        return x

    def _append(self, block: PastBlock) -> None:
        self.count = self.count + 1
        self._blocks.append(block)
        self.added = block, self.added[1]

    def _count(self, arguments: tuple[Any, ...]) -> int | Tensor:
        """`count`, which in a graph is an argument."""
        device = arguments[0].device
        if self._graphs is None or device.type == "cpu":
            return self.count
        return torch.full((), int(self.count), device=device)  # without a wait for the device


def _step(
    window: int | None,
    count: int | Tensor,
    blocks: tuple[PastBlock, ...],
    latents: tuple[PastLatents, ...],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> tuple[Any, PastBlock | None, PastLatents | None]:
    past = PastBlocks(window, count=count, blocks=blocks, latents=latents)
    value = function(past, *arguments)
    return value, *past.added


def _masks(seen: Tensor, others: int, outside: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tokens of the past and the next block, kept where `seen` (B, S) -> the key masks of its tokens, and of its
    `others`, which do not see the first tokens `outside` their window.

    They are the same in every layer, and of the form in which attention adds them: of a bool, every layer would make
    one for itself.
    """
    masks = key_mask(seen), key_mask(torch.cat([seen[:, outside:], seen.new_ones(len(seen), others)], 1))
    of_tokens, of_others = (torch.where(mask, 0.0, -torch.inf).to(dtype) for mask in masks)
    return of_tokens, of_others


def _after(
    past: Sequence[Tensor],
    masks: tuple[Tensor, Tensor] | None,
    keep: Tensor,
    outside: int,
    record: list[tuple[Tensor, Tensor]],
) -> Attend:
    """Attention of the next block to itself and to `past` keys and values (2, B, heads, S, head_dim) of each block; its
    own are added to `record`."""
    count = keep.shape[1]
    of_tokens, of_others = (None, None) if masks is None else masks

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        record.append((keys[:, :, :count], values[:, :, :count]))
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
        return joined([tokens, other])

    return attend
