"""Clips above their reconstructions, for the trackers of a run."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from genvid.batch import Batch
from genvid.tokens import VideoTokenizer

CLIPS, FRAMES = 4, 4


def log_preview(accelerator: Accelerator, model: nn.Module, batch: Batch, step: int) -> None:
    """Give the trackers a preview after `step` steps, where the first process holds all weights of the model."""
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    trackers = [tracker for tracker in accelerator.trackers if hasattr(tracker, "log_images")]
    if sharded or not trackers or not accelerator.is_main_process:
        return
    with accelerator.autocast():
        pictures = preview(model, batch)
    if pictures is not None:
        for tracker in trackers:
            tracker.log_images({"reconstruction": pictures}, step=step)


@torch.no_grad()
def preview(model: nn.Module, batch: Batch) -> Tensor | None:
    """Pictures (N, 3, 2 H, FRAMES W) in [0, 1], frames of a clip side by side; None if there is nothing to encode."""
    if not isinstance(model, VideoTokenizer) or "video" not in batch:
        return None
    video, training = batch["video"][:CLIPS], model.training
    made = model.eval().decode(model.encode(video))
    model.train(training)
    rows = torch.cat([video.float(), made.float()], 3)
    frames = torch.linspace(0, rows.shape[2] - 1, FRAMES, device=rows.device).long()
    pictures = rows[:, :, frames].permute(0, 1, 3, 2, 4).flatten(3)
    return ((pictures + 1) / 2).clamp(0, 1).cpu()
