"""Causal attention within rows that lie one after another: the attention of transformers' Llama in packed training.

On a GPU that has it, in half precision, it is torch's variable-length flash attention, which reads every row once and
no padding.
Everywhere else rows are spread out, padded, for the attention alone: exact on any device and in any precision.

N tokens of R rows, H heads, D channels of a head. Row r holds the tokens `starts[r]` to `starts[r + 1] - 1`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from genvid.hardware import has_flash

NAME = "genvid_rows"
"""Its name in a LlamaConfig. Without `cu_seq_lens_q` it is transformers' "sdpa"."""


def row_numbers(starts: Tensor, count: int) -> Tensor:
    """(R + 1,) starts -> (count,) row of every token."""
    tokens = torch.arange(count, device=starts.device, dtype=starts.dtype)
    return torch.searchsorted(starts, tokens, right=True) - 1


def row_positions(starts: Tensor, count: int) -> Tensor:
    """(R + 1,) starts -> (count,) place of every token in its row."""
    return torch.arange(count, device=starts.device) - starts.long()[row_numbers(starts, count)]


def row_attention(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int) -> Tensor:
    """(N, H, D) queries, keys and values, (R + 1,) int32 starts of rows of at most `longest` -> (N, H, D)."""
    if _has_flash(value.device, value.dtype, value.shape[-1]):
        # Rotary angles in float32 make float32 of queries and keys.
        query, key = query.to(value.dtype), key.to(value.dtype)
        causal = (-1, 0)
        return varlen_attn(query, key, value, starts, starts, longest, longest, window_size=causal)  # type: ignore[return-value]
    return _spread_attention(query, key, value, starts, longest)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_flash(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    return has_flash(device, dtype, channels)


def _spread_attention(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int) -> Tensor:
    """The same, of rows that are padded to `longest`. Causality hides the padding behind a row."""
    rows = len(starts) - 1
    cells = row_numbers(starts, len(query)) * longest + row_positions(starts, len(query))

    def spread(values: Tensor) -> Tensor:
        grid = values.new_zeros(rows * longest, *values.shape[1:]).index_copy(0, cells, values)
        return grid.view(rows, longest, *values.shape[1:]).transpose(1, 2)

    attended = functional.scaled_dot_product_attention(spread(query), spread(key), spread(value), is_causal=True)
    return attended.transpose(1, 2).flatten(0, 1).index_select(0, cells)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention for LlamaAttention: (B, H, N, D) -> (B, N, H, D). The names of arguments are transformers'.

    With `cu_seq_lens_q` (B is 1) the tokens are rows one after another.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)  # type: ignore[no-any-return]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return row_attention(query, key, value, cu_seq_lens_q, max_length_q)[None], None


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
