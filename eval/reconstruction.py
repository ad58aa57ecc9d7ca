"""Reconstruction: what is lost, and what it costs, when clips pass through a tokenizer and an allocator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from genvid.eval.metrics.codebook import CodebookUsage
from genvid.eval.metrics.fidelity import ClipMean
from genvid.eval.metrics.frechet import FrechetVideoDistance
from genvid.eval.metrics.rate import TokenRate
from genvid.eval.pixels import round_to_bytes
from genvid.eval.protocols import EvaluationProtocol
from genvid.eval.report import Better, Number
from genvid.tokens import BlockTokens, TokenizerSpec, VideoTokenizer


class ReconstructionScores:
    """Everything that is measured on reconstructions: fidelity, the rate and, if discrete, codebook usage.

    Across processes each feeds its own share and every one computes the whole.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        fidelity: Sequence[ClipMean],
        *,
        frechet: FrechetVideoDistance | None = None,
        quantize: bool = False,
    ) -> None:
        """`quantize` rounds originals and reconstructions to 8 bits before they are scored."""
        self.fidelity, self.frechet, self.quantize = list(fidelity), frechet, quantize
        self.rate = TokenRate(spec)
        self.usage = CodebookUsage(spec.codebook_size) if spec.codebook_size else None

    def update(self, video: Tensor, restored: Tensor, tokens: BlockTokens) -> None:
        """Count a batch: originals and reconstructions (B, 3, T, H, W) in [-1, 1], and the kept tokens."""
        restored = restored.clamp(-1, 1)
        if self.quantize:
            video, restored = round_to_bytes(video), round_to_bytes(restored)
        self.rate.to(video.device).update(tokens)
        if self.usage:
            self.usage.to(video.device).update(tokens)
        for metric in self.fidelity:
            metric.to(video.device).update(restored, video)
        if self.frechet:
            self.frechet.to(video.device).update(video, real=True)
            self.frechet.update(restored, real=False)

    def compute(self) -> dict[str, float]:
        """Name -> value, with the count of clips."""
        results = {metric.name: float(metric.compute()) for metric in self.fidelity}
        if self.frechet:
            results[self.frechet.name] = float(self.frechet.compute())
        for group in (self.rate, self.usage):
            if group is not None:
                results |= {name: float(value) for name, value in group.compute().items()}
        return results

    def numbers(self, values: Mapping[str, float], protocol: EvaluationProtocol, count: int) -> list[Number]:
        """Values by name, measured on `count` clips, as reports hold them: what is no score here is neither good nor
        bad."""
        known: dict[str, tuple[str, Better]] = {metric.name: (metric.unit, metric.better) for metric in self.fidelity}
        if self.frechet:
            known[self.frechet.name] = ("", "lower")
        marked = [(name, value, *known.get(name, ("", "neither"))) for name, value in values.items()]
        return [Number(name, value, protocol, count, unit=unit, better=better) for name, value, unit, better in marked]


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: VideoTokenizer,
    allocator: Callable[[BlockTokens], BlockTokens],
    batches: Iterable[Tensor],
    *,
    fidelity: Sequence[ClipMean],
    frechet: FrechetVideoDistance | None = None,
    quantize: bool = False,
) -> dict[str, float]:
    """Batches (B, 3, T, H, W) in [-1, 1] -> name -> value. Metrics are reset first."""
    metrics: list[ClipMean | FrechetVideoDistance] = [*fidelity, *([frechet] if frechet else [])]
    for metric in metrics:
        metric.reset()
    scores = ReconstructionScores(tokenizer.spec, fidelity, frechet=frechet, quantize=quantize)
    for video in batches:
        tokens = allocator(tokenizer.encode(video))
        scores.update(video, tokenizer.decode(tokens), tokens)
    return scores.compute()
