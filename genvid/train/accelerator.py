"""An Accelerator that means the same on CPU and GPU, and refuses accelerate's silent fall-backs."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)


class LaunchError(RuntimeError):
    """The processes were not started as asked."""


def make_accelerator(
    folder: str | Path,
    *,
    precision: str = "no",
    accumulation: int = 1,
    trackers: Sequence[str] = (),
    find_unused_parameters: bool = False,
) -> Accelerator:
    """Start accelerate for a run in `folder`.

    accelerate starts one process where several were asked for on a CPU, and trains FSDP on a CPU without ever
    synchronising gradients; both are errors here. DeepSpeed on a CPU needs the gloo backend named.
    """
    cuda = torch.cuda.is_available()
    deepspeed = _flag("ACCELERATE_USE_DEEPSPEED")
    if _flag("ACCELERATE_USE_FSDP") and not cuda:
        raise LaunchError("accelerate cannot run FSDP on a CPU; launch with recipes/configs/accelerate/ddp.yaml")
    handlers: list[object] = []
    if deepspeed and not cuda:
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    if find_unused_parameters:
        handlers.append(DistributedDataParallelKwargs(find_unused_parameters=True))
    accelerator = Accelerator(
        cpu=not cuda and not deepspeed,
        mixed_precision=precision,
        gradient_accumulation_steps=accumulation,
        log_with=_installed(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        kwargs_handlers=handlers,
    )
    _check_world(accelerator)
    return accelerator


def make_state() -> PartialState:
    """The processes of a launch that does not train; LaunchError where accelerate does not see all of them."""
    state = PartialState(cpu=not torch.cuda.is_available())
    _check_world(state)
    return state


def _check_world(state: Accelerator | PartialState) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    alone = state.distributed_type == DistributedType.NO
    if state.num_processes != world or (world > 1 and alone):
        raise LaunchError(
            f"{world} processes were launched but accelerate sees {state.num_processes} "
            f"({state.distributed_type}); see recipes/README.md for launch files that work"
        )


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def _installed(trackers: Sequence[str]) -> list[str]:
    """The trackers that can be imported; a missing one costs a warning, never the run."""
    found = []
    for tracker in trackers:
        if importlib.util.find_spec(tracker) is None:
            warnings.warn(f"tracker {tracker} is not installed; logging to metrics.jsonl only", stacklevel=3)
        else:
            found.append(tracker)
    return found
