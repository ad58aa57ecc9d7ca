"""Latents, rounded to multiples of a step and coded channel by channel by an adaptive code.

The frequencies of a channel begin as a bell of 24 steps and count the latents of earlier blocks of the segment.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from genvid.tokens.blocks import LatentSteps
from genvid.tokens.entropy import Decoder, Encoder

REACH = 127
"""Greatest multiple that has a symbol of its own; others follow an escape, symbol 0, as 32 bits."""
BELL = np.array([1] + [1 + math.floor(64 * math.exp(-((n / 24) ** 2) / 2) + 0.5) for n in range(-REACH, REACH + 1)])
"""Frequencies before the first block, of the escape and of the multiples in order."""
_WEIGHT = 32
"""Of a latent that was counted."""


def quantise(latents: NDArray[np.float32], steps: LatentSteps) -> NDArray[np.int64]:
    """(N, C) -> the nearest multiples of the steps; ValueError for latents that are not finite or too far away."""
    multiples: NDArray[np.float64] = np.floor(
        (latents.astype(np.float64) - np.array(steps.mean)) / np.array(steps.step) + 0.5
    )
    if not (np.abs(multiples) < 2**31).all():
        raise ValueError(f"latents of up to {np.abs(latents).max():g} cannot be stored in steps of {min(steps.step):g}")
    return multiples.astype(np.int64)


def dequantise(multiples: NDArray[np.int64], steps: LatentSteps) -> NDArray[np.float32]:
    """The inverse of `quantise`, to half a step and the rounding of float32."""
    exact: NDArray[np.float64] = np.array(steps.mean) + multiples * np.array(steps.step)
    return exact.astype(np.float32)


def put_latents(encoder: Encoder, blocks: list[NDArray[np.int64]]) -> None:
    """Multiples (N, C) of each block."""
    frequencies = np.tile(BELL, (blocks[0].shape[1], 1))
    for block in blocks:
        for channel, own in zip(block.T, frequencies, strict=True):
            symbols = np.where(np.abs(channel) <= REACH, channel + REACH + 1, 0)
            encoder.put(symbols, own)
            far = channel[symbols == 0] + 2**31
            encoder.put_uniform(far >> 16, 2**16)
            encoder.put_uniform(far & 0xFFFF, 2**16)
            own += _WEIGHT * np.bincount(symbols, minlength=len(own))


def get_latents(decoder: Decoder, lengths: list[int], channels: int) -> list[NDArray[np.int64]]:
    """The inverse of `put_latents`, of blocks of so many latents."""
    frequencies, blocks = np.tile(BELL, (channels, 1)), []
    for length in lengths:
        block = np.zeros((length, channels), np.int64)
        for channel, own in zip(block.T, frequencies, strict=True):
            symbols = decoder.get(own, length)
            channel[:] = symbols - REACH - 1
            far = symbols == 0
            high, low = (decoder.get_uniform(2**16, int(far.sum())).astype(np.int64) for _ in range(2))
            channel[far] = (high << 16 | low) - 2**31
            own += _WEIGHT * np.bincount(symbols, minlength=len(own))
        blocks.append(block)
    return blocks
