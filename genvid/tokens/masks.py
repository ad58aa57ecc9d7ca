"""Keep masks by an adaptive code, and its length.

The context of a position is the mask at this position in the last block, to its left and above it: eight cases. Their
probabilities are counted over earlier blocks, which the decoder has too; an arithmetic coder comes within two bits of
the sum. One of three block types marks blocks that are dropped or kept completely.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genvid.tokens.entropy import Decoder, Encoder

_PRIOR = 0.5
"""Initial count of each case (Krichevsky and Trofimov 1981)."""
_DROPPED, _KEPT, _MIXED = range(3)
"""Types of blocks."""

Mask = NDArray[np.bool_]


def mask_bits(keep: Tensor, columns: int) -> Tensor:
    """(B, G, L) kept positions in frames of `columns` columns -> (B,) float64 bits."""
    frames = torch.unflatten(keep, 2, (-1, columns))
    clips = len(keep)
    counts = torch.full((clips, 8, 2), _PRIOR, dtype=torch.float64, device=keep.device)
    bits = torch.zeros(clips, dtype=torch.float64, device=keep.device)
    last = torch.zeros_like(frames[:, 0])
    for frame in frames.unbind(1):
        left, above = torch.zeros_like(frame), torch.zeros_like(frame)
        left[:, :, 1:], above[:, 1:] = frame[:, :, :-1], frame[:, :-1]
        symbol = (((last.long() * 2 + left) * 2 + above) * 2 + frame).flatten(1)
        probability = (counts / counts.sum(2, keepdim=True)).flatten(1)
        coded = -probability.gather(1, symbol).log2().sum(1)
        mixed = frame.flatten(1).any(1) & ~frame.flatten(1).all(1)
        bits += math.log2(3) + torch.where(mixed, coded, 0)
        seen = torch.zeros_like(probability).scatter_add_(1, symbol, torch.ones_like(symbol, dtype=torch.float64))
        counts += torch.where(mixed[:, None], seen, 0).view_as(counts)
        last = frame
    return bits


def put_mask(encoder: Encoder, keep: Mask, columns: int) -> None:
    """(G, L) kept positions, in `mask_bits`."""
    counts, last = np.ones((8, 2), np.int64), np.zeros((keep.shape[1] // columns, columns), bool)
    for frame in keep.reshape(len(keep), -1, columns):
        kind = _KEPT if frame.all() else _MIXED if frame.any() else _DROPPED
        encoder.put_uniform(np.array([kind]), 3)
        if kind == _MIXED:
            context = _contexts(frame, last).ravel()
            encoder.put(frame.ravel().astype(np.int32), counts[context])
            _count(counts, context, frame)
        last = frame


def get_mask(decoder: Decoder, blocks: int, capacity: int, columns: int) -> Mask:
    """The inverse of `put_mask`."""
    counts, keep = np.ones((8, 2), np.int64), np.zeros((blocks, capacity // columns, columns), bool)
    last = np.zeros(keep.shape[1:], bool)
    for frame in keep:
        kind = int(decoder.get_uniform(3, 1)[0])
        if kind == _MIXED:
            frame[:] = _get_frame(decoder, last, counts)
            _count(counts, _contexts(frame, last).ravel(), frame)
        else:
            frame[:] = kind == _KEPT
        last = frame
    return keep.reshape(blocks, capacity)


def _get_frame(decoder: Decoder, last: Mask, counts: NDArray[np.int64]) -> Mask:
    """A mixed frame, position after position: each is the context of the next."""
    before, frame = last.tolist(), [[False] * last.shape[1] for _ in range(last.shape[0])]
    above = [False] * last.shape[1]
    for row, earlier in zip(frame, before, strict=True):
        left = False
        for column in range(len(row)):
            context = (earlier[column] * 2 + left) * 2 + above[column]
            row[column] = left = bool(decoder.get(counts[context], 1)[0])
        above = row
    return np.array(frame)


def _contexts(frame: Mask, last: Mask) -> NDArray[np.int64]:
    """The case of each position, 0 to 7."""
    left, above = np.zeros_like(frame), np.zeros_like(frame)
    left[:, 1:], above[1:] = frame[:, :-1], frame[:-1]
    return (last * 2 + left) * 2 + above


def _count(counts: NDArray[np.int64], context: NDArray[np.int64], frame: Mask) -> None:
    """Count the positions of a mixed frame, twice each: counts begin at 1 in place of `_PRIOR`."""
    np.add.at(counts, (context, frame.ravel().astype(np.int64)), 2)
