"""BatchSlots: rows in batch on one device, and the step that moves all of them on by a token.

A step works in place on tensors whose shapes never change. On a GPU it is a CUDA graph: the host starts it and does not
wait for it. Rows are apart in it, and random numbers are counted by (seed, position): what is drawn for a row depends
on its own seed and prefix only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from genvid import noise
from genvid.ar.hardware import hardware
from genvid.ar.model import RowModel
from genvid.generation.engine.attention import Attention
from genvid.generation.engine.network import SlotNetwork
from genvid.generation.grammar import BlockGrammar
from genvid.generation.sampler import SamplingConfig, draw, guided, length_scores

TOKEN, NULL_TOKEN, POSITION, SEED, WAITED = range(5)
"""Rows of the state: the next input and that of the null condition, their position, the seed of the row, and whether
the last step found it waiting."""

CHUNK = 256
"""Prompt tokens read at a time."""
SMALLEST_LIMIT = 256
"""Least of the cache lengths that graphs are made for; the others are its doubles."""


class BatchSlots:
    """Rows in batch. With guidance, slot i has a second row of the cache for its null condition.

    On a GPU steps are captured as CUDA graphs, and compiled if `compiled` and the GPU can (`Hardware.kernels`);
    elsewhere they run as written.
    """

    def __init__(
        self,
        model: RowModel,
        config: SamplingConfig,
        count: int,
        *,
        dtype: torch.dtype | None = None,
        compiled: bool = True,
        attention: Attention | None = None,
    ) -> None:
        self.count, self.layout, self._config = count, model.layout, config
        self._halves = 1 if config.guidance == 1.0 else 2
        device = model.backbone.embed_tokens.weight.device
        self._on_gpu = device.type == "cuda"
        compiled = compiled and hardware(device).kernels
        self._network = SlotNetwork(model, count * self._halves, dtype=dtype, attention=attention, compiled=compiled)
        self._grammar = BlockGrammar(self.layout, count, 0, device=device)
        self._state = torch.zeros(5, count, dtype=torch.long, device=device)
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
        """Row of the cache -> the prefix that stands in it."""

    @torch.no_grad()
    def warm_up(self) -> None:
        """Make every graph now: the first request is then as fast as the others. All slots must be free."""
        self._held.clear()
        reach = 1
        while self._on_gpu and reach <= self._network.capacity:
            limit = self._limit(reach)
            self._launch("step", limit, partial(self._step, limit))
            self._launch("prompt", limit, partial(self._read, self._prompt, limit))
            reach = limit + 1

    @torch.no_grad()
    def step(self, reach: int) -> None:
        """One token for every row that goes on; none has filled more than `reach` positions after it."""
        limit = self._limit(reach)
        self._launch("step", limit, partial(self._step, limit))

    @torch.no_grad()
    def admit(self, prefixes: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        """Read the prefix and null prefix of new rows, {slot: both}, but for the last token, the input of a step.

        A prefix that some slot holds already is copied, not computed.
        """
        wanted = {
            slot + half * self.count: both[half] for slot, both in prefixes.items() for half in range(self._halves)
        }
        seats = {row: ids for row, ids in wanted.items() if len(ids) > 1 and self._held.get(row) != ids}
        for row in seats:
            self._held.pop(row, None)
        new, copies = [], []
        for row, ids in seats.items():
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
        """Copies of the grammar's state and of the other (see TOKEN ...), on the CPU. Waits for the device."""
        return self._grammar.state.to("cpu", copy=True), self._state.to("cpu", copy=True)

    def write(self, grammar: Tensor, state: Tensor) -> None:
        """Put changed copies back."""
        self._grammar.state.copy_(grammar)
        self._state.copy_(state)

    def rows(self, slots: list[int]) -> Tensor:
        """(N, max_positions + 2) sampled ids by position, on the CPU; what stands before and after them is not set."""
        return self._rows[slots].cpu()

    def length_scores(self, slots: list[int], seeds: Tensor) -> Tensor:
        """(N, K) scores of each size in slots that wait: see `length_scores`."""
        return length_scores(self._scores[slots].cpu(), seeds, self._config)

    def _read_prompts(self, prompts: list[tuple[int, tuple[int, ...]]]) -> None:
        """Fill rows of the cache with their (row, prefix), packed into chunks."""
        cells = [(token, row, at) for row, ids in prompts for at, token in enumerate(ids[:-1])]
        for start in range(0, len(cells), CHUNK):
            chunk = cells[start : start + CHUNK]
            limit = self._limit(1 + max(at for _, _, at in chunk))
            if not self._on_gpu:
                self._read(torch.tensor(chunk).T, limit)
                continue
            chunk += [chunk[-1]] * (CHUNK - len(chunk))  # written again, the same
            self._prompt.copy_(torch.tensor(chunk).T)
            self._launch("prompt", limit, partial(self._read, self._prompt, limit))

    def _limit(self, reach: int) -> int:
        """Positions that a pass may read: exactly `reach`, or on a GPU the next length that there is a graph for."""
        if not self._on_gpu:
            return reach
        limit = SMALLEST_LIMIT
        while limit < reach:
            limit *= 2
        return min(limit, self._network.capacity)

    def _launch(self, kind: str, limit: int, work: Callable[[], None]) -> None:
        """Run a pass, on a GPU as a graph that is made when it is first needed."""
        if not self._on_gpu:
            work()
            return
        if (kind, limit) not in self._graphs:
            self._graphs[kind, limit] = self._capture(work)
        self._graphs[kind, limit].replay()

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A graph of `work`. What trying it out changes is put back: the cache is written again, the same."""
        kept = [tensor.clone() for tensor in self._changed()]
        aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        graph, pool = torch.cuda.CUDAGraph(), next((graph.pool() for graph in self._graphs.values()), None)
        with torch._dynamo.config.patch(recompile_limit=64):  # each number of rows is compiled by itself
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):
                    work()
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                work()
        for tensor, before in zip(self._changed(), kept, strict=True):
            tensor.copy_(before)
        return graph

    def _changed(self) -> tuple[Tensor, ...]:
        return self._grammar.state, self._state, self._rows, self._scores

    def _step(self, limit: int) -> None:
        states = self._network(*self._inputs(), limit)
        self._take(self._network.logits(states))

    def _read(self, prompt: Tensor, limit: int) -> None:
        tokens, slots, positions = prompt
        self._network(tokens, positions, positions + 1, limit, slots)

    def _inputs_as_written(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, positions and lengths of a step, each (slots x halves,)."""
        state, again = self._state, [self._halves]
        lengths = (state[POSITION] + 1).masked_fill(self._grammar.finished, 0)
        tokens = state[: self._halves].flatten()  # TOKEN, and NULL_TOKEN where there is guidance
        return tokens, state[POSITION].repeat(again), lengths.repeat(again)

    def _take_as_written(self, logits: Tensor) -> None:
        """(slots x halves, V) -> the next token of every row that goes on."""
        state, grammar = self._state, self._grammar
        if self._halves == 2:
            logits = guided(logits, self._config.guidance)
        waiting = grammar.waiting
        going = ~(grammar.finished | waiting)
        if self._scores.shape[1]:
            self._scores.copy_(logits[:, self.layout.codebook_size :])
        position = state[POSITION] + 1
        token = draw(logits, grammar.allowed(), noise.fold(state[SEED], position), self._config)
        grammar.advance(token, going)
        self._rows.scatter_(1, position[:, None], token[:, None])
        tokens = [token.where(going, state[row]) for row in (TOKEN, NULL_TOKEN)]
        state.copy_(torch.stack([*tokens, position.where(going, state[POSITION]), state[SEED], waiting.long()]))
