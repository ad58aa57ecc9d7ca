"""Batches: the one form in which data reach training, evaluation and sampling."""

from torch import Tensor

Batch = dict[str, Tensor]
"""Named tensors with a common first dimension. `seed` (B,) int64 is always there: the clip's own random seed."""
