"""Batch slots: rows in flight on one device, and the step that appends one token to each.

A step works in place on tensors of fixed shapes. On a GPU it is a CUDA graph, which the host launches without waiting.
Rows are independent, and random numbers are a function of (seed, position): the tokens of a row depend on its own seed
and prefix only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from genvid import noise
from genvid.ar.row_model import RowModel
from genvid.generation.engine.attention import Attention
from genvid.generation.engine.network import SlotNetwork
from genvid.generation.grammar import BlockGrammar
from genvid.generation.guidance import guided
from genvid.generation.sampler import SamplingConfig, draw, length_scores
from genvid.hardware import hardware
from genvid.replay import capture

TOKEN, NULL_TOKEN, POSITION, BEHIND, INPUTS, SEED, WAITED, STEPS = range(8)
"""Rows of the state: next input, next input of the null condition, position, positions by which the null condition is
behind it, tokens that the next step reads, seed, whether the row was waiting at the last step, and the steps in which
it took tokens."""

CHUNK = 256
"""Prompt tokens read at a time."""
SMALLEST_LIMIT = 256
"""Graphs are captured for cache lengths of this number, doubled until the capacity."""


class BatchSlots:
    """Rows in flight, each of which takes one token in a step. With guidance, slot i has a second row of the cache for
    its null condition.

    On a GPU steps are captured as CUDA graphs, and compiled if `compiled` and `Hardware.kernels`; on a CPU they run
    eagerly.
    """

    most = 1
    """Tokens that a row takes in a step, at most."""
    together = 1
    """Inputs of a row in a step, at most."""

    def __init__(
        self,
        model: RowModel,
        config: SamplingConfig,
        count: int,
        *,
        dtype: torch.dtype = torch.float32,
        compiled: bool = True,
        attention: Attention | None = None,
    ) -> None:
        self.count, self.layout, self._config = count, model.layout, config
        self._halves = 2 if config.guided else 1
        device = model.backbone.embed_tokens.weight.device
        self._on_gpu = device.type == "cuda"
        compiled = compiled and hardware(device).kernels
        self._network = SlotNetwork(model, count * self._halves, dtype=dtype, attention=attention, compiled=compiled)
        self._grammar = BlockGrammar(self.layout, count, 0, device=device)
        self._state = torch.zeros(8, count, dtype=torch.long, device=device)
        self._rows = torch.zeros(count, model.max_positions + 2, dtype=torch.long, device=device)
        kinds = self.layout.num_framing if self.layout.framing == "length" else 0
        self._scores = torch.zeros(count, kinds, device=device)
        self._prompt = torch.zeros(3, CHUNK, dtype=torch.long, device=device)
        self._graphs: dict[tuple[str, int], torch.cuda.CUDAGraph] = {}
        self._inputs, self._take = self._inputs_as_written, self._take_as_written
        if compiled:
            self._inputs = torch.compile(self._inputs, dynamic=False)
            self._take = torch.compile(self._take, dynamic=False)
        self._held: dict[int, tuple[int, ...]] = {}
        """Row of the cache -> the prefix that it holds."""

    @torch.no_grad()
    def warm_up(self) -> None:
        """Capture every graph now, so that the first request is as fast as later ones. All slots must be free."""
        self._held.clear()
        reach = 1
        while self._on_gpu and reach <= self._network.capacity:
            limit = self._limit(reach)
            self._launch("step", limit, partial(self._step, limit))
            self._launch("prompt", limit, partial(self._read, self._prompt, limit))
            reach = limit + 1

    @torch.no_grad()
    def step(self, reach: int) -> None:
        """Append the next tokens to every row that is neither finished nor waiting. `reach`: cache positions of the
        longest row after it, at most."""
        limit = self._limit(reach)
        self._launch("step", limit, partial(self._step, limit))

    @torch.no_grad()
    def admit(self, prefixes: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        """Fill the cache with the prefix and null prefix of new rows, {slot: both}, without their last token, which is
        the input of the next step.

        A prefix that another slot holds is copied.
        """
        wanted = {
            slot + half * self.count: both[half] for slot, both in prefixes.items() for half in range(self._halves)
        }
        self._held = {row: ids for row, ids in self._held.items() if wanted.get(row, ids) == ids}
        new_rows = {row: ids for row, ids in wanted.items() if len(ids) > 1 and row not in self._held}
        new, copies = [], []
        for row, ids in new_rows.items():
            source = next((other for other, held in self._held.items() if held == ids), None)
            self._held[row] = ids
            if source is None:
                new.append((row, ids))
            else:
                copies.append((source, row, len(ids) - 1))
        self._read_prompts(new)
        for source, row, length in copies:
            self._network.share(source, row, length)

    def sync(self) -> tuple[Tensor, Tensor]:
        """(state of the grammar, state of the rows (see TOKEN)), copied to the CPU. Waits for the device."""
        return self._grammar.state.to("cpu", copy=True), self._state.to("cpu", copy=True)

    def write(self, grammar: Tensor, state: Tensor) -> None:
        """Write changed copies back to the device."""
        self._grammar.state.copy_(grammar)
        self._state.copy_(state)

    def rows(self, slots: list[int]) -> Tensor:
        """(N, max_positions + 2) sampled ids by position, on the CPU; other positions are unspecified."""
        return self._rows[slots].cpu()

    def length_scores(self, slots: list[int], seeds: Tensor) -> Tensor:
        """(N, K) scores of each size in waiting slots: see `genvid.generation.sampler.length_scores`."""
        return length_scores(self._scores[slots].cpu(), seeds, self._config)

    def _read_prompts(self, prompts: list[tuple[int, tuple[int, ...]]]) -> None:
        """Fill rows of the cache from (row, prefix), with tokens packed into chunks."""
        cells = [(token, row, at) for row, ids in prompts for at, token in enumerate(ids[:-1])]
        for start in range(0, len(cells), CHUNK):
            chunk = cells[start : start + CHUNK]
            limit = self._limit(1 + max(at for _, _, at in chunk))
            if not self._on_gpu:
                self._read(torch.tensor(chunk).T, limit)
                continue
            chunk += [chunk[-1]] * (CHUNK - len(chunk))  # rewrites the same values
            self._prompt.copy_(torch.tensor(chunk).T)
            self._launch("prompt", limit, partial(self._read, self._prompt, limit))

    def _limit(self, reach: int) -> int:
        """Most cache positions that a pass reads: `reach`, on a GPU rounded up to a length that graphs have."""
        if not self._on_gpu:
            return reach
        limit = SMALLEST_LIMIT
        while limit < reach:
            limit *= 2
        return min(limit, self._network.capacity)

    def _launch(self, kind: str, limit: int, work: Callable[[], None]) -> None:
        """Run a pass, on a GPU as a graph that is captured at its first use."""
        if not self._on_gpu:
            work()
            return
        if (kind, limit) not in self._graphs:
            self._graphs[kind, limit] = self._capture(work)
        self._graphs[kind, limit].replay()

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A graph of `work`. State is restored after the warm-up runs, which rewrite equal values to the cache."""
        kept = [tensor.clone() for tensor in self._changed()]
        pool = next((graph.pool() for graph in self._graphs.values()), None)
        with torch._dynamo.config.patch(recompile_limit=64):  # one compilation for each number of rows
            graph, _ = capture(work, pool)
        for tensor, before in zip(self._changed(), kept, strict=True):
            tensor.copy_(before)
        return graph

    def _changed(self) -> tuple[Tensor, ...]:
        return self._grammar.state, self._state, self._rows, self._scores

    def _step(self, limit: int) -> None:
        tokens, positions, lengths = self._inputs()
        self._take(self._outputs(self._network(tokens, positions, lengths, limit, together=self.together)))

    def _outputs(self, states: Tensor) -> Tensor:
        """(N, width) states of a pass -> the input of `_take`."""
        return self._network.logits(states)

    def _read(self, prompt: Tensor, limit: int) -> None:
        tokens, slots, positions = prompt
        self._network(tokens, positions, positions + 1, limit, slots)

    def _inputs_as_written(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, positions and lengths of the pass of a step, each (halves x slots x together,)."""
        state = self._state
        both = torch.stack([state[POSITION], state[POSITION] - state[BEHIND]])
        positions = both[: self._halves]
        lengths = (positions + 1).masked_fill(self._grammar.finished, 0)
        tokens = state[: self._halves]  # TOKEN, and NULL_TOKEN where there is guidance
        return tokens.flatten(), positions.flatten(), lengths.flatten()

    def _take_as_written(self, logits: Tensor) -> None:
        """(slots x halves, V) logits -> the next token of every row that is neither finished nor waiting."""
        state, grammar = self._state, self._grammar
        if self._halves == 2:
            logits = guided(logits, self._config.schedule.scale(grammar.progress()))
        waiting = grammar.waiting
        going = ~(grammar.finished | waiting)
        self._record_scores(logits)
        position = state[POSITION] + 1
        token = draw(logits, grammar.allowed(), noise.fold(state[SEED], position), self._config)
        grammar.advance(token, going)
        self._rows.scatter_(1, position[:, None], token[:, None])
        tokens = [token.where(going, state[row]) for row in (TOKEN, NULL_TOKEN)]
        position = position.where(going, state[POSITION])
        steps = state[STEPS] + going.long()
        state.copy_(torch.stack([*tokens, position, state[BEHIND], state[INPUTS], state[SEED], waiting.long(), steps]))

    def _record_scores(self, logits: Tensor) -> None:
        """Keep the (slots, num_outputs) logits of the next lengths."""
        if self._scores.shape[1]:
            self._scores.copy_(logits[:, self.layout.codebook_size :])
