"""Features of clips that are shorter than their network reads: the clip forwards, backwards, forwards ..."""

from __future__ import annotations

import torch
from torch import Tensor

from genvid.eval.features.base import FeatureNetwork


class MirroredClips(FeatureNetwork):
    """A network on clips of `frames` frames, mirrored in time to the fewest that it reads.

    Motion has its own speed and no cut, unlike in repeated or slowed clips. A distance on these features bears their
    name and is not FVD: it compares with others of clips of as many frames alone.
    """

    def __init__(self, network: FeatureNetwork, frames: int) -> None:
        super().__init__()
        self.network, self.frames = network, frames
        self.name = f"{network.name}, clips of {frames} frames mirrored to {network.min_frames}"
        self.num_features, self.min_frames, self.weights = network.num_features, frames, network.weights
        self.requires_grad_(False).train()

    def extract(self, video: Tensor) -> Tensor:
        period = max(1, 2 * (video.shape[2] - 1))
        phase = torch.arange(max(video.shape[2], self.network.min_frames), device=video.device) % period
        return self.network.extract(video[:, :, torch.minimum(phase, period - phase)])


def mirrored(network: FeatureNetwork, frames: int | None) -> FeatureNetwork:
    """The network itself, or for clips of fewer frames than it reads (None: whole videos) `MirroredClips` of it."""
    return network if frames is None or frames >= network.min_frames else MirroredClips(network, frames)
