"""Names of the classes of an autoregressive model."""

from __future__ import annotations

from pathlib import Path

import yaml

from genvid.ar.row_model import RowModel
from genvid.tokens.cache_info import FINGERPRINT, read_fingerprint


def class_names(model: RowModel) -> list[str]:
    """Names of the classes by number. In a run folder of an older version, those of the cache that it was trained on,
    while that is there; empty if there are none."""
    run = None if model.folder is None else model.folder.parent / "config.yaml"
    if model.origin.classes or run is None or not run.is_file():
        return model.origin.classes
    held = yaml.safe_load(run.read_text())
    cache = held.get("cache") if isinstance(held, dict) else None
    if not cache or not (Path(cache) / FINGERPRINT).is_file():
        return []
    info, _, _ = read_fingerprint(Path(cache))
    return info.classes


def class_number(model: RowModel, label: int | str | None) -> int | None:
    """Number of a class that is given by its name or number; None for a model without classes, which takes no label."""
    count = model.layout.num_classes
    if model.config.context_blocks:
        raise ValueError("this model continues videos, it does not generate classes: give a prompt")
    if not count:
        if label is not None:
            raise ValueError(f"this model has no classes: leave out class {label!r}")
        return None
    names = class_names(model)
    known = f"a number from 0 to {count - 1}" + (f", or one of {', '.join(names)}" if names else "")
    if label is None:
        raise ValueError(f"give a class (or a prompt, to a model that continues videos); a class is {known}")
    if label in names:
        return names.index(str(label))
    if not str(label).isdecimal() or int(label) >= count:
        raise ValueError(f"this model has no class {label!r}; a class is {known}")
    return int(label)
