"""Continuous batching: any number of requests on a fixed number of batch slots.

A slot whose row is finished is given to the next request. The host synchronises with the device only when a row may
have finished or may be waiting for a planned length. The tokens of a request depend on its own seed and prefix only
(and on its planner, if it has one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from genvid import noise
from genvid.ar.draft import DraftHeads
from genvid.ar.row_model import RowModel
from genvid.generation.engine.attention import Attention
from genvid.generation.engine.parallel import GroupSlots
from genvid.generation.engine.slots import POSITION, SEED, STEPS, WAITED, BatchSlots
from genvid.generation.engine.speculative import SpeculativeSlots
from genvid.generation.grammar import (
    ANNOUNCED,
    BLOCK,
    COUNT,
    NUM_BLOCKS,
    PLANNED,
    WAIT,
    check_plan,
    initial_state,
    least_tokens,
)
from genvid.generation.sampler import SamplingConfig
from genvid.tokens.rows import BlockLayout

SYNC_STEPS = (4, 64)
"""Fewest and most steps between two synchronisations."""


class LengthPlanner(Protocol):
    """Assigns block lengths to the requests that share it, block after block. For one run."""

    @property
    def rows(self) -> int:
        """Requests that share this planner: consecutive ones, which wait for each other at every block."""
        ...

    def choose(self, scores: Tensor) -> Tensor:
        """(rows, K) scores of the sizes of the next block -> (rows,) sizes."""
        ...


@dataclass(frozen=True)
class Request:
    """A row to sample."""

    prefix: tuple[int, ...]
    seed: int
    num_blocks: int
    """Blocks to sample after the prefix."""
    null_prefix: tuple[int, ...] | None = None
    """The prefix without its condition, for guidance; of the same length or shorter."""
    planned: tuple[int, ...] | None = None
    """Length of each block."""
    limit: int | None = None
    """Most tokens of all blocks together. The smallest size is reserved for each later block."""
    planner: LengthPlanner | None = None
    """Chooses lengths during sampling, in place of `planned` and `limit`."""


class RowEngine(Protocol):
    """Samples rows: `Engine`, or `genvid.generation.engine.transformers_engine.TransformersEngine`."""

    @property
    def model(self) -> RowModel: ...

    @property
    def tokens(self) -> int:
        """Tokens sampled so far, framing included."""
        ...

    def check(self, requests: Sequence[Request]) -> None:
        """ValueError for a request that the model or this engine does not support."""
        ...

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Tensor]]:
        """Yield (index of a request, its row (S,) on the CPU) for every request, as rows finish."""
        ...


class Engine:
    """A model, its sampling parameters, and batch slots for rows in flight.

    A model of groups samples a group of codes in a step; with `draft`, the heads guess codes and the model verifies
    several in a step, which keeps the distribution of the samples.

    slots: rows in flight at most. dtype: of weights and cache. compiled, attention: see `BatchSlots`.
    """

    def __init__(
        self,
        model: RowModel,
        config: SamplingConfig,
        *,
        slots: int = 64,
        dtype: torch.dtype = torch.float32,
        compiled: bool = True,
        attention: Attention | None = None,
        draft: DraftHeads | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"an engine needs at least 1 slot, got {slots}")
        self.model, self.config = model, config
        make: Callable[..., BatchSlots] = GroupSlots if model.groups else BatchSlots
        if draft is not None:
            make = partial(SpeculativeSlots, heads=draft)
        self.slots = make(model, config, slots, dtype=dtype, compiled=compiled, attention=attention)
        self.tokens = 0
        """Tokens sampled so far, framing included."""
        self.steps = 0
        """Steps made so far."""
        self.row_steps = 0
        """Sum over the steps of the rows that took tokens: `tokens` / `row_steps` is the tokens a step."""

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Tensor]]:
        """Yield (index of a request, its row (S,) on the CPU) for every request, as rows finish.

        A row is the prefix and complete blocks. Unsupported requests raise ValueError before anything is computed.
        """
        self.check(requests)
        return ((number, row) for number, row, finished in self._run(requests, each_block=False) if finished)

    def run_blocks(self, requests: Sequence[Request]) -> Iterator[tuple[int, Tensor, bool]]:
        """Like `run`, at the end of each block too: (index, row up to that block, whether it is the last).

        Where several blocks of a row end between two synchronisations, only the last of them is yielded.
        """
        self.check(requests)
        return self._run(requests, each_block=True)

    def check(self, requests: Sequence[Request]) -> None:
        """ValueError for a request that the model does not support."""
        for request in requests:
            check_request(request, self.model.layout, self.model.max_positions, guided=self.config.guided)
        runs = [(run[0].planner, len(run)) for run in (list(g) for _, g in groupby(requests, lambda r: id(r.planner)))]
        for planner, count in runs:
            if planner is not None and planner.rows > self.slots.count:
                raise ValueError(f"{planner.rows} rows share a budget, but the engine has {self.slots.count} slots")
            if planner is not None and planner.rows != count:
                raise ValueError(f"{planner.rows} consecutive requests must share this planner, but {count} do")

    def _run(self, requests: Sequence[Request], *, each_block: bool) -> Iterator[tuple[int, Tensor, bool]]:
        batch = InFlightBatch(self.slots, requests, each_block=each_block)
        while batch.admit():
            steps, reach = batch.steps(self.model.layout)
            for number in range(steps):
                self.slots.step(min(reach + number * self.slots.most, self.model.max_positions))
            self.steps += steps
            tokens, row_steps = batch.sync()
            self.tokens, self.row_steps = self.tokens + tokens, self.row_steps + row_steps
            batch.assign_lengths()
            yield from batch.completed()


class InFlightBatch:
    """Host side of a run: the request in each slot, and the state of the slots at the last sync.

    each_block: synchronise at the end of each block, not only of each row.
    """

    def __init__(self, slots: BatchSlots, requests: Sequence[Request], *, each_block: bool) -> None:
        self._slots, self._requests, self._next, self._each_block = slots, requests, 0, each_block
        self._active: dict[int, int] = {}
        """Slot -> request."""
        self._complete: dict[int, int] = {}
        """Slot -> complete blocks of its row that were yielded."""
        self._grammar, self._state = slots.sync()
        self._grammar[NUM_BLOCKS] = 0  # ends rows that an earlier run left unfinished

    def admit(self) -> bool:
        """Put the next requests into free slots; False when no request is left."""
        free = [slot for slot in range(self._slots.count) if slot not in self._active]
        prefixes = {}
        for slot in free[: len(self._requests) - self._next]:
            request = self._requests[self._next]
            null = request.null_prefix or request.prefix
            plan = request.planned or ((WAIT,) * request.num_blocks if request.planner else ())
            row = initial_state(self._slots.layout, request.num_blocks, plan, request.limit)
            self._grammar[:, slot] = torch.tensor(row)
            behind = len(request.prefix) - len(null)
            state = [request.prefix[-1], null[-1], len(request.prefix) - 1, behind, 1, request.seed, 0, 0]
            self._state[:, slot] = torch.tensor(state)
            prefixes[slot] = (request.prefix, null)
            self._active[slot], self._complete[slot] = self._next, 0
            self._next += 1
        self._slots.admit(prefixes)
        self._slots.write(self._grammar, self._state)
        return bool(self._active)

    def steps(self, layout: BlockLayout) -> tuple[int, int]:
        """(steps until the next sync, cache positions of the longest row after the first of them, at most)."""
        slots = list(self._active)
        columns, waited = self._grammar[:, slots].T.tolist(), self._state[WAITED, slots].tolist()
        ahead = 1 if self._each_block else layout.num_blocks
        soonest = min(
            _steps_to_event(layout, column, ahead) for column, w in zip(columns, waited, strict=True) if not w
        )
        steps, most = -(-soonest // self._slots.most), self._slots.most
        return min(max(steps, SYNC_STEPS[0]), SYNC_STEPS[1]), int(self._state[POSITION, slots].max()) + most

    def sync(self) -> tuple[int, int]:
        """Read the state of the slots; the tokens sampled since the last sync, and the steps of rows that took them."""
        before = self._state[[POSITION, STEPS]].sum(1)
        self._grammar, self._state = self._slots.sync()
        tokens, steps = (self._state[[POSITION, STEPS]].sum(1) - before).tolist()
        return tokens, steps

    def assign_lengths(self) -> None:
        """Assign the next length to the rows of each planner whose rows are all waiting."""
        waiting: dict[int, list[int]] = {}
        for slot, number in sorted(self._active.items(), key=lambda item: item[1]):
            if self._state[WAITED, slot]:
                waiting.setdefault(id(self._requests[number].planner), []).append(slot)
        for slots in waiting.values():
            planner = self._requests[self._active[slots[0]]].planner
            assert planner is not None
            if len(slots) == planner.rows:
                seeds = noise.fold(self._state[SEED, slots], self._state[POSITION, slots] + 1)
                sizes = planner.choose(self._slots.length_scores(slots, seeds))
                self._grammar[PLANNED + self._grammar[BLOCK, slots], slots] = sizes
                self._state[WAITED, slots] = 0

    def completed(self) -> list[tuple[int, Tensor, bool]]:
        """(index, row up to its last complete block, whether that is its last) of the rows that finished, whose slots
        become free, and with `each_block` of those that completed a block."""
        blocks, ends = self._grammar[BLOCK].tolist(), self._grammar[NUM_BLOCKS].tolist()
        fewest = {slot: self._complete[slot] + 1 if self._each_block else ends[slot] for slot in self._active}
        done = [slot for slot in self._active if blocks[slot] >= fewest[slot]]
        if not done:
            return []
        rows, found = self._slots.rows(done), []
        begun = self._grammar[COUNT] + (self._grammar[ANNOUNCED] >= 0)  # tokens of the next block
        for slot, row in zip(done, rows, strict=True):
            number, self._complete[slot] = self._active[slot], blocks[slot]
            prefix = torch.tensor(self._requests[number].prefix)
            end = int(self._state[POSITION, slot] - begun[slot]) + 1
            found.append((number, torch.cat([prefix, row[len(prefix) : end]]), blocks[slot] == ends[slot]))
            if blocks[slot] == ends[slot]:
                del self._active[slot]
        return found


def _steps_to_event(layout: BlockLayout, column: list[int], ahead: int) -> int:
    """Fewest steps after which a row (a column of the grammar's state) may have completed `ahead` blocks or finished,
    or may be waiting."""
    smallest = layout.sizes[0] if layout.sizes else 0
    steps = 0
    for block in range(column[BLOCK], min(column[BLOCK] + ahead, column[NUM_BLOCKS])):
        done = column[COUNT] if block == column[BLOCK] else 0
        plan = column[PLANNED + block]
        if block == column[BLOCK] and column[ANNOUNCED] >= 0:
            steps += column[ANNOUNCED] - done
        elif plan == WAIT:
            return steps + 1
        else:
            steps += max(plan if plan >= 0 else smallest, done) - done + 1
    return steps


def check_request(request: Request, layout: BlockLayout, max_positions: int, *, guided: bool) -> None:
    """ValueError for a request that a model of this layout, with so many positions, does not support."""
    given, blocks = len(request.prefix), request.num_blocks
    noise.check_seed(request.seed)
    if not given or not 1 <= blocks <= layout.num_blocks:
        raise ValueError(
            f"rows of this model are a prefix of at least 1 token and 1 to {layout.num_blocks} blocks, "
            f"got a prefix of {given} and {blocks} blocks"
        )
    if guided and request.null_prefix is None:
        raise ValueError(
            "guidance other than 1 needs a null prefix, which a frame predictor has if it was trained with "
            "objective.context_dropout above 0 (or budget bins): sample this one with guidance 1"
        )
    if guided and request.null_prefix is not None and not 1 <= len(request.null_prefix) <= given:
        raise ValueError(f"a null prefix has 1 token to those of the prefix, {given}, got {len(request.null_prefix)}")
    if guided and request.null_prefix == request.prefix:
        raise ValueError(
            "guidance other than 1 would change nothing: the prefix carries neither class nor budget, so it equals the "
            "null prefix; sample it with guidance 1"
        )
    if request.planner is not None and (request.planned, request.limit) != (None, None):
        raise ValueError("a request has a planner, or planned lengths with or without a limit, not both")
    if request.planner is not None and layout.framing != "length":
        raise ValueError('a planner needs a model of "length" framing, which predicts lengths; give planned lengths')
    least, most = least_tokens(layout, blocks), blocks * layout.largest
    if request.planned is not None:
        if len(request.planned) != blocks:
            raise ValueError(f"{blocks} blocks need as many planned lengths, got {len(request.planned)}")
        check_plan(layout, request.planned)
        least = most = sum(request.planned)
    if request.limit is not None:
        if request.limit < least:
            raise ValueError(
                f"a budget of {request.limit} tokens cannot pay for {blocks} blocks, which need at least {least}"
            )
        most = min(most, request.limit)
    needed = given + most + blocks - 1
    if needed > max_positions:
        raise ValueError(
            f"a prefix of {given} and {blocks} blocks may need {needed} positions, but the model has "
            f"{max_positions}; shorten the context or plan shorter blocks"
        )
