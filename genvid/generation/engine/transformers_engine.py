"""transformers' continuous batching as an engine, for those who serve models with it.

transformers does paging and batching. A logits processor applies the grammar and draws each token by the row's own
seed, so that rows equal those of `genvid.generation.engine.scheduler`, in float32 exactly.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState, GenerationOutput

from genvid import noise
from genvid.ar.row_model import RowModel
from genvid.generation.engine.guided_llama import GuidedLlama
from genvid.generation.engine.scheduler import Request, check_request
from genvid.generation.grammar import BlockGrammar, initial_state
from genvid.generation.guidance import guided
from genvid.generation.sampler import SamplingConfig, draw

PAGE = 64
"""Positions of a page of the cache."""


class TransformersEngine:
    """A model as transformers runs it, with cache for `slots` of the longest rows.

    Prefixes, planned lengths, limits and guidance are as in `Engine`. Planned budgets, in which rows wait for each
    other, are not supported, nor is guidance by rows without their context.
    """

    def __init__(
        self, model: RowModel, config: SamplingConfig, *, slots: int = 64, dtype: torch.dtype = torch.float32
    ) -> None:
        if model.causal_lm is None:
            raise ValueError(f"transformers has no {model.model_type} model: sample it with genvid's own engine")
        if slots < 1:
            raise ValueError(f"an engine needs at least 1 slot, got {slots}")
        self.model, self.config, self.slots = model, config, slots
        self.tokens = 0
        """Tokens sampled so far, framing included."""
        self._llama = copy.deepcopy(model.causal_lm).to(dtype)
        if config.guided:
            self._llama = GuidedLlama(self._llama, model.layout.unconditional(torch.arange(model.layout.vocab_size)))
        self._llama.set_attn_implementation("sdpa")

    def check(self, requests: Sequence[Request]) -> None:
        """ValueError for a request that the model or this engine cannot take."""
        for request in requests:
            if request.planner is not None:
                raise ValueError("transformers cannot plan a budget: use genvid's own engine, or plan the lengths")
            check_request(request, self.model.layout, self.model.max_positions, guided=self.config.guided)
            null = self.model.layout.unconditional(torch.tensor(request.prefix)).tolist()
            if self.config.guided and request.null_prefix != tuple(null):
                raise ValueError(
                    "transformers guides rows by class and budget; by the context, sample with genvid's own engine"
                )

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Tensor]]:
        """Sample every request: (its number, its row (S,) on the CPU), in the order in which they end."""
        self.check(requests)
        return self._run(requests)

    def _run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Tensor]]:
        layout = self.model.layout
        # PAD ends a row.
        ending = GenerationConfig(do_sample=False, eos_token_id=layout.pad_id, pad_token_id=layout.pad_id)
        pages = self.slots * (-(-(self.model.max_positions + 2) // PAGE) + 1)
        paging = _paging(pages, max(self.slots, 256))
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.WARNING)
        manager = self._llama.init_continuous_batching(ending, paging)
        drawn = _GrammarProcessor(self.model, self.config, requests)
        manager.logit_processor = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([drawn]))
        manager.logit_processor.tensors_required = 1
        manager.start()
        try:
            for number, request in enumerate(requests):
                most = request.num_blocks * (layout.largest + 1) + 1
                manager.add_request(list(request.prefix), request_id=str(number), max_new_tokens=most)
            missing = len(requests)
            while missing:
                output: GenerationOutput | None = manager.get_result(timeout=1)
                if output is None and not manager.is_running():
                    raise RuntimeError("transformers' continuous batching stopped before all rows had ended")
                if output is not None and output.is_finished():
                    missing -= 1
                    yield self._row(requests, output)
        finally:
            manager.stop(block=True)

    def _row(self, requests: Sequence[Request], output: GenerationOutput) -> tuple[int, Tensor]:
        if output.error is not None:
            raise RuntimeError(f"transformers could not sample row {output.request_id}: {output.error}")
        number = int(output.request_id)
        sampled = [token for token in output.generated_tokens if token != self.model.layout.pad_id]
        self.tokens += len(sampled)
        return number, torch.tensor([*requests[number].prefix, *sampled])


def _paging(pages: int, batch_tokens: int) -> ContinuousBatchingConfig:
    """No CUDA graphs and no asynchronous batches: the grammar, on the host, needs each token before the next."""
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    page = "page_size" if "page_size" in known else "block_size"  # transformers 5.17 and 5.18 call it a block
    choices = {page: PAGE, "num_blocks": pages, "max_batch_tokens": batch_tokens}
    never = {"use_cuda_graph", "use_async_batching", "auto_switch_to_flash"} & known
    return ContinuousBatchingConfig(**choices, **dict.fromkeys(never, False))


class _GrammarProcessor(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Scores that allow one token for each row, the one drawn for it. Request ids are indices of requests."""

    supported_kwargs: ClassVar[dict[str, type]] = {}
    ignored_kwargs = ()

    def __init__(self, model: RowModel, config: SamplingConfig, requests: Sequence[Request]) -> None:
        self._layout, self._config = model.layout, config
        self._grammars = [
            initial_state(model.layout, request.num_blocks, request.planned or (), request.limit)
            for request in requests
        ]
        self._seeds = [request.seed for request in requests]
        self._batch: list[tuple[int, int]] = []
        """(number of the request, position of its next token) of the rows of this step."""

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.fill_(-1)

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> Tensor:
        states = [request.state for request in requests_with_new_token]
        known = [state for state in states if state.request_id.isdecimal()]  # others warm the engine up
        self._batch = [
            (int(state.request_id), len(state.initial_tokens) + len(state.generated_tokens)) for state in known
        ]
        return torch.tensor([number for number, _ in self._batch], dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        if not self._batch:
            return scores
        numbers, positions = zip(*self._batch, strict=True)
        grammar = BlockGrammar(self._layout, len(numbers), 0, device=scores.device)
        grammar.state = torch.tensor([self._grammars[number] for number in numbers], device=scores.device).T.clone()
        seeds = torch.tensor([self._seeds[number] for number in numbers], device=scores.device)
        seeds = noise.fold(seeds, torch.tensor(positions, device=scores.device))
        logits = scores[: len(numbers)]
        if self._config.guided:
            logits = guided(torch.cat(logits.chunk(2, -1)), self._config.schedule.scale(grammar.progress()))
        logits = logits[:, : self._layout.num_outputs]
        tokens = draw(logits, grammar.allowed() | grammar.finished[:, None], seeds, self._config)
        tokens = tokens.masked_fill(grammar.finished, self._layout.pad_id)
        grammar.advance(tokens, torch.ones_like(grammar.finished))
        for number, state in zip(numbers, grammar.state.T.tolist(), strict=True):
            self._grammars[number] = state
        chosen = torch.full_like(scores, -torch.inf)
        chosen[torch.arange(len(tokens)), tokens] = 0.0
        return chosen
