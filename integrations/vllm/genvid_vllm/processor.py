"""The logits processor of vLLM's first model runner (vLLM 0.29): genvid_vllm.processor:RowProcessor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from genvid import config as configuration
from genvid.tokens.rows import BlockLayout
from genvid_vllm.rows import RowBatch, RowRequest


class RowProcessor(LogitsProcessor):
    """Every request of the server is a row; see `genvid_vllm.sampling_params`."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        model = vllm_config.model_config
        layout = configuration.decode(BlockLayout, model.hf_config.genvid["layout"], source="config.json")
        self._batch = RowBatch(layout, model.max_model_len)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """ValueError for a request that is no row."""
        RowRequest.read(sampling_params.extra_args)
        if sampling_params.temperature != 0:
            raise ValueError("genvid draws the tokens: give its temperature in the row's request, and 0 to vLLM")

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for place in batch_update.removed:
            self._batch.remove(place)
        for place, params, prompt, output in batch_update.added:
            self._batch.add(place, prompt or (), output, RowRequest.read(params.extra_args))
        for source, target, direction in batch_update.moved:
            self._batch.move(source, target, swap=direction == MoveDirectionality.SWAP)

    def apply(self, logits: Tensor) -> Tensor:
        return self._batch.draw(logits)
