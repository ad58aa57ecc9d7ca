"""Sources of distortion curves: a scorer's prediction or a measurement, behind one protocol."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from genvid.allocation.curves import check_curves, running_minimum
from genvid.tokens import BlockTokens


class DistortionPredictor(Protocol):
    """Predicts the distortion of a block at each candidate size, given the cuts of the blocks before it."""

    @property
    def sizes(self) -> Tensor:
        """(K,) int64 ascending candidate sizes, on the CPU."""
        ...

    def predict(self, tokens: BlockTokens, block: int) -> Tensor:
        """(B, K) distortion of `block` when it keeps each size.

        Blocks before it are cut to `tokens.keep`; `block` itself is whole; later blocks must not matter.
        A row must not depend on the other rows.
        """
        ...


class FixedCurves:
    """Given (N, G, K) curves that do not react to earlier cuts, for the N clips of one BlockTokens, in their order."""

    def __init__(self, curves: Tensor, sizes: Tensor) -> None:
        self._curves = curves
        self.sizes = sizes

    def predict(self, tokens: BlockTokens, block: int) -> Tensor:
        if len(tokens.keep) != len(self._curves):
            raise ValueError(f"curves of {len(self._curves)} clips do not fit tokens of {len(tokens.keep)}")
        return self._curves[:, block]


def unset_lengths(tokens: BlockTokens) -> Tensor:
    """(B, G) int64 on the CPU, to be set block by block. Those kept so far are not read, a wait for the device."""
    return torch.zeros(tokens.keep.shape[:2], dtype=torch.int64)


def predict_curves(
    predictor: DistortionPredictor, tokens: BlockTokens, lengths: Tensor, block: int, *, monotone: bool = True
) -> Tensor:
    """(B, K) float64 curves of `block`, earlier blocks cut to their (B, G) `lengths`; `monotone`: never rising.

    Curves are copied to the CPU, where the rules run: one wait for the device, and results that do not depend on it.

    ValueError when the predictor returns NaN or -inf.
    """
    earlier = lengths.clone()
    earlier[:, block:] = tokens.keep.shape[-1]
    curves = check_curves(predictor.predict(tokens.tail_drop(earlier), block).cpu())
    return running_minimum(curves) if monotone else curves.double()


def predict_all_curves(predictor: DistortionPredictor, tokens: BlockTokens, lengths: Tensor) -> Tensor:
    """(B, G, K) monotone curves of every block under one cut."""
    blocks = range(tokens.keep.shape[1])
    return torch.stack([predict_curves(predictor, tokens, lengths, block) for block in blocks], 1)
