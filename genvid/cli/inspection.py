"""`genvid info`: models, training runs, token caches, token files and videos in a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from genvid.ar.config import is_published
from genvid.checkpoint import EXPORT, MODELS, CheckpointError, fingerprint, read_config, read_weights, resolve
from genvid.config import dotted, read_json
from genvid.data.images import list_images
from genvid.data.video import probe
from genvid.tokenizer.adaptok import published as published_adaptok
from genvid.tokens.cache_info import FINGERPRINT, UNFINISHED
from genvid.tokens.file import read_token_file
from genvid.train.run import checkpoint_step, damage, list_checkpoints, newest_complete, read_journal


@dataclass(frozen=True)
class InfoOptions:
    """Options of `info`."""

    source: str
    """Path, or Hub id of a model."""


def info(options: InfoOptions) -> None:
    """Describe a model folder, run folder, token cache, token file, folder of samples, or video (a file, or a folder
    of pictures)."""
    path = Path(options.source)
    if path.is_file():
        tokens = path.name.removesuffix(".unfinished").endswith((".tok", ".npz"))
        lines = _token_file(path) if tokens else _video(path)
    elif (path / "config.yaml").is_file():
        lines = _training_run(path)
    elif (path / FINGERPRINT).is_file() or (path / UNFINISHED).is_file():
        lines = _cache(path)
    elif (path / "config.json").is_file() or not path.is_dir():
        lines = _model(resolve(options.source))
    elif (path / "about.json").is_file():
        lines = _samples(path)
    elif list_images(path):
        lines = _video(path)
    else:
        raise ValueError(
            f"{path} holds neither a model (config.json), a run (config.yaml), a token cache, samples nor pictures of "
            "a video"
        )
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:{width}}  {value}")


def _token_file(path: Path) -> dict[str, Any]:
    with read_token_file(path) as file:
        header, count = file.header, file.count()
    cut = "" if count.frames == header.frames else f" of {header.frames}: the file was cut"
    return {
        "token file": path,
        "video": f"{header.width} x {header.height} pixels, {header.fps:g} frames a second",
        "holds": f"{count.segments} segments, {count.blocks} blocks, {count.tokens} tokens, {count.frames} frames{cut}",
        "size": f"{path.stat().st_size} bytes, {count.payload_bytes} of them tokens",
        "codes": "latents" if header.latents else header.codes.get("type", "unknown"),
        "made by tokenizer": f"{header.tokenizer} ({header.fingerprint})",
    }


def _video(path: Path) -> dict[str, Any]:
    about = probe(path)
    return {
        "video": path,
        "size": f"{about.width} x {about.height} pixels",
        "length": f"{about.frames} frames at {about.fps:g} a second, {about.frames / about.fps:.2f} s",
    }


def _cache(path: Path) -> dict[str, Any]:
    from genvid.tokens.cache import TokenCache  # a second for the library of its shards, which only caches need

    cache = TokenCache.open(path)
    return {"token cache": path, "clips": len(cache), **dotted(vars(cache.info))}


def _samples(path: Path) -> dict[str, Any]:
    from genvid.generation.folder import SampleFolder  # seconds for the libraries of the engine

    about = read_json(path / "about.json")
    return {"samples": path, "videos": len(SampleFolder(path, about).samples()), **dotted(about)}


def _training_run(path: Path) -> dict[str, Any]:
    file = path / "config.yaml"
    try:
        config = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    match config:
        case {"task": task, "train": {"steps": int(steps), "batch_size": int(batch_size)}} if steps > 0:
            pass
        case {"task": task}:
            return {"run": path, "task": task}
        case _:
            return {"run": path, "task": "not a training run"}
    records, export = read_journal(path), path / EXPORT
    last = records[-1] if records else {}
    complete = newest_complete(path)
    done = max(last.get("step", 0), checkpoint_step(complete) if complete else 0)
    finished = export.is_dir() and done >= steps
    about = {
        "run": path,
        "trains": f"{task}, in batches of {batch_size}",
        "steps": f"{done} of {steps} ({done / steps:.0%})",
        "newest checkpoint": _checkpoint(path, complete),
        "export": export if export.is_dir() else "none",
        "to go on": "it is complete" if finished else f"accelerate launch recipes/train.py {file}",
    }
    if last:
        left = max(0, steps - done) * batch_size / last["clips_per_second"] / 3600
        about["speed"] = f"{last['clips_per_second']:.4g} clips a second, {left:.2g} hours left"
    return about | {f"last {name}": f"{value:.6g}" for name, value in last.items() if name != "step"}


def _checkpoint(run: Path, complete: Path | None) -> str:
    """The newest complete checkpoint, and the damage of newer ones."""
    known = f"{complete} (step {checkpoint_step(complete)}, whole)" if complete else "none"
    newer = [c for c in list_checkpoints(run) if complete is None or c.name > complete.name]
    return "; ".join([known, *(f"{c.name} is damaged: {damage(c)}" for c in newer)])


def _model(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    kind = config.get("model_type")
    if published_adaptok.is_published(config) or is_published(config):
        kind = "published; `genvid convert` makes a model folder of it"
    elif kind not in MODELS:
        raise CheckpointError(f"{folder / 'config.json'} is of no model of genvid: its model_type is {kind!r}")
    count = sum(value.numel() for value in read_weights(folder).values())
    lines = {"model folder": folder, "model type": kind, "parameters": f"{count:,} ({count / 1e6:.2f} M)"}
    scorer = {"scorer": folder / "scorer"} if (folder / "scorer" / "config.json").is_file() else {}
    config.pop("model_type", None)
    return {**lines, "fingerprint": fingerprint(folder), **scorer, **dotted(config)}
