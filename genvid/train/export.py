"""The model that a run exports: what users load."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from genvid.checkpoint import Model
from genvid.train.ema import ExponentialAverage
from genvid.train.sharding import gathered_state


def export(accelerator: Accelerator, model: Model, average: ExponentialAverage | None, run: Path) -> Path:
    """Write `export/` of a run folder: the moving average of a model, or its weights where there is none."""
    folder = run / "export"
    state = gathered_state(model) if average is None else average.state_dict()
    if accelerator.is_main_process:
        with torch.random.fork_rng():
            exported = type(model)(model.config)
        exported.load_state_dict(state)
        exported.origin = model.origin
        exported.save(folder)
    accelerator.wait_for_everyone()
    return folder
