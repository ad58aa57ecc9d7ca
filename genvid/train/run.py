"""A run folder: the config that re-creates it, its checkpoints, and the model it exports.

config.yaml  metrics.jsonl  checkpoints/step_00001000/  export/{config.json, model.safetensors}
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from genvid import config as configuration
from genvid.train.ema import ExponentialAverage

FREE_TO_CHANGE = (
    *("steps", "log_every", "save_every", "keep_checkpoints", "workers", "trackers"),
    *("accumulation", "activation_checkpointing", "compile"),
)
"""Keys of `train` that a resumed run may change: how long, how it reports, and how the same work is done."""


class RunError(ValueError):
    """A run folder that cannot be used, said in one sentence."""


def claim(folder: Path, config: Any, *, is_main: bool) -> None:
    """Make `folder` the run of `config`, or check that it already is; RunError when it holds another run."""
    file = folder / "config.yaml"
    wanted = configuration.encode(config)
    if file.exists():
        held = yaml.safe_load(file.read_text())
        difference = configuration.difference(_comparable(held), _comparable(wanted))
        if difference:
            raise RunError(
                f"{folder} already holds another run ({difference}); choose another output_dir or delete that folder"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no run; choose another output_dir")
    if is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            configuration.dump(config, file)
        except OSError as error:
            raise RunError(f"cannot write to {folder} ({error.strerror})") from error


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint folder of the highest step, if there is one. Unfinished ones have other names."""
    found = sorted((folder / "checkpoints").glob("step_*"))
    return found[-1] if found else None


def checkpoint_step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def save_checkpoint(
    accelerator: Accelerator, folder: Path, *, step: int, average: ExponentialAverage | None, keep: int
) -> None:
    """Write the state after `step` steps under a temporary name, rename it, delete all but the newest `keep`."""
    target = folder / "checkpoints" / f"step_{step:08d}"
    temporary = target.with_name(f".{target.name}.tmp")
    if accelerator.is_main_process and temporary.exists():
        shutil.rmtree(temporary)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    if average is not None:
        averaged = average.state_dict()
        if accelerator.is_main_process:
            torch.save(averaged, temporary / "average.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        for old in sorted(target.parent.glob("step_*"))[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, average: ExponentialAverage | None) -> int:
    """Restore what `save_checkpoint` wrote; returns the number of finished steps."""
    accelerator.load_state(str(checkpoint))
    if average is not None:
        average.load_state_dict(torch.load(checkpoint / "average.pt", map_location="cpu"))
    return checkpoint_step(checkpoint)


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """What defines a run: not where it lies, nor how long or how often it reports."""
    config = {key: value for key, value in config.items() if key != "output_dir"}
    if isinstance(config.get("train"), dict):
        config["train"] = {k: v for k, v in config["train"].items() if k not in FREE_TO_CHANGE}
    return config
