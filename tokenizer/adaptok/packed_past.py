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
    block, and all of this. Made without reading a value from the device."""

    def __init__(self, keep: Tensor, kept: int) -> None:
        """`keep` (B, 1 or 2, L): all tokens of the last block, and `kept` ones of the block before it."""
        clips, _, self.capacity = keep.shape
        self.chosen = torch.nonzero_static(keep.flatten(), size=kept + clips * self.capacity)[:, 0]
        """(N,) places in `keep`."""
        self.lengths = keep[:, :-1].sum((1, 2), dtype=torch.int32)
        """(B,) kept tokens of the block before the whole one, in each clip."""
        self.ends = (self.lengths + self.capacity).cumsum(0, dtype=torch.int32)
        """(B,) ends of clips in the pass."""
        clip = torch.repeat_interleave(self.lengths, output_size=kept)
        self.kept = torch.arange(kept, device=keep.device) + clip * self.capacity
        """(n,) places in the pass of these tokens."""


class _Block(NamedTuple):
    """Kept tokens of a past block, one clip after another."""

    layers: list[KeysValues]
    """In each layer."""
    lengths: Tensor
    """(B,) int32, of each clip."""


class PackedPast:
    """Keys and values of the kept tokens of the last `window` blocks; None: of all blocks so far."""

    def __init__(self, window: int | None) -> None:
        self._window = window
        self._blocks = deque[_Block](maxlen=window)

    def run(
        self,
        layers: nn.ModuleList,
        x: Tensor,
        packed: PackedBlocks,
        place: Placement,
        read: Tensor,
        *,
        remember: bool,
    ) -> Tensor:
        """Tokens (1, N, W) of `packed` through `layers` -> (B, Q, W): those of the whole block at the positions `read`
        (Q,), which the last layer computes alone.

        Kept tokens of the block before it attend to each other and to the past ones; with `remember`, they are then
        past ones. Tokens of the whole block attend to all of these and to each other; their window begins a block
        later.
        """
        everyone, of_read = self._spans(packed, len(read))
        places = ((packed.ends - packed.capacity)[:, None] + read).flatten()
        order, known = self._order(), list[KeysValues]()
        for index, layer in enumerate(layers):
            own: list[KeysValues] = []  # new for each layer: compiled code depends on its length
            spans, chosen = (everyone, slice(None)) if index + 1 < len(layers) else (of_read, places)
            x = layer(x, place(_attention(spans, self._joined(index, order), own, chosen)), chosen)
            if remember:
                known += [(keys[packed.kept], values[packed.kept]) for keys, values in own]
        if remember:
            self._blocks.append(_Block(known, packed.lengths))
        return x.view(len(packed.ends), len(read), -1)

    def _spans(self, packed: PackedBlocks, read: int) -> tuple[Spans, Spans]:
        """Of all tokens of a pass, and of the `read` ones of each clip."""
        lengths = [block.lengths for block in self._blocks]
        known = torch.stack([torch.zeros_like(packed.lengths), *lengths]).sum(0, dtype=torch.int32)
        last = known.cumsum(0, dtype=torch.int32)
        first = last - known
        later = first + lengths[0] if len(lengths) == self._window else first
        end, middle = packed.ends, packed.ends - packed.capacity
        start = middle - packed.lengths
        of_kept, of_whole = (start, middle, first, last, start, middle), (middle, end, later, last, start, end)
        chosen = torch.arange(0, read * len(end), read, dtype=torch.int32, device=end.device)
        of_read = chosen, chosen + read, *of_whole[2:]
        everyone, few = (torch.stack(spans, 1).view(-1, 3, 2) for spans in ((*of_kept, *of_whole), of_read))
        return Spans(everyone, packed.capacity), Spans(few, read)

    def _order(self) -> Tensor | None:
        """In which the past tokens of a clip are beside each other; None: in their own, of one block at most."""
        if len(self._blocks) < 2:
            return None
        clips = [torch.repeat_interleave(b.lengths, output_size=len(b.layers[0][0])) for b in self._blocks]
        return torch.cat(clips).argsort(stable=True)

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
