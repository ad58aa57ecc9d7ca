"""A few clips above what a tokenizer makes of them, for the trackers of a run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genvid.tokens import VideoTokenizer
from genvid.train.task import Batch

CLIPS, FRAMES = 4, 4


@torch.no_grad()
def preview(model: nn.Module, batch: Batch) -> Tensor | None:
    """(N, 3, 2 H, FRAMES W) pictures in [0, 1], frames of a clip from left to right; None without clips to encode."""
    if not isinstance(model, VideoTokenizer) or "video" not in batch:
        return None
    video, training = batch["video"][:CLIPS], model.training
    made = model.eval().decode(model.encode(video))
    model.train(training)
    rows = torch.cat([video.float(), made.float()], 3)
    frames = torch.linspace(0, rows.shape[2] - 1, FRAMES, device=rows.device).long()
    pictures = rows[:, :, frames].permute(0, 1, 3, 2, 4).flatten(3)
    return ((pictures + 1) / 2).clamp(0, 1).cpu()
