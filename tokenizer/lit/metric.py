"""How far apart two latents are: by how much they change the decoded pixels.

The paper (arXiv 2606.06158) takes the L1 difference of latents, and says no more. With every channel over its standard
deviation, the finest texture counts as much as what carries the picture. Ours counts a change by what the decoder makes
of it, to first order: one matrix for all positions, measured once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genvid import noise
from genvid.tokenizer.lit.codecs.codec import Codec

_LEAST = 1e-4
"""Of the mean sensitivity: what the decoder hardly reads must not be divided by nothing."""


def measure_metric(codec: Codec, video: Tensor) -> tuple[Tensor, Tensor, float]:
    """From (N, 3, T, H, W) clips of more than one latent frame: (C,) mean of the latents, and their metric (C, C).

    The squared length of d @ metric is in proportion to that of the change of all pixels when one latent changes by d,
    and latents @ metric have a standard deviation of 1 over all channels. The metric is the root of J^T J, J the
    derivative of the decoded video, as random signs on the pixels see it.

    Also what that is in pixels: the mean squared error, of pixels in [0, 1], that latents have which are wrong by a
    squared distance of 1 on average.
    """
    geometry = codec.geometry
    channels, seen = geometry.channels, list[Tensor]()
    squares = video.new_zeros(channels, channels)
    for clip, seed in zip(video, noise.sample_seeds(0, "metric", torch.arange(len(video))), strict=True):
        latents = codec.encode(clip[None]).float().requires_grad_()
        if latents.shape[2] == 1:
            raise ValueError(f"a metric is measured on clips of several latent frames, got {video.shape[2]} frames")
        restored = codec.decode(latents)
        signs = (noise.uniform(seed[None], "signs", *restored.shape[1:]) < 0.5).to(restored) * 2 - 1
        (gradient,) = torch.autograd.grad(restored, latents, signs)
        # The first latent frame stands for a single frame.
        change = gradient[:, :, 1:].movedim(1, -1).flatten(0, -2)
        squares += change.T @ change / (len(change) * len(video))
        seen.append(latents.detach().movedim(1, -1).flatten(0, -2))
    values, vectors = torch.linalg.eigh(squares.double())
    roots = values.clamp(min=_LEAST * float(values.mean())).sqrt()
    metric = ((vectors * roots) @ vectors.T).float()
    every = torch.cat(seen)
    mean = every.mean(0)
    scale = float(by_metric(every - mean, metric).square().mean().sqrt())
    pixels = 3 * geometry.temporal_stride * geometry.spatial_stride**2
    if not scale > 0:
        raise ValueError("all latents of these clips are equal: a metric is measured on clips that differ")
    return mean, metric / scale, channels * scale**2 / (4 * pixels)


def by_metric(latents: Tensor, metric: Tensor) -> Tensor:
    """(..., C) latents -> float32 ones that differ as their pixels do, in full precision under autocast too."""
    with torch.autocast(latents.device.type, enabled=False):
        return latents.float() @ metric.to(latents.device, torch.float32)
