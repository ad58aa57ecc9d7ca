"""Rows: the ragged tokens of a video's blocks as one sequence of ids, and back, exactly.

    row = prefix | block 0 | block 1 | ... | PAD

    framing "length":  a block is LEN(n) followed by n codes: the length is known before the codes
    framing "end":     a block is n codes followed by END: the published autoregressive checkpoints

Ids count up: codes | LEN(size) for every size, or END | classes | null class | frame prediction | budgets | PAD.
Those that a model predicts (codes and framing) therefore come first; the others only ever start or pad a row. A row
starts with one id that says what it shows and, in a layout with budgets, one that says how many tokens it may have.

Shapes: B videos, G blocks, L block capacity, P prefix, S row length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genvid.tokens import BlockTokens


@dataclass(frozen=True)
class TokenSequence:
    """B rows, padded to the longest."""

    tokens: Tensor
    """(B, S) int64."""
    is_target: Tensor
    """(B, S) bool: what a model learns to predict, which is all but prefix and PAD."""


@dataclass(frozen=True)
class BlockLayout:
    """How blocks stand in a row."""

    codebook_size: int
    num_classes: int
    """0 for a model without classes, whose rows start with the null class."""
    num_blocks: int
    """Blocks of a whole row."""
    block_capacity: int
    sizes: tuple[int, ...] = ()
    """Lengths that a block may have, ascending. Empty, which only "end" allows: any up to the capacity."""
    framing: str = "length"
    budget_bins: int = 0
    """Steps in which a row's start tells the tokens (codes) of its blocks; 0: it does not tell them."""

    def __post_init__(self) -> None:
        if self.budget_bins < 0:
            raise ValueError(f"budget_bins is at least 0, got {self.budget_bins}")
        if self.framing not in ("length", "end"):
            raise ValueError(f"framing is 'length' or 'end', got {self.framing!r}")
        if min(self.codebook_size, self.num_blocks, self.block_capacity) < 1 or self.num_classes < 0:
            raise ValueError(f"a layout needs codes, blocks and a capacity of at least 1, got {self}")
        if not self.sizes and self.framing == "length":
            raise ValueError("framing 'length' needs the sizes a block may have, e.g. sizes=(4, 8, 16)")
        if list(self.sizes) != sorted(set(self.sizes)) or (self.sizes and self.sizes[0] < 0):
            raise ValueError(f"sizes must be distinct, ascending and not negative, got {self.sizes}")
        if self.largest > self.block_capacity:
            raise ValueError(f"size {self.largest} exceeds the block capacity {self.block_capacity}")

    @property
    def largest(self) -> int:
        """The greatest length of a block."""
        return self.sizes[-1] if self.sizes else self.block_capacity

    @property
    def num_framing(self) -> int:
        """Ids that frame blocks: one LEN per size, or END. They follow the codes."""
        return len(self.sizes) if self.framing == "length" else 1

    @property
    def num_outputs(self) -> int:
        """Ids that a model may predict: codes and framing, which are ids 0 to num_outputs - 1."""
        return self.codebook_size + self.num_framing

    @property
    def null_id(self) -> int:
        """Start of a row whose class is not told: training drops classes to it, guidance samples with it."""
        return self.num_outputs + self.num_classes

    @property
    def frame_prediction_id(self) -> int:
        """Start of a row whose first blocks are given."""
        return self.null_id + 1

    @property
    def any_budget_id(self) -> int:
        """Second id of a row whose budget is not told; it follows those of the bins. Only in layouts with budgets."""
        return self.frame_prediction_id + 1 + self.budget_bins

    @property
    def pad_id(self) -> int:
        return self.any_budget_id + 1 if self.budget_bins else self.frame_prediction_id + 1

    @property
    def vocab_size(self) -> int:
        return self.pad_id + 1

    @property
    def num_starts(self) -> int:
        """Ids at the start of a row, before given and predicted blocks."""
        return 2 if self.budget_bins else 1

    @property
    def longest_row(self) -> int:
        """Ids of a row with every block at its greatest length."""
        return self.num_starts + self.num_blocks * (self.largest + 1)

    def length_allowed(self, device: torch.device | str | None = None) -> Tensor:
        """(L + 1,) bool: may a block have this length?"""
        allowed = torch.full((self.block_capacity + 1,), not self.sizes, device=device)
        allowed[list(self.sizes)] = True
        return allowed

    def length_ids(self, lengths: Tensor) -> Tensor:
        """Allowed lengths -> LEN ids, of the same shape ("length" framing)."""
        return self.codebook_size + torch.searchsorted(torch.tensor(self.sizes, device=lengths.device), lengths)

    def class_prefix(self, labels: Tensor) -> Tensor:
        """(B,) class numbers -> (B, num_starts), of any budget."""
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < self.num_classes):
            raise ValueError(
                f"class {int(labels.min())} to {int(labels.max())} asked for, but there are {self.num_classes} "
                f"classes, numbered from 0"
            )
        return self._starts(self.num_outputs + labels.long())

    def null_prefix(self, count: int, device: torch.device | str | None = None) -> Tensor:
        """(count, num_starts): rows of any class, of any budget."""
        return self._starts(torch.full((count,), self.null_id, device=device))

    def frame_prediction_prefix(self, context: BlockTokens) -> Tensor:
        """The first blocks of B videos -> (B, P): start ids, then those blocks as they stand in a row, then PAD.

        Our way: blocks are causal, so a context is encoded alone, and may be cut to adaptive lengths. A row that
        starts so reads on into the predicted blocks: `unpack(rows)` returns both.
        """
        cells, present = self._frame(context)
        start = self._starts(torch.full_like(cells[:, 0], self.frame_prediction_id))
        return self._compact(torch.cat([start, cells], 1), torch.cat([torch.ones_like(start).bool(), present], 1))[0]

    def tell_budget(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """(B, P) prefixes, (B,) tokens (codes) of the blocks that follow -> the same prefixes, which say so."""
        if not self.budget_bins:
            raise ValueError("rows of this layout tell no budget: train with budget_bins above 0")
        bins = tokens * self.budget_bins // (self.num_blocks * self.largest + 1)
        told = prefix.clone()
        told[:, 1] = self.frame_prediction_id + 1 + bins.clamp(0, self.budget_bins - 1)
        return told

    def prefix_lengths(self, prefix: Tensor) -> Tensor:
        """(B, P) -> (B,) ids before PAD."""
        return (prefix != self.pad_id).sum(1)

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
        is_code, framing = body < self.codebook_size, self._is_framing(body)
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
            self._demand((announced.view_as(lengths) == lengths).all(1), "has a block of another length than it says")
        keep = torch.arange(self.block_capacity, device=body.device) < lengths[..., None]
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
        framing = self._is_framing(rows) & inside
        boundary = position.where(framing, origin).cummax(1).values
        block = framing.cumsum(1)
        if self.framing == "end":  # an END still belongs to the block that it closes
            boundary = torch.cat([origin, boundary[:, :-1]], 1)
            block = block - framing.long()
        else:
            block = block - 1
        return block.where(inside, -1), (position - boundary - 1).where(inside & (block >= 0), -1)

    def _starts(self, shown: Tensor) -> Tensor:
        """(B,) ids of what rows show -> (B, num_starts)."""
        starts = shown[:, None]
        return torch.cat([starts, torch.full_like(starts, self.any_budget_id)], 1) if self.budget_bins else starts

    def _is_framing(self, rows: Tensor) -> Tensor:
        return (rows >= self.codebook_size) & (rows < self.num_outputs)

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
