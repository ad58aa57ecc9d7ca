"""A Llama that reads each row with its condition and without it, for engines whose rows are independent requests."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast


class GuidedLlama(LlamaForCausalLM):  # type: ignore[misc]
    """The layers of `llama` twice, weights held once: logits (B, S, 2V) of the rows, then of their null conditions.

    The null condition is a second model whose layers are numbered on from those of the first. A cache of so many layers
    holds both, so that a row is one request with one place in a batch, and no scheduler has to keep two together.

    llama: taken over; its config then has the number of both models' layers.
    null_ids: (V,) id in the null condition of each id of a row.
    """

    def __init__(self, llama: LlamaForCausalLM, null_ids: Tensor) -> None:
        config, depth = llama.config, llama.config.num_hidden_layers
        with torch.device("meta"):
            super().__init__(config)
        self.model, self.lm_head = llama.model, llama.lm_head
        shared = {id(each): each for each in (config, *llama.parameters())}
        self.null_model = copy.deepcopy(llama.model, shared)
        for layer in self.null_model.layers:
            layer.self_attn.layer_idx += depth
        config.num_hidden_layers = 2 * depth
        self.register_buffer("null_ids", null_ids.to(llama.device), persistent=False)

    def forward(self, input_ids: Tensor, **options: Any) -> CausalLMOutputWithPast:
        """(B, S) ids; options: of `LlamaModel.forward`."""
        states = self.model(input_ids, **options)[0], self.null_model(self.null_ids[input_ids], **options)[0]
        return CausalLMOutputWithPast(logits=torch.cat([self.lm_head(each) for each in states], -1))
