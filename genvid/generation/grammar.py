"""The grammar of rows: the tokens allowed next, so that every sampled row unpacks and keeps to its limit.

A state machine for many rows at once, without synchronisation with the device. Its state is one tensor, updated in
place, which a CUDA graph can use and the host can copy at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genvid.generation.guidance import Progress
from genvid.tokens.rows import BlockLayout

FREE = -1
"""Planned length of a block whose length the model chooses."""
WAIT = -2
"""Planned length of a block whose length a planner assigns: the row waits at its start ("length" framing)."""
UNLIMITED = 2**40

BLOCK, COUNT, ANNOUNCED, NUM_BLOCKS, LEFT, PLANNED = range(6)
"""Rows of the state; planned lengths are all rows from PLANNED on."""


class BlockGrammar:
    """State of B rows of `num_blocks` blocks, after their prefix.

    `planned` (B, num_blocks) fixes the lengths of blocks. By default every length of the layout is allowed, except that
    in "end" framing the first block is not empty (as published).
    """

    def __init__(
        self,
        layout: BlockLayout,
        rows: int,
        num_blocks: int,
        *,
        planned: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.layout = layout
        self.state = torch.tensor(initial_state(layout, num_blocks), device=device)[:, None].repeat(1, rows)
        """(PLANNED + layout.num_blocks, B) int64."""
        self._allowed = layout.length_allowed(device)
        self._sizes = torch.tensor(layout.sizes, dtype=torch.long, device=device)
        # Greatest allowed length of at most 0, 1, ..., L; -1 where there is none.
        lengths = torch.arange(layout.block_capacity + 1, device=device)
        self._floor = lengths.where(self._allowed, -1).cummax(0).values
        if planned is not None:
            self.state[PLANNED : PLANNED + num_blocks] = self._check_plan(planned.to(lengths), rows, num_blocks).T

    @property
    def finished(self) -> Tensor:
        """(B,) bool."""
        return self.state[BLOCK] >= self.state[NUM_BLOCKS]

    @property
    def waiting(self) -> Tensor:
        """(B,) bool: at the start of a block whose length is not assigned yet."""
        return (self.state[ANNOUNCED] < 0) & (self._plan() == WAIT) & ~self.finished

    def progress(self, ahead: Tensor | None = None) -> Progress:
        """Where the next token of each row is drawn, (B,) each; with `ahead` (W,) the codes that many places behind it,
        (B, W) each. In "end" framing, where the length of a block is not known, its share is that of the longest."""
        block, count, announced, blocks = (self.state[row] for row in (BLOCK, COUNT, ANNOUNCED, NUM_BLOCKS))
        length = announced.where(announced > 0, self.layout.largest)
        if ahead is not None:
            count = count[:, None] + ahead
            block, length, blocks = (each[:, None].expand_as(count) for each in (block, length, blocks))
        return Progress(block, count, (block + count / length) / blocks.clamp(min=1))

    def allowed(self) -> Tensor:
        """(B, num_outputs) bool, never all False. Unspecified for rows that are finished or waiting."""
        codes, framing = self._ending() if self.layout.framing == "end" else self._announcing()
        return torch.cat([codes[:, None].expand(-1, self.layout.codebook_size), framing], 1)

    def advance(self, tokens: Tensor, taken: Tensor, counts: Tensor | int = 1) -> None:
        """Append (B,) allowed tokens to the rows where (B,) `taken` is True and that are not finished.

        A code may be the first of (B,) `counts` codes of its block, which are appended together ("length" framing).
        """
        block, count, announced, left = (self.state[row].clone() for row in (BLOCK, COUNT, ANNOUNCED, LEFT))
        going = taken & ~self.finished
        framing = (tokens >= self.layout.codebook_size) & going
        count += (going & ~framing).long() * counts
        if self.layout.framing == "end":
            closed = framing
        else:
            size = self._sizes[(tokens - self.layout.codebook_size).clamp(0, len(self._sizes) - 1)]
            announced = size.where(framing, announced)
            closed = going & (count == announced)
        self.state[BLOCK] = block + closed.long()
        self.state[COUNT] = count.masked_fill(closed, 0)
        self.state[ANNOUNCED] = announced.masked_fill(closed, -1)
        self.state[LEFT] = left - count * closed.long()

    def _announcing(self) -> tuple[Tensor, Tensor]:
        """ "length" framing: a length at the start of a block, then codes."""
        at_start, plan = self.state[ANNOUNCED] < 0, self._plan()[:, None]
        lengths = (self._sizes == plan) | ((plan < 0) & (self._sizes <= self._most()[:, None]))
        return ~at_start, at_start[:, None] & lengths

    def _ending(self) -> tuple[Tensor, Tensor]:
        """ "end" framing: codes, and END at an allowed length."""
        count, plan, free = self.state[COUNT], self._plan(), self._plan() < 0
        most = self._floor[self._most().clamp(0, self.layout.block_capacity)]
        may_end = self._allowed[count.clamp(max=self.layout.block_capacity)] & ((count > 0) | (self.state[BLOCK] > 0))
        return count < most.where(free, plan), torch.where(free, may_end, count == plan)[:, None]

    def _most(self) -> Tensor:
        """(B,) most tokens of the current block that leave enough of the limit for later blocks."""
        later = self.state[NUM_BLOCKS] - self.state[BLOCK] - 1
        return self.state[LEFT] - later * (self.layout.sizes[0] if self.layout.sizes else 0)

    def _plan(self) -> Tensor:
        """(B,) planned length of the current block, or FREE or WAIT."""
        block = self.state[BLOCK].clamp(max=self.layout.num_blocks - 1)
        return self.state[PLANNED:].gather(0, block[None])[0]

    def _check_plan(self, planned: Tensor, rows: int, num_blocks: int) -> Tensor:
        if planned.shape != (rows, num_blocks):
            raise ValueError(f"planned lengths are ({rows}, {num_blocks}), got {tuple(planned.shape)}")
        for lengths in planned.tolist():
            check_plan(self.layout, lengths)
        return planned


def initial_state(
    layout: BlockLayout, num_blocks: int, planned: Sequence[int] = (), limit: int | None = None
) -> list[int]:
    """State of a row at its first block: a column of `BlockGrammar.state`.

    limit: most tokens (codes) of all its blocks together.
    """
    plan = [*planned, *[FREE] * (layout.num_blocks - len(planned))]
    return [0, 0, -1, num_blocks, UNLIMITED if limit is None else min(limit, UNLIMITED), *plan]


def least_tokens(layout: BlockLayout, num_blocks: int) -> int:
    """Fewest tokens (codes) of a row of `num_blocks` blocks."""
    smallest = layout.sizes[0] if layout.sizes else 0
    nonzero = next((size for size in layout.sizes if size), 1)
    first = nonzero if layout.framing == "end" else smallest
    return first + (num_blocks - 1) * smallest


def check_plan(layout: BlockLayout, lengths: Sequence[int]) -> None:
    """ValueError unless the layout allows each length."""
    sizes = layout.sizes or range(layout.block_capacity + 1)
    wrong = [length for length in lengths if length not in sizes]
    if wrong:
        known = layout.sizes or f"0 to {layout.block_capacity}"
        raise ValueError(f"a planned length of {wrong[0]} tokens is none of the sizes {known}")
