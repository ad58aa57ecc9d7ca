"""The forward pass of an autoregressive model in float64, for entropy coding.

Both sides of a file must compute the same integers from the logits, on whatever device, in rows of whatever length and
number. In float64, weights and rotary tables included, results of different devices and shapes agree to about 1e-12,
where the float32 parts of transformers' Llama would leave 1e-6.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from genvid.ar.row_model import RowModel


class _Layer(NamedTuple):
    norm: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class ExactNetwork:
    """Weights of a model in float64, and the forward pass over R rows that begin together."""

    def __init__(self, model: RowModel) -> None:
        sizes, llama = model.config.transformer, model.backbone
        self.eps, self.heads, self.kv_heads = sizes.norm_eps, sizes.heads, sizes.kv_heads
        self.head_width = sizes.width // sizes.heads
        self.embedding, self.norm = llama.embed_tokens.weight.detach().double(), llama.norm.weight.detach().double()
        self.head = model.head_weight.detach().double()
        self.layers = [_layer(layer) for layer in llama.layers]
        learned = model.position_table
        self.positions = None if learned is None else learned.detach().double()
        self.rotary = None if sizes.rope_theta is None else self._rotary(sizes.rope_theta, sizes.max_positions)

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def position_bytes(self) -> int:
        """Memory of the keys and values of a position."""
        return 16 * len(self.layers) * self.kv_heads * self.head_width

    def new_cache(self, rows: int, length: int) -> Tensor:
        """Keys and values (depth, 2, R, E, C, D) of rows of at most `length` positions."""
        shape = (len(self.layers), 2, rows, self.kv_heads, length, self.head_width)
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def logits(self, tokens: Tensor, cache: Tensor, start: int) -> Tensor:
        """(R, S) ids at the positions from `start` on, whose keys and values join the cache -> (R, S, num_outputs)."""
        end = start + tokens.shape[1]
        x = functional.embedding(tokens, self.embedding)
        if self.positions is not None:
            x = x + self.positions[start:end]
        hidden = torch.ones(end - start, end, dtype=torch.bool, device=x.device).triu(start + 1)
        for layer, kept in zip(self.layers, cache, strict=True):
            normed = self._normed(x, layer.norm)
            queries = self._turned(self._split(normed @ layer.query), start, end)
            kept[0, :, :, start:end] = self._turned(self._split(normed @ layer.key), start, end)
            kept[1, :, :, start:end] = self._split(normed @ layer.value)
            x = x + self._attended(queries, kept[0, :, :, :end], kept[1, :, :, :end], hidden) @ layer.out
            normed = self._normed(x, layer.mlp_norm)
            x = x + (functional.silu(normed @ layer.gate) * (normed @ layer.up)) @ layer.down
        return self._normed(x, self.norm) @ self.head.T

    def _attended(self, queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
        """(R, H, S, D) queries, (R, E, C, D) keys and values -> (R, S, H D)."""
        grouped = torch.unflatten(queries, 1, (self.kv_heads, -1))
        scores = grouped @ keys[:, :, None].transpose(-1, -2) / math.sqrt(self.head_width)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        attended: Tensor = weights @ values[:, :, None]
        return attended.flatten(1, 2).transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """(R, S, heads * D) -> (R, heads, S, D)."""
        heads: Tensor = torch.unflatten(x, 2, (-1, self.head_width))
        return heads.transpose(1, 2)

    def _turned(self, x: Tensor, start: int, end: int) -> Tensor:
        """Queries or keys with their rotary positions."""
        if self.rotary is None:
            return x
        cos, sin = self.rotary[:, start:end].unbind(0)
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        normed: Tensor = functional.rms_norm(x, weight.shape, weight, self.eps)
        return normed

    def _rotary(self, theta: float, positions: int) -> Tensor:
        """(2, positions, D): cosines and sines, computed on the CPU."""
        half = torch.arange(0, self.head_width, 2, dtype=torch.float64) / self.head_width
        angles = torch.arange(positions, dtype=torch.float64)[:, None] * theta**-half
        both = torch.cat([angles, angles], 1)
        return torch.stack([both.cos(), both.sin()]).to(self.device)


def _layer(layer: torch.nn.Module) -> _Layer:
    """Weights of transformers' LlamaDecoderLayer, matrices transposed."""
    weight = {name.removesuffix(".weight"): value.detach().double().t() for name, value in layer.named_parameters()}
    query, key, value, out = (weight[f"self_attn.{name}_proj"] for name in "qkvo")
    gate, up, down = (weight[f"mlp.{name}_proj"] for name in ("gate", "up", "down"))
    first, second = weight["input_layernorm"], weight["post_attention_layernorm"]
    return _Layer(first, query, key, value, out, second, gate, up, down)
