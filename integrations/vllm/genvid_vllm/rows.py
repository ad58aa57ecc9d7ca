"""Rows in the batch of a server: the grammar, the plan and the seed of each decide its next token.

Nothing here needs vLLM; `genvid_vllm.processor` connects the two.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genvid import config as configuration
from genvid import noise
from genvid.generation.engine.scheduler import Request, check_request
from genvid.generation.grammar import BlockGrammar, initial_state
from genvid.generation.sampler import SamplingConfig, draw
from genvid.tokens.rows import BlockLayout

KEY = "genvid"
"""Of `SamplingParams.extra_args`, in HTTP requests `vllm_xargs`: a `RowRequest` as JSON."""


@dataclass(frozen=True)
class RowRequest:
    """Everything of a request beside its prompt."""

    seed: int
    num_blocks: int
    planned: tuple[int, ...] | None = None
    limit: int | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if self.sampling.guided:
            raise ValueError("a row of vLLM is one request, without a null condition: use genvid's engine for guidance")

    @classmethod
    def read(cls, extra_args: Mapping[str, Any] | None) -> RowRequest:
        """ValueError in words unless `extra_args` hold a request."""
        if not extra_args or KEY not in extra_args:
            raise ValueError(
                f"a row needs the key {KEY!r} in its extra_args (over HTTP vllm_xargs): a RowRequest as JSON"
            )
        try:
            data = json.loads(extra_args[KEY])
        except (TypeError, ValueError) as error:  # no text (over HTTP also a number or a list), or no JSON
            raise ValueError(f"{KEY!r} in extra_args is no JSON text of a RowRequest ({error})") from None
        return configuration.decode(cls, data, source=KEY)


def sampling_params(layout: BlockLayout, request: Request, config: SamplingConfig) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams` for a request; its prompt is `request.prefix`.

    Tokens are drawn by genvid, so vLLM's own temperature is 0. PAD ends a row.
    """
    if request.planner is not None:
        raise ValueError(
            "rows of vLLM do not wait for each other: use genvid's engine to plan budgets, or plan lengths"
        )
    row = RowRequest(request.seed, request.num_blocks, request.planned, request.limit, config)
    return {
        "temperature": 0.0,
        "max_tokens": request.num_blocks * (layout.largest + 1) + 1,
        "stop_token_ids": [layout.pad_id],
        "detokenize": False,
        "extra_args": {KEY: json.dumps(configuration.encode(row))},
    }


@dataclass
class _Row:
    """A request in the batch."""

    given: int
    """Ids of the prompt."""
    output: Sequence[int]
    """Its tokens, to which the server appends."""
    request: RowRequest
    state: list[int]
    """Of the grammar, after the first `seen` tokens."""
    seen: int = 0


class RowBatch:
    """The rows of a batch, by their place in it.

    longest: tokens of a prompt and its output at most (vLLM's max_model_len). A row whose lengths are free keeps within
    it; a request that cannot, or that the layout does not allow, ends at once, without blocks.
    """

    def __init__(self, layout: BlockLayout, longest: int) -> None:
        self._layout, self._longest = layout, longest
        self._rows: dict[int, _Row] = {}

    def add(self, place: int, prompt: Sequence[int], output: Sequence[int], request: RowRequest) -> None:
        """A new request, or one that goes on after its first tokens."""
        limit, blocks = request.limit, request.num_blocks
        if request.planned is None:
            room = self._longest - len(prompt) - blocks
            limit = room if limit is None else min(limit, room)
        row = Request(tuple(prompt), request.seed, blocks, planned=request.planned, limit=limit)
        try:
            check_request(row, self._layout, self._longest - 1, guided=False)
        except ValueError as error:
            logging.getLogger(__name__).warning("a request ends without blocks: %s", error)
            blocks = 0
        state = initial_state(self._layout, blocks, request.planned or (), limit)
        self._rows[place] = _Row(len(prompt), output, request, state)

    def remove(self, place: int) -> None:
        self._rows.pop(place, None)

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """The row of `source` to `target`; with `swap`, also back."""
        moved, replaced = self._rows.pop(source), self._rows.pop(target, None)
        self._rows[target] = moved
        if swap and replaced is not None:
            self._rows[source] = replaced

    def draw(self, logits: Tensor) -> Tensor:
        """(B, V) logits -> (B, V) scores that allow one token of each row, the one drawn for it."""
        if not self._rows:
            return logits
        places, rows = list(self._rows), list(self._rows.values())
        self._advance(rows)
        grammar = self._grammar(rows, logits.device)
        positions = torch.tensor([row.given + len(row.output) for row in rows], device=logits.device)
        seeds = noise.fold(torch.tensor([row.request.seed for row in rows], device=logits.device), positions)
        allowed, finished = grammar.allowed() | grammar.finished[:, None], grammar.finished
        chosen = torch.full_like(logits, -torch.inf)
        for config in {row.request.sampling for row in rows}:
            own = [number for number, row in enumerate(rows) if row.request.sampling == config]
            at = [places[number] for number in own]
            tokens = draw(logits[at, : self._layout.num_outputs].float(), allowed[own], seeds[own], config)
            chosen[at, tokens.masked_fill(finished[own], self._layout.pad_id)] = 0.0
        return chosen

    def _advance(self, rows: Sequence[_Row]) -> None:
        """Read the tokens that were appended since the last draw."""
        while behind := [row for row in rows if row.seen < len(row.output)]:
            grammar = self._grammar(behind, torch.device("cpu"))
            tokens = torch.tensor([row.output[row.seen] for row in behind])
            grammar.advance(tokens, torch.ones_like(grammar.finished))
            for row, state in zip(behind, grammar.state.T.tolist(), strict=True):
                row.state, row.seen = state, row.seen + 1

    def _grammar(self, rows: Sequence[_Row], device: torch.device) -> BlockGrammar:
        grammar = BlockGrammar(self._layout, len(rows), 0, device=device)
        grammar.state = torch.tensor([row.state for row in rows], device=device).T.contiguous()
        return grammar
