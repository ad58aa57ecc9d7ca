"""The forward pass of sampling: a Llama over batch slots, with keys and values in one static cache.

Unlike transformers' module, every shape is fixed, weights that are read together are stored together, and a row reads
only the filled part of its cache. A prompt goes through the same pass: its tokens are rows that share a slot, and each
attends to its own and earlier positions.

N rows of a pass, H heads, E heads of keys and values, D channels of a head, C positions of the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from genvid.ar.row_model import RowModel
from genvid.generation.engine.attention import Attention, plain_or_triton
from genvid.generation.engine.weights import Layer, layer_weights
from genvid.hardware import hardware

if TYPE_CHECKING:
    from genvid.generation.engine.single_row import SingleRow


class LayerFunctions(NamedTuple):
    """The layers without their attention: before the first, between two, after the last."""

    before: Callable[..., Tensor]
    between: Callable[..., tuple[Tensor, Tensor]]
    after: Callable[..., Tensor]


class SlotNetwork:
    """Weights and cache of a model for a fixed number of batch slots."""

    def __init__(
        self,
        model: RowModel,
        slots: int,
        *,
        dtype: torch.dtype | None = None,
        attention: Attention | None = None,
        compiled: bool = False,
    ) -> None:
        sizes, llama = model.config.transformer, model.backbone
        parameter = llama.embed_tokens.weight
        device, dtype = parameter.device, dtype or parameter.dtype
        self._attention = attention or plain_or_triton(device)
        self._eps = sizes.norm_eps
        self._layers = [layer_weights(layer, dtype) for layer in llama.layers]
        self.embedding, self._norm = model.input_embeddings.detach().to(dtype), llama.norm.weight.detach().to(dtype)
        self._head = model.head_weight.detach().to(dtype).contiguous()
        # One position more than inputs, for the last token of a row (written, never read); a multiple of 64.
        capacity = -(-(sizes.max_positions + 1) // 64) * 64
        every = torch.arange(capacity, device=device)[None]
        cos, sin = llama.rotary_emb(torch.zeros(1, device=device), every)
        self._rotary = (cos[0].float().contiguous(), sin[0].float().contiguous())
        learned = model.position_table
        self._positions = None
        if learned is not None:
            self._positions = functional.pad(learned.detach().to(dtype), (0, 0, 0, capacity - len(learned)))
        shape = (sizes.depth, 2, slots, sizes.kv_heads, capacity, sizes.width // sizes.heads)
        self.cache = torch.zeros(shape, dtype=dtype, device=device)
        """(depth, 2, slots, E, C, D): keys and values of every layer."""
        functions = LayerFunctions(_before, _between, _after)  # compiled once for all layers
        if compiled:
            functions = LayerFunctions._make(torch.compile(function, dynamic=False) for function in functions)
        self._functions = functions
        self._single_row = None if attention else self._for_one_row()

    @property
    def capacity(self) -> int:
        """Positions of a slot."""
        return self.cache.shape[4]

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        lengths: Tensor,
        limit: int,
        slots: Tensor | None = None,
        together: int = 1,
    ) -> Tensor:
        """(N,) tokens at (N,) positions, over the first (N,) `lengths` of their slots -> (N, width) states.

        Without `slots`, `together` consecutive tokens are of one slot: token i of slot i // together.
        """
        x = functional.embedding(tokens, self.embedding)
        if self._positions is not None:
            x = x + self._positions[positions]
        if self._single_row and slots is None and together == 1:
            return self._single_row(x, positions, lengths, limit)
        qkv = self._functions.before(x, self._layers[0], self._eps)
        for number, layer in enumerate(self._layers):
            cache = self.cache[number]
            queries = self._attention.append(qkv, cache, slots, positions, self._rotary, together)
            attended = self._attention.attend(queries, cache, slots, lengths, limit, together)
            if number + 1 < len(self._layers):
                x, qkv = self._functions.between(x, attended, layer, self._layers[number + 1], self._eps)
            else:
                x = self._functions.after(x, attended, layer, self._eps)
        return x

    def logits(self, states: Tensor) -> Tensor:
        """(N, width) -> (N, num_outputs) float32."""
        if self._single_row:
            return self._single_row.logits(states)
        return self.project(self.normed(states))

    def normed(self, states: Tensor) -> Tensor:
        """(..., width) -> the input of the output layer."""
        return _normed(states, self._norm, self._eps)

    def project(self, normed: Tensor) -> Tensor:
        """(..., width) normed states -> (..., num_outputs) float32."""
        return functional.linear(normed, self._head).float()

    def _for_one_row(self) -> SingleRow | None:
        """The kernels for a single slot; None where they do not run."""
        if not hardware(self.cache.device).kernels:
            return None
        from genvid.generation.engine.single_row import SingleRow

        if not SingleRow.fits(self.cache):
            return None
        return SingleRow(self._layers, self._norm, self._head, self.cache, self._rotary, self._eps)

    def share(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a slot to another."""
        self.cache[:, :, target, :, :length] = self.cache[:, :, source, :, :length]


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, eps)


def _before(x: Tensor, layer: Layer, eps: float) -> Tensor:
    """From the input of a layer to its queries, keys and values."""
    return functional.linear(_normed(x, layer.norm, eps), layer.qkv)


def _after(x: Tensor, attended: Tensor, layer: Layer, eps: float) -> Tensor:
    """From the attention of a layer to its output."""
    x = x + functional.linear(attended, layer.out)
    gate, up = functional.linear(_normed(x, layer.mlp_norm, eps), layer.gate_up).chunk(2, -1)
    return x + functional.linear(functional.silu(gate) * up, layer.down)


def _between(x: Tensor, attended: Tensor, layer: Layer, following: Layer, eps: float) -> tuple[Tensor, Tensor]:
    """From the attention of a layer to the queries, keys and values of the next."""
    x = _after(x, attended, layer, eps)
    return x, _before(x, following, eps)
