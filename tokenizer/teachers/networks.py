"""Frozen networks whose features a tokenizer learns to predict."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvid.checkpoint import fingerprint, resolve
from genvid.config import read_json
from genvid.perceptual.deep import PIXEL_MEAN, PIXEL_STD, load_trunk
from genvid.tokenizer.teachers.base import Teacher, TeacherConfig


class FrameTeacher(Teacher):
    """A network of single frames, which reads the middle frame of each block: one forward pass a block."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, *, name: str, width: int, side: int | None, mean: Any, std: Any) -> None:
        """`side`: of the square that frames are resized to; None: as they are. `mean` and `std` are of [-1, 1]."""
        super().__init__()
        self.network, self.name, self.width, self.side = network, name, width, side
        self.register_buffer("mean", torch.as_tensor(mean)[:, None, None, None])
        self.register_buffer("std", torch.as_tensor(std)[:, None, None, None])
        self.eval().requires_grad_(False)

    def extract(self, video: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        per_block = video.shape[2] // blocks
        frames = self.prepared(video[:, :, per_block // 2 :: per_block]).transpose(1, 2)
        patches, pooled = self.frame_features(frames.flatten(0, 1))
        return patches.reshape(len(video), blocks, *patches.shape[1:]), pooled.reshape(len(video), blocks, -1)

    def prepared(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1], resized and normalised as the network was trained."""
        frames = video.transpose(1, 2).flatten(0, 1)
        if self.side is not None and frames.shape[-2:] != (self.side, self.side):
            size = (self.side, self.side)
            frames = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=True)
        resized = frames.view(len(video), -1, *frames.shape[1:]).transpose(1, 2)
        return (resized - self.mean) / self.std

    @abstractmethod
    def frame_features(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) normalised -> (N, h, w, width) and (N, width)."""


class SqueezeNetTeacher(FrameTeacher):
    """The last activations of SqueezeNet 1.1, a cell for 16 x 16 pixels; pooled: their mean."""

    def __init__(self, weights: str | Path) -> None:
        trunk, digest = load_trunk("squeeze", Path(weights))
        name = f"SqueezeNet {digest[:8]}"
        super().__init__(trunk, name=name, width=512, side=None, mean=PIXEL_MEAN, std=PIXEL_STD)

    def frame_features(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.network(frames)[-1].permute(0, 2, 3, 1)
        return patches, patches.mean((1, 2))


class TransformersTeacher(FrameTeacher):
    """A vision transformer of the transformers library.

    Pooled: the class token; where there is none, the mean of the patches. Networks of clips read the complete clip at
    once: features of a block may depend on later ones, which is no harm in a target.
    """

    def __init__(self, folder: Path, side: int | None) -> None:
        network, preparation = _load_network(folder), _preparation(folder)
        config = network.config
        side = side or _side(preparation) or getattr(config, "image_size", None) or config.crop_size
        mean, std = (torch.tensor(preparation[key]) for key in ("image_mean", "image_std"))  # of pixels in [0, 1]
        name = f"{type(network).__name__} {fingerprint(folder)[:8]}"
        super().__init__(network, name=name, width=config.hidden_size, side=side, mean=2 * mean - 1, std=2 * std)
        self.cells = side // config.patch_size
        self.tubelet: int | None = getattr(config, "tubelet_size", None)
        self.frames: int | None = getattr(config, "num_frames", None)

    def extract(self, video: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        if self.tubelet is None:
            return super().extract(video, blocks)
        if self.frames is not None:  # positions are learned for this number of frames
            step = torch.linspace(0, video.shape[2] - 1, self.frames, device=video.device)
            video = video[:, :, step.round().long()]
        clips = self.prepared(video).transpose(1, 2)
        vision = getattr(self.network, "get_vision_features", None)  # V-JEPA 2 without its predictor
        states = self.network(clips).last_hidden_state if vision is None else vision(clips)
        patches = states.reshape(len(states), -1, self.cells, self.cells, self.width).permute(0, 4, 1, 2, 3)
        patches = F.adaptive_avg_pool3d(patches, (blocks, self.cells, self.cells)).permute(0, 2, 3, 4, 1)
        return patches, patches.mean((2, 3))

    def frame_features(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        states = self.network(frames).last_hidden_state
        first = states.shape[1] - self.cells**2  # class token and registers
        patches = states[:, first:].reshape(len(states), self.cells, self.cells, -1)
        return patches, states[:, 0] if first else patches.mean((1, 2))


class ModuleTeacher(Teacher):
    """A module (B, 3, T, H, W) in [-1, 1] -> (B, t, h, w, width); t is averaged to the number of blocks."""

    def __init__(self, source: str) -> None:
        super().__init__()
        module, _, name = source.partition(":")
        try:
            network = getattr(importlib.import_module(module), name)()
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"no teacher {source} ({error}); give package.module:callable") from None
        if not isinstance(network, nn.Module) or not isinstance(width := getattr(network, "width", None), int):
            raise ValueError(f"{source} must give a torch module with the channels of its features as an int `width`")
        self.network, self.name, self.width = network, source, width
        self.eval().requires_grad_(False)

    def extract(self, video: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        found = self.network(video).permute(0, 4, 1, 2, 3)
        patches = F.adaptive_avg_pool3d(found, (blocks, *found.shape[3:])).permute(0, 2, 3, 4, 1)
        return patches, patches.mean((2, 3))


@TeacherConfig.register_subclass("transformers")
@dataclass(frozen=True)
class TransformersConfig(TeacherConfig):
    """A folder or Hub id with config.json, model.safetensors and preprocessor_config.json."""

    source: str
    side: int | None = None
    """Of the square that frames are resized to, aspect not kept; null: that of the preprocessor."""

    def build(self) -> Teacher:
        return TransformersTeacher(resolve(self.source), self.side)


@TeacherConfig.register_subclass("squeezenet")
@dataclass(frozen=True)
class SqueezeNetTeacherConfig(TeacherConfig):
    """SqueezeNet 1.1, from a state dict with torchvision's names."""

    weights: str

    def build(self) -> Teacher:
        return SqueezeNetTeacher(self.weights)


@TeacherConfig.register_subclass("module")
@dataclass(frozen=True)
class ModuleTeacherConfig(TeacherConfig):
    """`package.module:name`, a callable without arguments that gives the network."""

    source: str

    def build(self) -> Teacher:
        return ModuleTeacher(self.source)


def _load_network(folder: Path) -> Any:
    """The model of a folder; ValueError where weights are missing or it gives no states of patches."""
    from transformers import AutoModel

    try:
        network, found = AutoModel.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{folder} holds no network that transformers can load ({reason})") from None
    network = getattr(network, "vision_model", network)  # SigLIP, CLIP
    missing = [name for name in found["missing_keys"] if "pooler" not in name]
    if missing:
        raise ValueError(f"{folder} lacks weights of {type(network).__name__}: {', '.join(sorted(missing)[:5])}")
    if not isinstance(getattr(network.config, "patch_size", None), int):
        raise ValueError(f"{type(network).__name__} in {folder} is no vision transformer with square patches")
    return network


def _preparation(folder: Path) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name)
            if "image_mean" in found and "image_std" in found:
                return found
    raise ValueError(f"{folder} has no preprocessor_config.json with image_mean and image_std: copy it from its source")


def _side(preparation: dict[str, Any]) -> int | None:
    """The side of the network's input in a preprocessor's config."""
    for key in ("crop_size", "size"):
        size = preparation.get(key)
        if isinstance(size, dict):
            size = size.get("height", size.get("shortest_edge"))
        if isinstance(size, int):
            return size
    return None
