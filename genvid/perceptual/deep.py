"""Perceptual distances in the feature space of an ImageNet network (arXiv:1801.03924).

A number is called LPIPS only when the weights are the very files that LPIPS was calibrated on: another training of the
same architecture gives another distance.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from genvid.checkpoint import load_weights, read_pickled
from genvid.files import sha256
from genvid.frozen import Frozen
from genvid.perceptual.distance import PerceptualDistance
from genvid.perceptual.networks import BACKBONES, Trunk

PIXEL_MEAN = (-0.030, -0.088, -0.188)
PIXEL_STD = (0.458, 0.448, 0.450)
"""ImageNet's channel statistics, for pixels in [-1, 1]."""
_ONNX_SQUEEZENET = "d7fd216e0ce54552160efd0620bc0da833d70726a5e1c0094b8ce3af948ea469"


class FeatureDistance(PerceptualDistance):
    """Weighted squared difference of unit-length feature vectors, averaged over places, summed over layers.

    On a GPU under autocast, features of which a gradient is recorded are computed in float16, whatever the autocast's
    own type: its 10 bits are those of TF32, in which a GPU computes convolutions of float32. The 7 bits of bfloat16
    change the gradient (docs/training.md). A distance without a gradient, as a metric, is computed in float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: Trunk, heads: list[Tensor], *, name: str, min_size: int, frames_per_pass: int) -> None:
        """`heads`: one (C,) weight vector for each tap of the trunk."""
        super().__init__(frames_per_pass)
        self.name = name
        self.min_size = min_size
        # Channels last, which convolutions hand on: elsewhere a GPU converts frames to it and back around each of them.
        trunk = nn.utils.convert_conv2d_weight_memory_format(trunk.eval().requires_grad_(False), torch.channels_last)
        self._trunk, self._heads = Frozen(trunk), Frozen(nn.ParameterList(heads).requires_grad_(False))
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD)[:, None, None], persistent=False)

    def per_frame(self, video: Tensor, target: Tensor) -> Tensor:
        if self.mean.device != video.device:
            self.to(video.device)
        return super().per_frame(video, target)

    def precision(self, video: Tensor, recorded: bool) -> torch.autocast:
        half = recorded and video.is_cuda and torch.is_autocast_enabled("cuda")
        return torch.autocast(video.device.type, torch.float16, enabled=half)

    def frame_distance(self, frames: Tensor, target: Tensor) -> Tensor:
        found = self._features(frames)
        with torch.no_grad():
            wanted = self._features(target)
        distance = frames.new_zeros(len(frames))
        for a, b, head in zip(found, wanted, self._heads.network, strict=True):
            difference = (_unit(a.float()) - _unit(b.float())).square().mean((2, 3))
            distance = distance + (difference * head).sum(1)
        return distance

    def _features(self, frames: Tensor) -> list[Tensor]:
        """Of each tap of the trunk. Frames are channels last as its weights are, else gradients are converted twice."""
        normalized = (frames - self.mean) / self.std
        features: list[Tensor] = self._trunk.network(normalized.contiguous(memory_format=torch.channels_last))
        return features


class SqueezeNetDistance(FeatureDistance):
    """SqueezeNet 1.1 features compared with equal weight for every channel and layer; between 0 and 2 (about)."""

    def __init__(self, weights: str | Path, frames_per_pass: int = 128) -> None:
        """`weights`: a state dict with torchvision's names for squeezenet1_1."""
        path = Path(weights)
        trunk, digest = load_trunk("squeeze", path)
        origin = "ONNX" if digest == _ONNX_SQUEEZENET else digest[:8]
        layers = len(trunk.taps)
        heads = [torch.full((channels,), 1 / layers) for channels in _CHANNELS["squeeze"]]
        super().__init__(
            trunk,
            heads,
            name=f"SqueezeNet-{origin} perceptual distance",
            min_size=BACKBONES["squeeze"].min_size,
            frames_per_pass=frames_per_pass,
        )


class LPIPS(FeatureDistance):
    """Learned perceptual image patch similarity, version 0.1, with the published linear heads."""

    def __init__(
        self,
        net: Literal["vgg", "alex", "squeeze"] = "vgg",
        weights: str | Path | None = None,
        frames_per_pass: int = 64,
    ) -> None:
        """`weights`: torchvision's checkpoint of the trunk; None looks in the cache of torch.hub."""
        backbone = BACKBONES[net]
        path = Path(weights) if weights is not None else Path(torch.hub.get_dir(), "checkpoints", backbone.file)
        trunk, digest = load_trunk(net, path)
        verified = digest.startswith(backbone.digest)
        super().__init__(
            trunk,
            _published_heads(net),
            name=f"LPIPS-{backbone.label}" if verified else f"{backbone.label}-{digest[:8]} distance with LPIPS heads",
            min_size=backbone.min_size,
            frames_per_pass=frames_per_pass,
        )


_CHANNELS = {
    "vgg": (64, 128, 256, 512, 512),
    "alex": (64, 192, 384, 256, 256),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}


def _unit(features: Tensor) -> Tensor:
    """Unit length over channels. The small constant is inside the root: the gradient is finite at zero."""
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()


def load_trunk(net: str, path: Path) -> tuple[Trunk, str]:
    """The trunk with its weights, and the SHA-256 of their file."""
    backbone = BACKBONES[net]
    if not path.is_file():
        raise ValueError(
            f"no {net} weights at {path}; download {backbone.url} and give its path as `weights`, "
            "or choose `type: structure`, which needs none"
        )
    state = read_pickled(path)
    trunk = backbone.build()
    load_weights(trunk, {k: v for k, v in state.items() if k.startswith("features.")}, source=str(path))
    return trunk, sha256(path)


def _published_heads(net: str) -> list[Tensor]:
    """The linear heads that torchmetrics ships, read as a file: its module imports torchvision."""
    package = importlib.util.find_spec("torchmetrics")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "functional" / "image" / "lpips_models" / f"{net}.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{index}.model.1.weight"].flatten() for index in range(len(_CHANNELS[net]))]
