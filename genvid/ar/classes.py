"""Names of the classes of an autoregressive model."""

from __future__ import annotations

from pathlib import Path

import yaml

from genvid.ar.model import RowModel
from genvid.tokens.cache import FINGERPRINT, TokenCache


def class_names(model: RowModel) -> list[str]:
    """Names of the classes by number. In a run folder of an older version, those of the cache that it was trained on,
    while that is there; empty where nothing says them."""
    run = None if model.folder is None else model.folder.parent / "config.yaml"
    if model.origin.classes or run is None or not run.is_file():
        return model.origin.classes
    held = yaml.safe_load(run.read_text())
    cache = held.get("cache") if isinstance(held, dict) else None
    return TokenCache.open(cache).classes if cache and (Path(cache) / FINGERPRINT).is_file() else []
