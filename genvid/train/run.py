"""A run folder: the config that re-creates it, its journal, its checkpoints, and the model it exports.

config.yaml  metrics.jsonl  checkpoints/step_00001000/  export/{config.json, model.safetensors}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from genvid import config as configuration

FREE_TO_CHANGE = (
    *("steps", "log_every", "save_every", "keep_checkpoints", "workers", "trackers", "max_skipped"),
    *("accumulation", "activation_checkpointing", "compile"),
)
"""Keys of `train` that a resumed run may change: how long, how it reports, and how the same work is done."""


class RunError(ValueError):
    """A run folder that cannot be used, said in one sentence."""


def check(folder: Path, config: Any) -> None:
    """RunError when `folder` cannot be the run of `config`, because it holds another run or something else.

    A config alone is that of a run that was refused before its first step: it may be mended.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"cannot write to {folder} (Not a directory)")
    file = folder / "config.yaml"
    if not folder.exists() or all(path.name.startswith(".") or path == file for path in folder.iterdir()):
        return
    if not file.exists():
        raise RunError(f"{folder} is not empty and holds no run; choose another output_dir")
    held, wanted = yaml.safe_load(file.read_text()), configuration.encode(config)
    difference = configuration.difference(_comparable(held), _comparable(wanted))
    if difference:
        raise RunError(
            f"{folder} already holds another run ({difference}); choose another output_dir or delete that folder"
        )


def claim(folder: Path, config: Any) -> None:
    """Make `folder` the run of `config`, when all processes have checked it; RunError when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        configuration.dump(config, folder / "config.yaml")
    except OSError as error:
        raise RunError(f"cannot write to {folder} ({error.strerror})") from error


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, up to one that a killed process left unfinished."""
    file = folder / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """What defines a run: not where it lies, nor how long or how often it reports."""
    config = {key: value for key, value in config.items() if key != "output_dir"}
    if isinstance(config.get("train"), dict):
        config["train"] = {k: v for k, v in config["train"].items() if k not in FREE_TO_CHANGE}
    return config
