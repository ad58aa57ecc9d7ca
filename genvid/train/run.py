"""A run folder: the config that re-creates it, its journal, its checkpoints, and the model it exports.

config.yaml  origin.json  metrics.jsonl  checkpoints/step_00001000/  export/{config.json, model.safetensors}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from genvid import config as configuration
from genvid.files import sha256
from genvid.provenance import Origin, check_made_from
from genvid.values import ConfigError, typed

logger = logging.getLogger(__name__)

ORIGIN = "origin.json"
"""Fingerprints of the data, token cache, tokenizer, ... of a run (genvid.provenance)."""

MANIFEST = "manifest.json"
"""Sizes and hashes of the files of a checkpoint, written last."""

PATIENCE = 120.0
"""Seconds until a run folder counts as that of another process: one that was stopped saves first, and a file server
releases the lock of a dead host after a minute or two."""

FREE_TO_CHANGE = (
    *("steps", "log_every", "save_every", "keep_checkpoints", "workers", "trackers", "max_skipped"),
    *("accumulation", "activation_checkpointing", "compile", "compile_layers", "export_precision", "export_training"),
)
"""Keys of `train` that may change on resume: length, reports, the way the same work is done, and the export."""


class RunError(ValueError):
    """A run folder that cannot be used; the message is one sentence."""


def check_run_folder(folder: Path, config: Any, origin: Origin) -> None:
    """RunError when `folder` holds another run than that of `config`, or something else; ProvenanceError when the run
    was trained on other data or models than those of `origin`.

    A folder with a config alone is of a run that was refused before its first step: its config may change.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"cannot write to {folder} (Not a directory)")
    file = folder / "config.yaml"
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()
    if names <= {file.name, ORIGIN}:
        return
    if not file.exists():
        raise RunError(f"{folder} is not empty and holds no run; choose another output_dir")
    known, wanted = yaml.safe_load(file.read_text()), configuration.encode(config)
    if not isinstance(known, dict):
        raise RunError(f"{file} must hold keys and values, not a {type(known).__name__}: {folder} is no run")
    with suppress(ConfigError):  # the config of another task
        known = typed(type(config), known)
    difference = configuration.difference(_comparable(known), _comparable(wanted))
    if difference:
        raise RunError(
            f"{folder} already holds another run ({difference}); choose another output_dir or delete that folder"
        )
    recorded = configuration.decode(Origin, _read_origin(folder), source=str(folder / ORIGIN))
    way_out = (
        f"put back what it was trained on or choose another output_dir; to go on all the same, delete {folder / ORIGIN}"
    )
    check_made_from(folder, recorded.record(), origin.record(), way_out)


def claim_run_folder(folder: Path, config: Any, origin: Origin) -> None:
    """Make `folder` the run of `config`, after all processes have checked it; RunError when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        configuration.dump(config, folder / "config.yaml")
        configuration.dump(origin, folder / ORIGIN)
    except OSError as error:
        raise RunError(f"cannot write to {folder} ({error.strerror})") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Train in a run folder while no other process does, of this host or of another; RunError where one goes on for
    `PATIENCE` seconds. Where the file system has no locks, runs do not wait for each other."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("another process trains in %s; waiting up to %g seconds for its end", folder, PATIENCE)
            lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise RunError(f"another process trains in {folder}: wait for its end, or choose another output_dir") from None
    except (OSError, NotImplementedError) as error:
        logger.info("%s cannot be locked (%s): start no other run in it", folder, error)
    try:
        yield
    finally:
        lock.release()


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder's metrics.jsonl."""
    return read_records(folder / "metrics.jsonl")


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a journal, up to one that a killed process left unfinished; none where there is no file."""
    records: list[dict[str, Any]] = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def checkpoint_step(checkpoint: Path) -> int:
    """Finished steps of a checkpoint folder."""
    return int(checkpoint.name.removeprefix("step_"))


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run folder, newest first; unfinished ones have other names."""
    return sorted((run / "checkpoints").glob("step_*"), reverse=True)


def newest_complete(run: Path) -> Path | None:
    """The newest undamaged checkpoint of a run folder. Reads every byte of the newer ones too."""
    return next((checkpoint for checkpoint in list_checkpoints(run) if damage(checkpoint) is None), None)


def damage(checkpoint: Path) -> str | None:
    """The damage of a checkpoint, in words; None if it is complete."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())
        for name, written in files.items():
            size = (checkpoint / name).stat().st_size
            if size != written["bytes"]:
                return f"{name} has {size} bytes, but {written['bytes']} were written"
            if sha256(checkpoint / name) != written["sha256"]:
                return f"{name} has other bytes than were written"
    except FileNotFoundError as error:
        return f"it has no {Path(error.filename).name}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {error}"
    return None


def _read_origin(folder: Path) -> dict[str, Any]:
    """Empty in runs of older versions, and after the user deleted the file."""
    file = folder / ORIGIN
    return configuration.read_json(file) if file.is_file() else {}


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that define a run: not its place, its length, nor how it reports."""
    config = {key: value for key, value in config.items() if key not in ("output_dir", "validation")}
    if isinstance(config.get("train"), dict):
        config["train"] = {k: v for k, v in config["train"].items() if k not in FREE_TO_CHANGE}
    return config
