"""`genvid convert`: published weights -> model folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genvid.ar import published as published_ar
from genvid.ar.config import is_published
from genvid.checkpoint import MODELS, CheckpointError, read_config, resolve
from genvid.tokenizer.adaptok import published as published_adaptok


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `convert`."""

    source: str
    """Published model: a folder or a Hub id."""
    destination: Path
    """New model folder."""


def convert(options: ConvertOptions) -> None:
    """Convert a published model into a model folder."""
    source, destination = resolve(options.source), options.destination
    config = read_config(source)
    if published_adaptok.is_published(config):
        conversion = published_adaptok.convert(source, destination)
        print(f"tokenizer: {conversion.tokenizer}")
        if conversion.scorer:
            print(f"scorer: {conversion.scorer}")
        if conversion.left_out:
            print(f"left out: {len(conversion.left_out)} entries prior_model.*, which only training used")
    elif is_published(config):
        model = published_ar.convert(source, destination)
        context = model.config.context_blocks
        kind = f"frame prediction from {context} blocks" if context else f"{model.layout.num_classes} classes"
        print(f"autoregressive model ({kind}): {destination}")
    elif config.get("model_type") in MODELS:
        raise CheckpointError(f"{source} is a genvid model folder already: load it as it is")
    else:
        raise CheckpointError(f"{source / 'config.json'} is of no published model that genvid converts")
