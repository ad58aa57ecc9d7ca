"""Linear probe: how well a linear map of tokens gives the class of their clip."""

from __future__ import annotations

import torch
from torch import Tensor

from genvid import noise

RIDGE = 1e-2
"""Weight of the squared norm, in units of the mean squared length of a vector."""


def probe_accuracy(vectors: Tensor, labels: Tensor) -> float:
    """(N, F) vectors and their classes (N,) -> share of the right classes, from 0 to 1.

    Ridge regression of one-hot classes, with a constant, fitted to a drawn half of the clips and measured on the other;
    then the other way round, and the mean of both.
    """
    half = len(labels) // 2
    if half < 1:
        raise ValueError(f"a probe is fitted to half of the clips and measured on the other: it needs 2, got {half}")
    order = noise.permutation(0, "probe", len(labels)).to(vectors.device)
    first, second = order[:half], order[half:]
    found = [_right(vectors, labels, *halves) for halves in ((first, second), (second, first))]
    return sum(found) / 2


def _right(vectors: Tensor, labels: Tensor, fitted: Tensor, measured: Tensor) -> float:
    known, unknown = vectors[fitted].double(), vectors[measured].double()
    mean = known.mean(0)
    known, unknown = known - mean, unknown - mean
    wanted = torch.nn.functional.one_hot(labels[fitted], int(labels.max()) + 1).to(known)
    bias = wanted.mean(0)
    # Of the clips and not of the features, which may be many more.
    gram = known @ known.T
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
    scores = unknown @ (known.T @ torch.linalg.solve(gram, wanted - bias)) + bias
    return float((scores.argmax(1) == labels[measured]).double().mean())


def prefix_vectors(codes: Tensor, codebook: Tensor, count: int) -> Tensor:
    """(N, G, L) codes, -1 where dropped, and (codebook size, C) vectors -> (N, G * count * C): the first `count` tokens
    of each block, zeros where dropped."""
    first = codes[:, :, :count].long()
    vectors = codebook[first.clamp(min=0)] * (first >= 0)[..., None]
    return vectors.flatten(1)
