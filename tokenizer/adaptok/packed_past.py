"""The last blocks of many clips as the keys and values of their kept tokens alone, without padding: `past.py` packed.

A pass over the layers reads of each clip the kept tokens of a block, and behind them all tokens of the next block; the
tokens of a clip lie beside each other (`PackedBlocks`). So the keys of a token are two spans (`packed.py`): of the past
ones, which are packed alike, and of its own clip in the pass. No key of the pass is copied but those of kept tokens.

Symbols: B clips, L latents of a block, N tokens of a pass, Q tokens of a block that are read, H heads, D channels.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genvid.tokenizer.adaptok.packed import Spans
from genvid.tokenizer.adaptok.positions import Placement
from genvid.tokenizer.layers import Attend

KeysValues = tuple[Tensor, Tensor]
"""(n, H, D) each."""


class PackedBlocks:
    """Tokens of a pass, of each clip one after another: of a block the kept ones, if there is one before the whole
    block, and all of this. Tables are made on the CPU, where lengths are known: on a GPU they are many small kernels,
    for which the layers would wait."""

    def __init__(self, keep: Tensor | None, clips: int, capacity: int) -> None:
        """`keep` (B, L) on the CPU, of the block before the whole one; None: there is none."""
        self.capacity, self.keep = capacity, keep
        whole = torch.ones(clips, 1, capacity, dtype=torch.bool)
        every = whole if keep is None else torch.cat([keep[:, None], whole], 1)
        self.chosen = every.flatten().nonzero()[:, 0]
        """(N,) places in these two blocks of all clips, (B, 1 or 2, L)."""
        self.lengths = every[:, :-1].sum((1, 2))
        """(B,) kept tokens of the block before the whole one, in each clip."""
        self.ends = (self.lengths + capacity).cumsum(0)
        """(B,) ends of clips in the pass."""
        clip = torch.repeat_interleave(self.lengths)
        self.kept = torch.arange(len(clip)) + clip * capacity
        """(n,) places in the pass of these tokens."""


class _Block(NamedTuple):
    """Kept tokens of a past block, one clip after another."""

    layers: list[KeysValues]
    """In each layer."""
    lengths: Tensor
    """(B,) of each clip, on the CPU."""


class PackedPast:
    """Keys and values of the kept tokens of the last `window` blocks; None: of all blocks so far."""

    def __init__(self, window: int | None) -> None:
        self._window = window
        self._blocks = deque[_Block](maxlen=window)

    def run(self, layers: nn.ModuleList, x: Tensor, packed: PackedBlocks, place: Placement, read: Tensor) -> Tensor:
        """Tokens (1, N, W) of `packed` through `layers` -> (B, Q, W): those of the whole block at the positions `read`
        (Q,) on the CPU, which the last layer computes alone.

        Kept tokens of the block before it attend to each other and to the past ones, and are then past ones. Tokens of
        the whole block attend to all of these and to each other; their window begins a block later.
        """
        everyone, of_read = self._spans(packed, len(read), x.device)
        places = ((packed.ends - packed.capacity)[:, None] + read).flatten()
        places, kept = (part.to(x.device, non_blocking=True) for part in (places, packed.kept))
        order, known = self._order(x.device), list[KeysValues]()
        for index, layer in enumerate(layers):
            own: list[KeysValues] = []  # new for each layer: compiled code depends on its length
            spans, chosen = (everyone, slice(None)) if index + 1 < len(layers) else (of_read, places)
            x = layer(x, place(_attention(spans, self._joined(index, order), own, chosen)), chosen)
            if packed.keep is not None:
                known += [(keys[kept], values[kept]) for keys, values in own]
        if packed.keep is not None:
            self._blocks.append(_Block(known, packed.lengths))
        return x.view(len(packed.ends), len(read), -1)

    def _spans(self, packed: PackedBlocks, read: int, device: torch.device) -> tuple[Spans, Spans]:
        """Of all tokens of a pass, and of the `read` ones of each clip."""
        lengths = [block.lengths for block in self._blocks]
        known = torch.stack([torch.zeros_like(packed.lengths), *lengths]).sum(0)
        last = known.cumsum(0)
        first = last - known
        # With kept tokens in the pass, their block is the last of the window, and the first past one has left it.
        moves_on = packed.keep is not None and len(lengths) == self._window
        later = first + lengths[0] if moves_on else first
        end, middle = packed.ends, packed.ends - packed.capacity
        start = middle - packed.lengths
        of_kept, of_whole = (start, middle, first, last, start, middle), (middle, end, later, last, start, end)
        chosen = torch.arange(0, read * len(end), read)
        places = torch.stack([*of_kept, *of_whole, chosen, chosen + read, *of_whole[2:]], 1).int()
        places = places.to(device, non_blocking=True).view(-1, 3, 3, 2)
        return Spans(places[:, :2].reshape(-1, 3, 2), packed.capacity), Spans(places[:, 2].contiguous(), read)

    def _order(self, device: torch.device) -> Tensor | None:
        """Order of past tokens in which those of a clip lie beside each other; None: they do, in one block at most."""
        if len(self._blocks) < 2:
            return None
        lengths = torch.stack([block.lengths for block in self._blocks])
        starts = (lengths.flatten().cumsum(0).view_as(lengths) - lengths).T.flatten()
        lengths = lengths.T.flatten()
        moved = (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
        return (torch.arange(len(moved)) + moved).to(device, non_blocking=True)

    def _joined(self, layer: int, order: Tensor | None) -> KeysValues | None:
        """Keys and values of all past tokens in `order`; None: there is no past block."""
        parts = [block.layers[layer] for block in self._blocks]
        if order is None:
            return parts[0] if parts else None
        keys, values = (torch.cat(part)[order] for part in zip(*parts, strict=True))
        return keys, values


def _attention(spans: Spans, past: KeysValues | None, record: list[KeysValues], chosen: slice | Tensor) -> Attend:
    """Attention of the `chosen` tokens by `spans`; keys and values (N, H, D) of all are added to `record`."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        record.append((keys[0].transpose(0, 1), values[0].transpose(0, 1)))
        return spans.attend(queries[:, :, chosen], keys, values, past)

    return attend
