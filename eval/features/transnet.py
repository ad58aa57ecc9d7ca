"""Features of TransNet V2 (arXiv:2008.04838), a network of dilated 3-D convolutions trained to find cuts.

Its activations change when the frames of a clip are shuffled, frozen or replaced by noise. A Frechet distance on them
is a relative measure within one run, and not FVD. Parameter names are those of the published PyTorch file.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvid.checkpoint import CheckpointError, load_weights
from genvid.eval.features.base import FeatureNetwork

HEIGHT, WIDTH = 27, 48
"""Of the frames that the network was trained on."""
FILTERS = 16
"""Of each convolution in the first stage; every stage doubles them."""
DILATIONS = (1, 2, 4, 8)
"""In time, of the convolutions that lie side by side."""


class TransNetFeatures(FeatureNetwork):
    """Activations of the three stages, averaged over time and space: 64 + 128 + 256 numbers.

    Frames are resized to 27x48 (antialiased bilinear, aspect not kept) with values from 0 to 1.
    """

    num_features = 7 * FILTERS * len(DILATIONS)
    min_frames = 1

    def __init__(self, weights: dict[str, Tensor], *, source: str) -> None:
        """`weights`: state dict of the complete network, of which the parts after the stages are not used."""
        super().__init__()
        widths = [FILTERS * 2**stage for stage in range(3)]
        inputs = [3, *(len(DILATIONS) * width for width in widths[:-1])]
        self.stages = nn.ModuleList(_Stage(*pair) for pair in zip(inputs, widths, strict=True))
        own = {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}
        load_weights(self.stages, own, source=source)
        self.requires_grad_(False).train()

    def extract(self, video: Tensor) -> Tensor:
        frames = video.transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, (HEIGHT, WIDTH), mode="bilinear", align_corners=False, antialias=True)
        x = ((frames + 1) / 2).view(len(video), -1, 3, HEIGHT, WIDTH).transpose(1, 2)
        means = []
        for stage in self.stages:
            x = stage(x)
            means.append(x.mean((2, 3, 4)))
        return torch.cat(means, 1)


def load_transnet(path: Path) -> TransNetFeatures:
    """The network of an .npz file whose arrays have the parameter names of the published PyTorch file."""
    try:
        with np.load(path) as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no .npz file of arrays ({error})") from None
    features = TransNetFeatures(weights, source=str(path))
    features.weights = hashlib.sha256(path.read_bytes()).hexdigest()
    features.name = f"TransNet V2 {features.weights[:8]}"
    return features


_PREFIX = "SDDCNN."
"""Of the stages' parameters in the published file."""


class _Stage(nn.Module):
    """Two blocks, the output of the first added to that of the second, and pooling over space."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_DilatedBlock(inputs, filters), _DilatedBlock(4 * filters, filters)])

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.DDCNN[0](x).relu()
        return F.avg_pool3d(self.DDCNN[1](first).relu() + first, (1, 2, 2))


class _DilatedBlock(nn.Module):
    """Convolutions of several dilations in time, side by side, and batch norm."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            self.add_module(f"Conv3D_{dilation}", _Separable(inputs, filters, dilation))
        self.bn = nn.BatchNorm3d(len(DILATIONS) * filters, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.get_submodule(f"Conv3D_{dilation}")(x) for dilation in DILATIONS]
        normalised: Tensor = self.bn(torch.cat(parts, 1))
        return normalised


class _Separable(nn.Module):
    """Convolution over space, then a dilated one over time."""

    def __init__(self, inputs: int, filters: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(inputs, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(
            2 * filters, filters, (3, 1, 1), dilation=(dilation, 1, 1), padding=(dilation, 0, 0), bias=False
        )
        self.layers = nn.Sequential(space, time)

    def forward(self, x: Tensor) -> Tensor:
        filtered: Tensor = self.layers(x)
        return filtered
