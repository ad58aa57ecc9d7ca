"""A metric of latents: the change of the decoded pixels, to first order.

The paper (arXiv 2606.06158) takes the L1 difference of latents. With channels divided by their standard deviations,
the finest texture would count as much as the coarse picture. Ours is one matrix for all positions, measured once from
the derivative of the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genvid import noise
from genvid.tokenizer.lit.codecs.codec import Codec

_LEAST = 1e-4
"""Lower bound of a direction's sensitivity, as a share of the mean one: the metric is inverted."""


def measure_metric(codec: Codec, video: Tensor) -> tuple[Tensor, Tensor, float]:
    """From (N, 3, T, H, W) clips of more than one latent frame: (C,) mean of the latents, and their metric (C, C).

    The squared length of d @ metric is proportional to the squared change of all pixels when one latent changes by d,
    and latents @ metric have a standard deviation of 1 over all channels. The metric is the root of J^T J, where J is
    the derivative of the decoded video, estimated with random signs on the pixels.

    Also the pixel error of a unit distance: the mean squared error, of pixels in [0, 1], of latents that are wrong by
    a mean squared distance of 1.
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
        # Without the first latent frame, which covers a single frame.
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
        raise ValueError("all latents of these clips are equal: measure the metric on clips that differ")
    return mean, metric / scale, channels * scale**2 / (4 * pixels)


def by_metric(latents: Tensor, metric: Tensor) -> Tensor:
    """(..., C) latents -> latents @ metric, float32 also under autocast."""
    with torch.autocast(latents.device.type, enabled=False):
        return latents.float() @ metric.to(latents.device, torch.float32)
