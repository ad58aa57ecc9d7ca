"""Training the inpainter on the latents of a frozen codec."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genvid import noise
from genvid.batch import Batch
from genvid.tokenizer.lit.budget import Paths
from genvid.tokenizer.lit.model import LIT, as_tokens
from genvid.tokenizer.lit.redundancy import walk
from genvid.tokenizer.lit.reference import interval_means, last_kept
from genvid.train.task import StepOutput, TrainingTask


@dataclass(frozen=True)
class LITObjective:
    """Masks of training, and the loss."""

    lowest_rate: float = 0.05
    """Keep rates are uniform in [lowest_rate, 1]; below the first block's share it alone is kept."""
    prices: tuple[float, float] = (1e-4, 1.0)
    """A quarter of the clips is thinned by a log-uniform price from this range instead of a keep rate: as under one
    price for all clips, still ones keep next to nothing."""
    threshold_masks: float = 0.2
    """Share of clips thinned by a threshold, as in causal streams, instead of on the cheapest paths; their latents are
    sent unchanged, not as means."""
    random_masks: float = 0.1
    """Share of clips with random masks, for use with other rules; their latents are sent unchanged."""
    pixel_weight: float = 0.0
    """Weight of the log of the decoded squared error. Decoding is most of a step."""
    pixel_share: float = 1.0
    """Share of the clips decoded for it, drawn from their seeds; each counts 1 / `pixel_share` times."""

    def __post_init__(self) -> None:
        if not 0 < self.lowest_rate < 1:
            raise ValueError(f"lowest_rate is in (0, 1), got {self}")
        if not 0 < self.prices[0] <= self.prices[1]:
            raise ValueError(f"prices are a range of numbers above 0, got {self.prices}")
        if min(self.threshold_masks, self.random_masks) < 0 or self.threshold_masks + self.random_masks > 1:
            raise ValueError(f"threshold_masks and random_masks are shares that sum to at most 1, got {self}")
        if self.pixel_weight < 0 or not 0 < self.pixel_share <= 1:
            raise ValueError(f"pixel_weight is at least 0 and pixel_share in (0, 1], got {self}")


class LITTask(TrainingTask):
    """Loss: the log of the squared pixel error, estimated to first order as the codec's own error plus the latents'
    error by the metric. A decibel counts the same on every clip, as in the mean PSNR. Optionally the log of the decoded
    error is added (`pixel_weight`)."""

    compiled_across_layers = True
    FLOOR = 1e-5
    """Added to the squared error (of [0, 1] pixels) under the log: 50 dB."""

    def __init__(self, lit: LIT, objective: LITObjective) -> None:
        super().__init__()
        self.lit, self.objective = lit, objective

    def exportable(self) -> LIT:
        return self.lit

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        return self.lit.inpainter.parameters()

    def layers(self) -> Iterable[nn.Module]:
        return [*self.lit.inpainter.spatial, *self.lit.inpainter.temporal]

    def use_compiler(self, mode: str | None) -> None:
        """The inpainter in one piece, and the codec's halves if it supports that."""
        self.lit.inpainter.use_compiler()
        self.lit.codec.use_compiler()

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        lit, video = self.lit, batch["video"]
        # Latents are targets: float32 under autocast too.
        with torch.no_grad(), torch.autocast(video.device.type, enabled=False):
            coded = lit.codec.encode(video)
            latents = lit.normalise(as_tokens(coded).latents)  # type: ignore[arg-type]
            keep, means = self.draw(latents, batch["seed"])
            sent = torch.where(means[:, None, None, None], interval_means(latents, keep), latents)
        lost = self.own_error(coded, video) + self.FLOOR
        filled, _, _ = lit.inpainter(sent, keep, means, lit.grid)
        error = lost + lit.pixel_error * _squared_error(filled, latents)
        losses = error.log() / 2
        with torch.no_grad():
            copied_error = lost + lit.pixel_error * _squared_error(last_kept(sent, keep)[0], latents)
        terms = {
            "psnr": -10 * error.detach().log10().mean(),
            "gain": 10 * (copied_error / error.detach()).log10().mean(),
            "keep_rate": keep.double().mean(),
        }
        if not self.objective.pixel_weight:
            return StepOutput(losses.sum(), terms)
        decoded = self.decoded_error(filled, batch)
        weight = self.objective.pixel_weight / self.objective.pixel_share
        loss = losses.sum() + weight * (decoded + self.FLOOR).log().sum() / 2
        number = torch.tensor(len(decoded), device=video.device)
        terms["decoded_psnr"] = -10 * decoded.detach().log10().sum() / number.clamp(min=1)
        return StepOutput(loss, terms, counts={"decoded_psnr": number})

    def decoded_error(self, filled: Tensor, batch: Batch) -> Tensor:
        """(N,) mean squared error of [0, 1] pixels of the decoded clips, chosen by their seeds."""
        chosen = noise.uniform(batch["seed"], "decoded", 1)[:, 0] < self.objective.pixel_share
        if not chosen.any():
            return filled.new_zeros(0)
        restored = self.lit.render(self.lit.denormalise(filled[chosen]))
        return _squared_error(restored.float(), batch["video"][chosen]) / 4

    @torch.no_grad()
    def own_error(self, latents: Tensor, video: Tensor) -> Tensor:
        """(B,) mean squared error of [0, 1] pixels of clips (B, 3, T, H, W) decoded from all their latents
        (B, C, G, h, w); measured on the first frames only, because decoding all would be most of a step."""
        codec, step = self.lit.codec, self.lit.codec.geometry.chunk_frames
        restored = codec.decode(latents[:, :, : 1 + step // codec.geometry.temporal_stride]).float()
        return _squared_error(restored[:, :, 1:], video[:, :, 1 : 1 + step]) / 4

    def draw(self, latents: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """(B, G, L) kept positions for normalised latents, and (B,) whether means are sent, from each clip's seed."""
        objective, (blocks, capacity) = self.objective, latents.shape[1:3]
        rate, price, priced, rule = noise.uniform(seeds, "masks", 4).to(latents).unbind(1)
        rate = objective.lowest_rate + (1 - objective.lowest_rate) * rate
        positions = (rate * blocks * capacity).long().clamp(min=capacity)
        low, high = objective.prices
        paths = Paths(latents)
        prices = torch.where(priced < 0.25, low * (high / low) ** price, paths.prices(positions))
        prices = prices.clamp(min=1e-12)  # a threshold of 0 would keep unchanged latents
        at_random, by_threshold = rule < objective.random_masks, rule > 1 - objective.threshold_masks
        thresholds = (2 * prices).sqrt()  # keeping both of two latents saves half their squared distance
        keep = torch.where(by_threshold[:, None, None], walk(latents, thresholds, None), paths.at_price(prices))
        share = ((positions - capacity) / max(1, (blocks - 1) * capacity))[:, None, None]
        some = noise.uniform(seeds, "mask", blocks, capacity).to(latents) < share
        some[:, 0] = True
        return torch.where(at_random[:, None, None], some, keep), ~(at_random | by_threshold)


def _squared_error(x: Tensor, target: Tensor) -> Tensor:
    """(B, ...) twice -> (B,) means."""
    return (x - target).square().flatten(1).mean(1)
