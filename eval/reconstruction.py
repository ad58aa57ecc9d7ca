"""Reconstruction: what is lost, and what it costs, when clips pass through a tokenizer and an allocator."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from genvid.eval.metrics.codebook import CodebookUsage
from genvid.eval.metrics.fidelity import ClipMean
from genvid.eval.metrics.frechet import FrechetVideoDistance
from genvid.eval.metrics.rate import TokenRate
from genvid.tokens import BlockTokens, VideoTokenizer


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: VideoTokenizer,
    allocator: Callable[[BlockTokens], BlockTokens],
    batches: Iterable[Tensor],
    *,
    fidelity: Iterable[ClipMean],
    frechet: FrechetVideoDistance | None = None,
    quantize: bool = False,
) -> dict[str, float]:
    """Batches (B, 3, T, H, W) in [-1, 1] -> name -> value, with the rate, the number of clips and,
    if tokens are discrete, codebook usage.

    `quantize` rounds reconstructions to 8 bits first. Metrics are reset; across processes each feeds its own share and
    every one returns the whole.
    """
    metrics = list(fidelity)
    rate = TokenRate(tokenizer.spec)
    usage = CodebookUsage(tokenizer.spec.codebook_size) if tokenizer.spec.codebook_size else None
    for metric in metrics:
        metric.reset()
    if frechet:
        frechet.reset()
    for video in batches:
        tokens = allocator(tokenizer.encode(video))
        restored = tokenizer.decode(tokens).clamp(-1, 1)
        if quantize:
            restored = round_to_bytes(restored)
        rate.to(video.device).update(tokens)
        if usage:
            usage.to(video.device).update(tokens)
        for metric in metrics:
            metric.to(video.device).update(restored, video)
        if frechet:
            frechet.to(video.device).update(video, real=True)
            frechet.update(restored, real=False)
    results = {metric.name: float(metric.compute()) for metric in metrics}
    if frechet:
        results[frechet.name] = float(frechet.compute())
    for group in (rate, usage):
        if group is not None:
            results |= {name: float(value) for name, value in group.compute().items()}
    return results


def round_to_bytes(video: Tensor) -> Tensor:
    """[-1, 1] -> the nearest of the 256 values that a file can hold, in [-1, 1]."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
