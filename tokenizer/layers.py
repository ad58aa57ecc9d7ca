"""Pre-norm transformer blocks in the geometry of the published models.

Which tokens attend to which is decided by an `attend` function of queries, keys and values
(genvid.tokenizer.adaptok.attention), so the same weights serve one-shot, ragged and cached computation.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from genvid.hardware import HALF, hardware

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values (B, heads, S, head_dim) -> (B, heads, S, head_dim), or of some of the tokens alone."""


def of_chosen(attend: Attend, chosen: slice | Tensor) -> Attend:
    """`attend`, which takes the queries of the `chosen` tokens (Q,) alone, for the queries of all."""
    return lambda queries, keys, values: attend(queries[:, :, chosen], keys, values)


@dataclass(frozen=True)
class StackConfig:
    """Size of a stack of transformer blocks."""

    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1:
            raise ValueError(f"width, depth and heads are at least 1, got {self.width}, {self.depth} and {self.heads}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of the number of heads ({self.heads})")

    def build(self) -> nn.ModuleList:
        """`depth` blocks."""
        return nn.ModuleList(TransformerBlock(self.width, self.heads) for _ in range(self.depth))


class TransformerBlock(nn.Module):
    """Attention and a GELU MLP, each on the layer-normed input of a residual branch."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, attend: Attend, chosen: slice | Tensor = slice(None)) -> Tensor:
        """(B, S, dim) -> (B, S, dim): of all tokens, or of the `chosen` (Q,), which `attend` then returns alone."""
        kernels, dtype = self._kernels(x), self.qkv.weight.dtype
        normed = self.attention_norm(x) if kernels is None else kernels.normed(self.attention_norm, x, None, dtype)
        projected = product(self.qkv, normed)
        queries, keys, values = projected.view(*projected.shape[:-1], 3, self.heads, -1).unbind(2)
        attended = attend(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
        x, added = x[:, chosen], product(self.out, attended.transpose(1, 2).flatten(2))
        if kernels is None:
            x = x + added
            return x + self._mixed(self.mlp_norm(x))
        total: Tensor = kernels.summed(x, added, self._mixed(kernels.normed(self.mlp_norm, x, added, dtype)))
        return total

    def _mixed(self, normed: Tensor) -> Tensor:
        return product(self.down, _gelu_product(self.up, normed))

    def _kernels(self, x: Tensor) -> ModuleType | None:
        """Triton kernels of sums and norms, in use without gradients where `round` was called and the GPU has them. The
        compiler makes such ones by itself."""
        if self.qkv.weight.dtype not in HALF or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        # Imported here: Triton is not installed everywhere.
        return importlib.import_module("genvid.tokenizer.layer_kernels") if hardware(x.device).kernels else None

    def round(self, dtype: torch.dtype) -> None:
        """Round the weights of the products to `dtype` and compute these in it, as autocast does, which rounds them at
        every call. Norms and the sum stay as they are."""
        for layer in (self.qkv, self.out, self.up, self.down):
            layer.to(dtype)


def product(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer` in the precision of its weights."""
    y: Tensor = layer(x.to(layer.weight.dtype) if layer.weight.dtype in HALF else x)
    return y


def dtype_of_products(layers: nn.ModuleList, device: torch.device) -> torch.dtype:
    """Type in which `TransformerBlock`s compute products at this moment."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return layers[0].get_parameter("qkv.weight").dtype


def _gelu_product(layer: nn.Linear, x: Tensor) -> Tensor:
    """The GELU of `product`. In half precision on a GPU it has the form with a tanh: without gradients within the
    product, of unrounded ones, so of normal ones its root mean square error is 0.0016, where the GELU of the rounded
    product has 0.0024; in a compiled training step as `_sigmoid_gelu`."""
    weight, bias = layer.weight, layer.bias
    if x.is_cuda and weight.dtype in HALF and not torch.is_grad_enabled():
        rows = x.to(weight.dtype).flatten(0, -2)
        return torch._addmm_activation(bias, rows, weight.t(), use_gelu=True).view(*x.shape[:-1], len(weight))
    mixed = product(layer, x)
    compiled = torch.compiler.is_compiling() and mixed.is_cuda and mixed.dtype in HALF
    return _sigmoid_gelu(mixed) if compiled else gelu(mixed)


def _sigmoid_gelu(x: Tensor) -> Tensor:
    """`gelu(x, approximate="tanh")`, by a sigmoid: compiled, it and its gradients take the time of reading and writing
    them, where the error function takes half as long again."""
    y = x.float()
    return (y * torch.sigmoid(2 * math.sqrt(2 / math.pi) * y * (1 + 0.044715 * y * y))).to(x.dtype)


def initialise(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in every linear layer within `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def learned_table(*shape: int, std: float = 0.02) -> nn.Parameter:
    """A learned table of position or query vectors."""
    return nn.Parameter(torch.randn(shape) * std)
