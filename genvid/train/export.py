"""The model that a run exports: what users load."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from genvid.checkpoint import EXPORT, Model
from genvid.train.ema import ExponentialAverage
from genvid.train.sharding import gathered_state


def export(
    accelerator: Accelerator,
    model: Model,
    average: ExponentialAverage | None,
    run: Path,
    precision: Literal["fp32", "bf16"],
) -> Path:
    """Write `export/` of a run folder: the moving average of a model, or its weights where there is none.

    In bf16 the file has half the size. Buffers keep their precision: whitening inverts a covariance.
    """
    folder = run / EXPORT
    state = gathered_state(model) if average is None else average.state_dict()
    if accelerator.is_main_process:
        with torch.random.fork_rng():
            exported = type(model)(model.config)
        exported.load_state_dict(state)
        exported.origin = model.origin
        if precision == "bf16":
            for parameter in exported.parameters():
                parameter.data = parameter.data.bfloat16()
        exported.save(folder)
    accelerator.wait_for_everyone()
    return folder
