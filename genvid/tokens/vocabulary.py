"""The ids that rows are made of, and the ids at their start.

Ids count up: codes | LEN(size) for every size, or END | classes | null class | frame prediction | budgets | PAD.
Codes and framing, which a model predicts, come first; the others only start or pad a row. A row starts with one id for
its class or for frame prediction and, in a layout with budgets, with one for its budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowVocabulary:
    """Sizes of rows, and the ids that follow from them."""

    codebook_size: int
    num_classes: int
    """0 for a model without classes, whose rows start with the null class."""
    num_blocks: int
    """Blocks of a complete row."""
    block_capacity: int
    sizes: tuple[int, ...] = ()
    """Lengths that a block may have, ascending. Empty, which only "end" allows: any up to the capacity."""
    framing: str = "length"
    budget_bins: int = 0
    """Number of budget bins. Above 0, the prefix carries a budget token: the code count of the row, quantised to this
    many bins."""

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
        """Start of a row without a class: training replaces classes by it, guidance samples with it."""
        return self.num_outputs + self.num_classes

    @property
    def frame_prediction_id(self) -> int:
        """Start of a row whose first blocks are the context."""
        return self.null_id + 1

    @property
    def any_budget_id(self) -> int:
        """Second id of a row without a budget; it follows the ids of the bins. Only in layouts with budgets."""
        return self.frame_prediction_id + 1 + self.budget_bins

    @property
    def pad_id(self) -> int:
        return self.any_budget_id + 1 if self.budget_bins else self.frame_prediction_id + 1

    @property
    def vocab_size(self) -> int:
        return self.pad_id + 1

    @property
    def num_starts(self) -> int:
        """Ids at the start of a row, before its blocks."""
        return 2 if self.budget_bins else 1

    @property
    def longest_row(self) -> int:
        """Ids of a row with every block at its greatest length."""
        return self.num_starts + self.num_blocks * (self.largest + 1)

    def length_allowed(self, device: torch.device | str | None = None) -> Tensor:
        """(L + 1,) bool: lengths that a block may have."""
        allowed = torch.full((self.block_capacity + 1,), not self.sizes, device=device)
        allowed[list(self.sizes)] = True
        return allowed

    def length_ids(self, lengths: Tensor) -> Tensor:
        """Allowed lengths -> LEN ids, of the same shape ("length" framing)."""
        return self.codebook_size + torch.searchsorted(torch.tensor(self.sizes, device=lengths.device), lengths)

    def is_framing(self, rows: Tensor) -> Tensor:
        """Which ids are LEN or END, of the same shape."""
        return (rows >= self.codebook_size) & (rows < self.num_outputs)

    def class_prefix(self, labels: Tensor) -> Tensor:
        """(B,) class numbers -> (B, num_starts), without a budget."""
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < self.num_classes):
            raise ValueError(
                f"class {int(labels.min())} to {int(labels.max())} do not exist: there are {self.num_classes} "
                f"classes, numbered from 0"
            )
        return self.start_ids(self.num_outputs + labels.long())

    def null_prefix(self, count: int, device: torch.device | str | None = None) -> Tensor:
        """(count, num_starts), without a class or a budget."""
        return self.start_ids(torch.full((count,), self.null_id, device=device))

    def context_free_prefix(self, count: int) -> Tensor:
        """(count, num_starts): a frame prediction without its context and a budget."""
        return self.start_ids(torch.full((count,), self.frame_prediction_id))

    def unconditional(self, ids: Tensor) -> Tensor:
        """Ids of rows -> those of the same rows without class and budget, of the same shape."""
        is_class = (ids >= self.num_outputs) & (ids < self.null_id)
        is_budget = (ids > self.frame_prediction_id) & (ids < self.any_budget_id)
        return ids.masked_fill(is_class, self.null_id).masked_fill(is_budget, self.any_budget_id)

    def start_ids(self, first: Tensor) -> Tensor:
        """(B,) first ids -> (B, num_starts), without a budget."""
        starts = first[:, None]
        return torch.cat([starts, torch.full_like(starts, self.any_budget_id)], 1) if self.budget_bins else starts

    def set_budget(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """(B, P) prefixes and the codes (B,) of the blocks that follow -> the prefixes with these budgets."""
        if not self.budget_bins:
            raise ValueError("rows of this layout carry no budget: train with budget_bins above 0")
        bins = tokens * self.budget_bins // (self.num_blocks * self.largest + 1)
        with_budget = prefix.clone()
        with_budget[:, 1] = self.frame_prediction_id + 1 + bins.clamp(0, self.budget_bins - 1)
        return with_budget

    def prefix_lengths(self, prefix: Tensor) -> Tensor:
        """(B, P) -> (B,) ids before PAD."""
        return (prefix != self.pad_id).sum(1)
