"""The precision in which models compute. The default of every command, recipe and model is fp32 on every device."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
PRECISIONS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of weights and cache of an autoregressive model, and of products of a tokenizer."""


def dtype_of(precision: Precision) -> torch.dtype:
    """ValueError for another precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, got {precision!r}")
    return PRECISIONS[precision]
