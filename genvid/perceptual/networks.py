"""Convolutional trunks of VGG-16, AlexNet and SqueezeNet 1.1, with torchvision's parameter names.

Written out here because importing torchvision breaks installations whose torch build differs from its own; any
checkpoint made for torchvision's classes loads into these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Trunk(nn.Module):
    """The `features` of an ImageNet classifier, giving its activations at some layers."""

    def __init__(self, layers: list[nn.Module], taps: tuple[int, ...]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.taps = taps

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W), normalised with ImageNet statistics -> one (N, C, h, w) for each tap."""
        activations = []
        for index, layer in enumerate(self.features):
            images = layer(images)
            if index in self.taps:
                activations.append(images)
        return activations


class Fire(nn.Module):
    """SqueezeNet's block: a 1x1 bottleneck, then 1x1 and 3x3 convolutions side by side (arXiv:1602.07360)."""

    def __init__(self, inputs: int, bottleneck: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, bottleneck, 1)
        self.expand1x1 = nn.Conv2d(bottleneck, outputs // 2, 1)
        self.expand3x3 = nn.Conv2d(bottleneck, outputs // 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        images = self.squeeze(images).relu()
        return torch.cat([self.expand1x1(images).relu(), self.expand3x3(images).relu()], 1)


def vgg16() -> Trunk:
    """Taps: the last ReLU of each of the five resolutions."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return Trunk(layers[:-1], (3, 8, 15, 22, 29))


def alexnet() -> Trunk:
    """Taps: the five ReLUs."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    ]
    return Trunk(layers, (1, 4, 7, 9, 11))


def squeezenet1_1() -> Trunk:
    """Taps: the first ReLU, the block before each pooling, and the last four blocks."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(64, 16, 128),
        Fire(128, 16, 128),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(128, 32, 256),
        Fire(256, 32, 256),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(256, 48, 384),
        Fire(384, 48, 384),
        Fire(384, 64, 512),
        Fire(512, 64, 512),
    ]
    return Trunk(layers, (1, 4, 7, 9, 10, 11, 12))


@dataclass(frozen=True)
class Backbone:
    """How to build a trunk, and the checkpoint of it that LPIPS was calibrated on."""

    label: str
    build: Callable[[], Trunk]
    file: str
    """torchvision's file name; the part after the dash begins the file's SHA-256."""
    min_size: int

    @property
    def url(self) -> str:
        return f"https://download.pytorch.org/models/{self.file}"

    @property
    def digest(self) -> str:
        return self.file.removesuffix(".pth").rsplit("-", 1)[1]


BACKBONES = {
    "vgg": Backbone("VGG", vgg16, "vgg16-397923af.pth", 16),
    "alex": Backbone("Alex", alexnet, "alexnet-owt-7be5be79.pth", 31),
    "squeeze": Backbone("SqueezeNet", squeezenet1_1, "squeezenet1_1-b8a52dc0.pth", 17),
}
