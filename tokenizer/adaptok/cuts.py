"""Where the blocks of a batch are cut: after the last kept token, or in few shapes, so that graphs are replayed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_FEW = 4
"""Videos in a batch for which launches take longer than the work."""


class Cut(NamedTuple):
    """Of one block of B videos."""

    length: int
    """Its first tokens, of which none after them is kept."""
    ragged: bool
    """Whether some of these may be dropped."""
    room: int
    """Tokens of the block among the past ones."""


def kept_cut(keep: Tensor, repeated: bool) -> Cut:
    """(B, 1, L) kept tokens -> the shortest cut; with `repeated` one of four, with room for all tokens, so that few
    shapes occur and graphs are replayed."""
    some, every = torch.stack([keep.any(0), keep.all(0)]).cpu()  # the one wait for the device
    (longest,), capacity = longest_kept(some[None]), keep.shape[2]
    if repeated:
        return Cut(rounded(longest, capacity), True, capacity)
    return Cut(longest, not every[:, :longest].all(), longest)


def few(tokens: Tensor) -> bool:
    """Whether values (B, ...) of tokens are of few videos on a GPU."""
    return tokens.is_cuda and len(tokens) <= _FEW


def rounded(length: int, capacity: int) -> int:
    """The next quarter of the capacity."""
    quarter = -(-capacity // 4)
    return min(capacity, max(1, -(-length // quarter)) * quarter)


def longest_kept(keep: Tensor) -> list[int]:
    """(B, G, L) kept tokens -> for each block, the length up to the last token that any clip keeps."""
    used = keep.any(0).cpu()
    positions = torch.arange(1, used.shape[1] + 1)
    lengths: list[int] = (used * positions).amax(1).tolist()
    return lengths
