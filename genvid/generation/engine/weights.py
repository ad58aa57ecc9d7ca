"""Weights of a Llama layer, stacked as the forward pass of sampling reads them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layer(NamedTuple):
    """Weights of a layer."""

    norm: Tensor
    qkv: Tensor
    """((H + 2E) D, width)."""
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    """(2 hidden, width)."""
    down: Tensor


def layer_weights(layer: torch.nn.Module, dtype: torch.dtype) -> Layer:
    """Weights of transformers' LlamaDecoderLayer."""
    weight = {name.removesuffix(".weight"): value.detach().to(dtype) for name, value in layer.named_parameters()}
    return Layer(
        norm=weight["input_layernorm"],
        qkv=torch.cat([weight[f"self_attn.{name}_proj"] for name in "qkv"]),
        out=weight["self_attn.o_proj"],
        mlp_norm=weight["post_attention_layernorm"],
        gate_up=torch.cat([weight["mlp.gate_proj"], weight["mlp.up_proj"]]),
        down=weight["mlp.down_proj"],
    )
