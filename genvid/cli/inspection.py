"""`genvid info`: what a path holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from genvid.ar import published as published_ar
from genvid.checkpoint import MODELS, CheckpointError, fingerprint, read_config, read_weights, resolve
from genvid.data.token_cache import FINGERPRINT, TokenCache
from genvid.data.token_file import token_file_info
from genvid.data.video import probe
from genvid.tokenizer.adaptok import published as published_adaptok
from genvid.train.run import checkpoint_step, newest_checkpoint


def info(arguments: argparse.Namespace) -> None:
    """Say what a path holds."""
    path = Path(arguments.path)
    if path.is_file():
        lines = _token_file(path) if path.suffix == ".npz" else _video(path)
    elif (path / "config.yaml").is_file():
        lines = _training_run(path)
    elif (path / FINGERPRINT).is_file():
        lines = _cache(path)
    elif path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{path} holds neither a model (config.json), a run (config.yaml) nor a token cache")
    else:
        lines = _model(resolve(arguments.path))
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:{width}}  {value}")


def _token_file(path: Path) -> dict[str, Any]:
    about = token_file_info(path)
    size = f"{about.videos} videos, {about.frames} frames, {about.blocks} blocks, {about.tokens} tokens"
    return {"token file": path, "holds": size, "made by tokenizer": about.tokenizer}


def _video(path: Path) -> dict[str, Any]:
    about = probe(path)
    return {
        "video": path,
        "size": f"{about.width} x {about.height} pixels",
        "length": f"{about.frames} frames at {about.fps:g} a second, {about.frames / about.fps:.2f} s",
    }


def _cache(path: Path) -> dict[str, Any]:
    cache = TokenCache.open(path)
    return {"token cache": path, "clips": len(cache), **_flat(vars(cache.info))}


def _training_run(path: Path) -> dict[str, Any]:
    config = yaml.safe_load((path / "config.yaml").read_text()) or {}
    journal, newest, export = path / "metrics.jsonl", newest_checkpoint(path), path / "export"
    written = journal.read_text().splitlines() if journal.is_file() else []
    last = json.loads(written[-1]) if written else {}
    steps = config.get("train", {}).get("steps", "?")
    return {
        "run": path,
        "task": config.get("task", "not a training run"),
        "steps done": f"{last.pop('step', 0)} of {steps}",
        "newest checkpoint": f"{newest} (step {checkpoint_step(newest)})" if newest else "none",
        "export": export if export.is_dir() else "none",
        **{f"last {name}": f"{value:.6g}" for name, value in last.items()},
    }


def _model(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    kind = config.get("model_type")
    if published_adaptok.recognises(config) or published_ar.recognises(config):
        kind = "published; `genvid convert` makes a model folder of it"
    elif kind not in MODELS:
        raise CheckpointError(f"{folder / 'config.json'} is not of a model that genvid knows")
    count = sum(value.numel() for value in read_weights(folder).values())
    lines = {"model folder": folder, "model type": kind, "parameters": f"{count:,} ({count / 1e6:.2f} M)"}
    scorer = {"scorer": folder / "scorer"} if (folder / "scorer" / "config.json").is_file() else {}
    config.pop("model_type", None)
    return {**lines, "fingerprint": fingerprint(folder), **scorer, **_flat(config)}


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
