"""Training that starts from the weights of a model folder, and the weights that a run keeps for that beside its model.

model.safetensors is what users load; training.safetensors, on request, holds the rest of a task's weights
(discriminator, prior, running shares of codes), with the fingerprint of the model that they belong to.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import torch
from accelerate import Accelerator
from torch import Tensor

from genvid import config as configuration
from genvid.checkpoint import CheckpointError, Model, describe_mismatch, fingerprint
from genvid.config import dotted
from genvid.files import save_tensors, write_atomically
from genvid.train.sharding import gather, local_part, named_weights
from genvid.train.task import TrainingTask

logger = logging.getLogger(__name__)

TRAINING = "training.safetensors"


def start_from(task: TrainingTask, source: str, may_differ: Sequence[str] = ()) -> None:
    """Load the weights of a model folder or Hub id into a new task, and record the source in the model's origin.

    The two models must have one config and weights of the same names and shapes, apart from the parts in `may_differ`:
    dotted names of config keys (`resolution`, `quantizer.temperature`) and of weights (`quantizer.embedding`). Weights
    of these parts that do not fit start anew. ValueError or CheckpointError with the first difference otherwise.
    """
    model = task.exportable()
    given = model.open(source)
    beside = {} if given.folder is None else _read_training(given.folder)
    own, extra = model.state_dict(), _training_weights(task)
    keys = dotted(configuration.encode(model.config)) | dotted(configuration.encode(given.config))
    _check_parts(may_differ, [*keys, *own, *given.state_dict(), *extra])
    _check_config(model, given, source, may_differ)
    new = _copy_weights(own, given.state_dict(), source, may_differ)
    if beside:
        fitting = {name: value for name, value in beside.items() if name in extra}
        new += _copy_weights({name: extra[name] for name in fitting}, fitting, f"{TRAINING} of {source}", may_differ)
    new += [name for name in extra if name not in beside]
    if new:
        logger.warning("started from %s, apart from new weights of %s", source, ", ".join(_parts(new)))
    made_from = {**model.origin.made_from, "initial weights": given.fingerprint}
    model.origin = dataclasses.replace(model.origin, made_from=made_from)


def export_training(accelerator: Accelerator, task: TrainingTask, folder: Path) -> None:
    """Write the weights that only training needs beside the model in `folder`. All processes must call it."""
    weights = {name: gather(local_part(value), value).cpu() for name, value in _training_weights(task).items()}
    if weights and accelerator.is_main_process:
        metadata = {"format": "pt", "model": fingerprint(folder)}
        with write_atomically(folder / TRAINING) as temporary:
            save_tensors(temporary, weights, metadata)


def _training_weights(task: TrainingTask) -> dict[str, Tensor]:
    """The weights and running statistics of a task that are not part of its model."""
    exported = {id(value) for value in named_weights(task.exportable()).values()}
    return {name: value.detach() for name, value in named_weights(task).items() if id(value) not in exported}


def _read_training(folder: Path) -> dict[str, Tensor]:
    """training.safetensors of a model folder; empty where there is none."""
    file = folder / TRAINING
    if not file.is_file():
        return {}
    try:
        with safetensors.safe_open(str(file), "pt") as saved:
            belongs_to = (saved.metadata() or {}).get("model")
            weights = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): copy it again, or delete it to start without") from None
    if belongs_to != fingerprint(folder):
        raise CheckpointError(f"{file} belongs to another model than the one beside it: delete it to start without")
    return weights


def _check_parts(parts: Sequence[str], names: Sequence[str]) -> None:
    """ValueError for a part that is the name of no config key and of no weight."""
    for part in parts:
        if not any(_covers(part, name) for name in names):
            near = difflib.get_close_matches(part, {name for full in names for name in _prefixes(full)}, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"may_differ names {part}, which is no key of the model's config and no weight{meant}")


def _check_config(model: Model, given: Model, source: str, may_differ: Sequence[str]) -> None:
    ours, theirs = (dotted(configuration.encode(m.config)) for m in (model, given))
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key) and not any(_covers(part, key) for part in may_differ):
            raise ValueError(
                f"init_from {source}: {key} is {theirs.get(key)} there and {ours.get(key)} here; use the same value, "
                f"or add {key} to may_differ"
            )


@torch.no_grad()
def _copy_weights(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str, may_differ: Sequence[str]
) -> list[str]:
    """Copy the weights that fit into `own`; returns the names of the others, all of parts in `may_differ`."""
    fits = {name for name, value in own.items() if name in given and given[name].shape == value.shape}
    free = {name for name in {**own, **given} if any(_covers(part, name) for part in may_differ)}
    expected = {name: tuple(value.shape) for name, value in own.items() if name in fits or name not in free}
    if mismatch := describe_mismatch(expected, {n: v for n, v in given.items() if n in fits or n not in free}):
        raise CheckpointError(f"init_from {source} does not fit: {mismatch}; list in may_differ what may start anew")
    for name in fits:
        own[name].copy_(given[name])
    return [name for name in own if name not in fits]


def _covers(part: str, name: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _prefixes(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[:count]) for count in range(1, len(words) + 1)]


def _parts(names: Sequence[str]) -> list[str]:
    """The first words of dotted names, each once."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names))
