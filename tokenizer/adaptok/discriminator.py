"""Transformer discriminator over whole clips, with softened labels and the LeCam regulariser.

LeCam: arXiv 2104.03310. The published code of AdapTok applies its weight twice, so that 0.001 acts as 1e-6; here the
weight is applied once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvid import noise
from genvid.config import check_counts
from genvid.tokenizer.adaptok.attention import full_attention
from genvid.tokenizer.adaptok.patches import PatchEmbedding
from genvid.tokenizer.adaptok.positions import patch_positions
from genvid.tokenizer.layers import StackConfig, initialise, learned_table


@dataclass(frozen=True)
class DiscriminatorConfig:
    patch: tuple[int, int, int] = (4, 8, 8)
    transformer: StackConfig = field(default_factory=lambda: StackConfig(512, 12, 8))
    weight: float = 0.3
    """Of the generator's adversarial loss."""
    start_step: int = 0
    """First step with an adversarial loss, in which the discriminator also trains."""
    every: int = 1
    """The discriminator trains in every n-th step from there on."""
    label_noise: float = 0.15
    """Real targets are 1 - |N(0, s)|, at least 0.7; fake ones |N(0, s)|, at most 0.3."""
    lecam_weight: float = 0.001
    lecam_decay: float = 0.999

    def __post_init__(self) -> None:
        check_counts(self, "every", section="discriminator.")
        if min(self.weight, self.label_noise, self.lecam_weight) < 0 or not 0 <= self.lecam_decay < 1:
            raise ValueError(
                f"weights and label_noise of a discriminator are at least 0 and lecam_decay is in [0, 1), got {self}"
            )

    def check(self, resolution: tuple[int, int]) -> None:
        """ValueError for frames (height, width) that its patches do not divide."""
        (height, width), (_, rows, columns) = resolution, self.patch
        if height % rows or width % columns:
            raise ValueError(f"discriminator.patch of {rows}x{columns} does not divide frames of {height}x{width}")


class Discriminator(nn.Module):
    """(B, 3, T, H, W) in [-1, 1] -> (B,) logits, positive for real clips."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.transformer.width
        self.patches = PatchEmbedding(config.patch, width)
        self.summary = learned_table(1, 1, width)
        self.blocks = config.transformer.build()
        self.norm = nn.LayerNorm(width)
        self.logit = nn.Linear(width, 1)
        initialise(self)

    def forward(self, video: Tensor) -> Tensor:
        patches = self.patches(video)
        patches = patches + patch_positions(patches.shape[1:4], patches.shape[-1], patches.device)
        x = torch.cat([self.summary.expand(len(video), -1, -1), patches.flatten(1, 3)], 1)
        for block in self.blocks:
            x = block(x, full_attention)
        logits: Tensor = self.logit(self.norm(x[:, 0]))
        return logits.squeeze(-1).float()


class LeCam(nn.Module):
    """Penalty on logits beyond the running mean of the other side. The means change only through `update`."""

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """(B,) logits of real and fake clips -> (B,) penalties."""
        return (real - self.fake_mean).relu().square() + (self.real_mean - fake).relu().square()

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Average the mean logits () of the real and fake clips of one step into the running means."""
        self.real_mean.lerp_(real.to(self.real_mean), 1 - self.decay)
        self.fake_mean.lerp_(fake.to(self.fake_mean), 1 - self.decay)


def adversarial_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating generator loss, (B,)."""
    return F.softplus(-fake_logits)


def discriminator_loss(real: Tensor, fake: Tensor, seeds: Tensor, label_noise: float) -> Tensor:
    """Cross entropy of (B,) logits against softened labels drawn from the clips' seeds, (B,)."""
    deviation = torch.special.ndtri(noise.uniform(seeds, "soft labels", 2)).abs().float() * label_noise
    deviation = deviation.clamp(max=0.3)
    real_loss = F.binary_cross_entropy_with_logits(real, 1 - deviation[:, 0], reduction="none")
    return real_loss + F.binary_cross_entropy_with_logits(fake, deviation[:, 1], reduction="none")
