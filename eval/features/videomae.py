"""VideoMAE features (arXiv:2203.12602) through transformers.

Frechet distances on them weigh motion more than those on I3D, whose classes can be recognised from a single frame
(arXiv:2404.12391). They are not FVD and are reported beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import VideoMAEForVideoClassification, VideoMAEModel

from genvid.checkpoint import fingerprint, read_config
from genvid.eval.features.base import FeatureNetwork

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of pixels in [0, 1]: those of all published VideoMAE weights."""


class VideoMAEFeatures(FeatureNetwork):
    """Mean over patches of the last layer, normalised as for the classification head where the folder has one.

    Frames are resized bilinearly to the network's square, aspect not kept, as for I3D.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        heads = any(name.endswith("VideoClassification") for name in read_config(folder).get("architectures") or ())
        loader: Any = VideoMAEForVideoClassification if heads else VideoMAEModel
        network, found = loader.from_pretrained(folder, output_loading_info=True)
        if found["missing_keys"]:
            raise ValueError(f"{folder} lacks weights of VideoMAE: {', '.join(sorted(found['missing_keys'])[:5])}")
        self.network: Any = network.videomae if heads else network
        self.norm: Any = network.fc_norm if heads else None
        config = network.config
        self.frames, self.side = config.num_frames, config.image_size
        self.num_features, self.min_frames = config.hidden_size, config.num_frames
        self.weights = fingerprint(folder)
        self.name = f"VideoMAE {self.weights[:8]}"
        self.requires_grad_(False).train()

    def check(self, video: Tensor) -> None:
        super().check(video)
        if video.shape[2] != self.frames:
            raise ValueError(f"{self.name} takes clips of exactly {self.frames} frames, got {video.shape[2]}")

    def extract(self, video: Tensor) -> Tensor:
        frames = video.transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, (self.side, self.side), mode="bilinear", align_corners=False)
        mean, std = (frames.new_tensor(value)[:, None, None] for value in (_MEAN, _STD))
        frames = ((frames + 1) / 2 - mean) / std
        features: Tensor = self.network(frames.view(len(video), self.frames, 3, self.side, self.side))[0].mean(1)
        return features if self.norm is None else self.norm(features)
