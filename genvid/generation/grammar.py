"""Which tokens may come next, so that every sampled row is one that unpacks.

A small state machine for B rows at once; nothing in it waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genvid.sequence import BlockLayout


class BlockGrammar:
    """State of B rows whose prefix has been read, and which have `num_blocks` blocks to come.

    `planned` (B, num_blocks) forces the lengths of blocks. Without it lengths are any that the layout allows, save
    that in "end" framing the first block is not empty (as published).
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
        self.num_blocks = num_blocks
        self.block = torch.zeros(rows, dtype=torch.long, device=device)
        """(B,) blocks that are complete."""
        self.count = torch.zeros_like(self.block)
        """(B,) codes of the current block so far."""
        self.announced = torch.full_like(self.block, -1)
        """(B,) length of the current block, -1 until its LEN ("length" framing)."""
        self._allowed = layout.length_allowed(device)
        self._sizes = torch.tensor(layout.sizes, dtype=torch.long, device=device)
        self._planned = None if planned is None else self._check_plan(planned.to(self.block.device), rows)

    @property
    def finished(self) -> Tensor:
        """(B,) bool."""
        return self.block >= self.num_blocks

    def allowed(self) -> Tensor:
        """(B, num_outputs) bool, never all False. Means nothing for finished rows."""
        codes, framing = self._ending() if self.layout.framing == "end" else self._announcing()
        return torch.cat([codes[:, None].expand(-1, self.layout.codebook_size), framing], 1)

    def advance(self, tokens: Tensor, taken: Tensor) -> None:
        """Take the (B,) next tokens, allowed ones, in rows that have (B,) `taken` one and are not finished."""
        going = taken & ~self.finished
        framing = (tokens >= self.layout.codebook_size) & going
        self.count = self.count + (going & ~framing).long()
        if self.layout.framing == "end":
            closed = framing
        else:
            size = self._sizes[(tokens - self.layout.codebook_size).clamp(0, len(self._sizes) - 1)]
            self.announced = size.where(framing, self.announced)
            closed = going & (self.count == self.announced)
        self.block = self.block + closed.long()
        self.count = self.count.masked_fill(closed, 0)
        self.announced = self.announced.masked_fill(closed, -1)

    def _announcing(self) -> tuple[Tensor, Tensor]:
        """ "length" framing: a length at the start of a block, then codes."""
        at_start = self.announced < 0
        plan = self._plan_of_block()
        lengths = torch.ones_like(self._sizes).bool() if plan is None else self._sizes == plan[:, None]
        return ~at_start, at_start[:, None] & lengths

    def _ending(self) -> tuple[Tensor, Tensor]:
        """ "end" framing: codes, and END at an allowed length."""
        plan = self._plan_of_block()
        if plan is None:
            may_end = self._allowed[self.count] & ((self.count > 0) | (self.block > 0))
            return self.count < self.layout.largest, may_end[:, None]
        return self.count < plan, (self.count == plan)[:, None]

    def _plan_of_block(self) -> Tensor | None:
        if self._planned is None:
            return None
        return self._planned.gather(1, self.block.clamp(max=self.num_blocks - 1)[:, None])[:, 0]

    def _check_plan(self, planned: Tensor, rows: int) -> Tensor:
        if planned.shape != (rows, self.num_blocks):
            raise ValueError(f"planned lengths are ({rows}, {self.num_blocks}), got {tuple(planned.shape)}")
        inside = (planned >= 0) & (planned <= self.layout.block_capacity)
        wrong = planned[~(inside & self._allowed[planned.clamp(0, self.layout.block_capacity)])]
        if len(wrong):
            sizes = self.layout.sizes or f"0 to {self.layout.block_capacity}"
            raise ValueError(f"a planned length of {int(wrong[0])} tokens is none of the sizes {sizes}")
        return planned.long()
