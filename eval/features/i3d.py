"""The Inflated Inception network (I3D, arXiv:1705.07750) with the parameter names of the published PyTorch files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
"""Block -> input channels, and the widths of its convolutions 0; 1a, 1b; 2a, 2b; 3b."""


class I3D(nn.Module):
    """Kinetics-400 logits of 224x224 video."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, (inputs, widths) in _MIXED.items():
            self.add_module(name, Mixed(inputs, widths))
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(1024, 400, 1)})

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, T >= 9, 224, 224) in [-1, 1] -> (B, 400), before the softmax, averaged over time."""
        x = same_max_pool(self.Conv3d_1a_7x7(video), (1, 3, 3), (1, 2, 2))
        x = same_max_pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name == "Mixed_4b":
                x = same_max_pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = same_max_pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        logits: Tensor = self.logits["conv3d"](x)
        return logits.mean((2, 3, 4))


class Unit(nn.Module):
    """Convolution with TensorFlow's `SAME` padding, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = _pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        normalised: Tensor = self.bn(self.conv3d(x))
        return normalised.relu()


class Mixed(nn.Module):
    """Inception block: four branches side by side."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit(inputs, widths[0], 1)
        self.b1a = Unit(inputs, widths[1], 1)
        self.b1b = Unit(widths[1], widths[2], 3)
        self.b2a = Unit(inputs, widths[3], 1)
        self.b2b = Unit(widths[3], widths[4], 3)
        self.b3b = Unit(inputs, widths[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = same_max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


def same_max_pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Max pooling with `SAME` padding; zeros are neutral because activations are not negative."""
    return F.max_pool3d(_pad_same(x, kernel, stride), kernel, stride)


def _pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    padding: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        padding = [total // 2, total - total // 2, *padding]
    return F.pad(x, padding)
