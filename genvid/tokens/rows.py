"""Rows: the ragged tokens of a video's blocks as one sequence of ids, and back, exactly.

    row = prefix | block 0 | block 1 | ... | PAD

    framing "length":  a block is LEN(n) followed by n codes: the length is known before the codes
    framing "end":     a block is n codes followed by END: the published autoregressive checkpoints

Shapes: B videos, G blocks, L block capacity, P prefix, S row length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genvid.tokens import BlockTokens
from genvid.tokens.blocks import first_tokens
from genvid.tokens.vocabulary import RowVocabulary


@dataclass(frozen=True)
class TokenSequence:
    """B rows, padded to the longest."""

    tokens: Tensor
    """(B, S) int64."""
    is_target: Tensor
    """(B, S) bool: positions that a model learns to predict, which are all but prefix and PAD."""


@dataclass(frozen=True)
class BlockLayout(RowVocabulary):
    """Blocks <-> rows."""

    def frame_prediction_prefix(self, context: BlockTokens) -> Tensor:
        """The first blocks of B videos -> (B, P): start ids, these blocks as in a row, PAD.

        Blocks are causal, so a context is encoded alone and may be cut to adaptive lengths. The predicted blocks follow
        it in the row, and `unpack` returns both.
        """
        cells, present = self._frame(context)
        start = self.start_ids(torch.full_like(cells[:, 0], self.frame_prediction_id))
        return self._compact(torch.cat([start, cells], 1), torch.cat([torch.ones_like(start).bool(), present], 1))[0]

    def pack(self, tokens: BlockTokens, prefix: Tensor) -> TokenSequence:
        """Blocks and (B, P) prefix, which may end in PAD -> rows, as long as the longest."""
        cells, present = self._frame(tokens)
        if prefix.ndim != 2 or len(prefix) != len(cells):
            raise ValueError(f"{len(cells)} videos need a ({len(cells)}, P) prefix, got {tuple(prefix.shape)}")
        given = prefix != self.pad_id
        rows, source = self._compact(torch.cat([prefix, cells], 1), torch.cat([given, present], 1))
        return TokenSequence(rows, (source >= prefix.shape[1]) & (rows != self.pad_id))

    def unpack(self, rows: Tensor, prefix_length: int | None = None) -> BlockTokens:
        """(B, S) rows -> their blocks, behind the start ids or a longer prefix: the inverse of `pack`.

        ValueError if a row is not made of whole blocks.
        """
        body = rows[:, self.num_starts if prefix_length is None else prefix_length :]
        block, index = self.coordinates(body)
        is_code, framing = body < self.codebook_size, self.is_framing(body)
        pad = body == self.pad_id
        count = framing.sum(1)
        blocks = int(count.max()) if count.numel() else 0
        self._demand((is_code | framing | pad).all(1) & ((block >= 0) | pad).all(1), "has ids outside of any block")
        self._demand((pad[:, 1:] >= pad[:, :-1]).all(1), "goes on after PAD")
        self._demand((count == blocks) & (count > 0), f"does not have the {max(blocks, 1)} blocks of the others")
        self._demand((block < blocks).all(1), "ends before its last block does")
        self._demand((index < self.block_capacity + framing).all(1), f"has a block above {self.block_capacity} codes")
        cell = (block * self.block_capacity + index).where(is_code, blocks * self.block_capacity)
        codes = body.new_zeros(len(body), blocks * self.block_capacity + 1).scatter_(1, cell, body)[:, :-1]
        lengths = body.new_zeros(len(body), blocks + 1).scatter_add_(1, block.where(is_code, blocks), is_code.long())
        lengths = lengths[:, :-1]
        if self.framing == "length":
            announced = torch.tensor(self.sizes, device=body.device)[body[framing] - self.codebook_size]
            self._demand((announced.view_as(lengths) == lengths).all(1), "has a block of another length than its LEN")
        keep = first_tokens(lengths, self.block_capacity)
        return BlockTokens(keep=keep, codes=codes.view_as(keep))

    def coordinates(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> block of each position, and its place in that block, both (B, S).

        Codes are at places 0 to n - 1, LEN is at -1 and END at n. Prefix and PAD have block and place -1; blocks are
        counted from the last start id.
        """
        position = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
        starts = (rows >= self.num_outputs) & (rows != self.pad_id)
        origin = position.where(starts, -1).amax(1, keepdim=True) if rows.shape[1] else position
        inside = (position > origin) & (rows != self.pad_id)
        framing = self.is_framing(rows) & inside
        boundary = position.where(framing, origin).cummax(1).values
        block = framing.cumsum(1)
        if self.framing == "end":  # an END still belongs to the block that it closes
            boundary = torch.cat([origin, boundary[:, :-1]], 1)
            block = block - framing.long()
        else:
            block = block - 1
        return block.where(inside, -1), (position - boundary - 1).where(inside & (block >= 0), -1)

    def _frame(self, tokens: BlockTokens) -> tuple[Tensor, Tensor]:
        """Blocks with their framing on a full grid: ids and presence, both (B, G * (L + 1))."""
        keep, codes, lengths = tokens.keep, tokens.codes, tokens.lengths
        if codes is None:
            raise ValueError("rows are made of codes; these tokens are continuous")
        if keep.shape[1] > self.num_blocks or keep.shape[2] != self.block_capacity:
            raise ValueError(
                f"tokens of {keep.shape[1]} blocks x {keep.shape[2]} do not fit a layout of "
                f"{self.num_blocks} x {self.block_capacity}"
            )
        if (keep[..., 1:] > keep[..., :-1]).any():
            raise ValueError("a row holds the first tokens of each block; this keep mask has gaps")
        allowed = self.length_allowed(keep.device)[lengths]
        if not allowed.all():
            raise ValueError(f"a block of {int(lengths[~allowed][0])} tokens is none of the sizes {self.sizes}")
        if ((codes < 0) | (codes >= self.codebook_size))[keep].any():
            raise ValueError(f"a kept code is outside of the codebook of {self.codebook_size}")
        frame = self.length_ids(lengths) if self.framing == "length" else torch.full_like(lengths, self.codebook_size)
        present = torch.ones_like(keep[..., :1])
        ends = self.framing == "end"
        cells = torch.cat([codes.long(), frame[..., None]] if ends else [frame[..., None], codes.long()], 2)
        return cells.flatten(1), torch.cat([keep, present] if ends else [present, keep], 2).flatten(1)

    def _compact(self, cells: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Move the cells that are present to the front: (B, S) ids, and the (B, S) column each came from."""
        width = int(present.sum(1).max()) if len(present) else 0
        target = (present.cumsum(1) - 1).where(present, width)
        columns = torch.arange(cells.shape[1], device=cells.device).expand_as(cells)
        rows = cells.new_full((len(cells), width + 1), self.pad_id).scatter_(1, target, cells)[:, :width]
        return rows, columns.new_zeros(len(cells), width + 1).scatter_(1, target, columns)[:, :width]

    @staticmethod
    def _demand(holds: Tensor, otherwise: str) -> None:
        if not holds.all():
            raise ValueError(f"row {int((~holds).nonzero()[0])} {otherwise}")
