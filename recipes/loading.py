"""What several recipes load: clips, tokenizers and scorers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import yaml

from genvid import config as configuration
from genvid.allocation import Calibration
from genvid.ar.model import RowModel
from genvid.checkpoint import load_model
from genvid.data.clips import ClipConfig
from genvid.data.dataset import ClipDataset
from genvid.data.sources.base import ALL, SourceConfig
from genvid.eval.protocols import WINDOWS, Protocol
from genvid.files import readable
from genvid.perceptual import PerceptualConfig, StructureConfig
from genvid.provenance import check_made_from
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.layers import TransformerConfig as NetworkConfig
from genvid.tokenizer.losses import Distortion, DistortionConfig
from genvid.tokens.cache import FINGERPRINT, TokenCache


@dataclass(frozen=True)
class VideoData:
    """Clips of a source."""

    source: SourceConfig
    clip: ClipConfig = field(default_factory=ClipConfig)
    strict: bool = False
    """Stop at the first unusable file instead of naming, counting and skipping it."""

    def open(self) -> ClipDataset:
        return ClipDataset(self.source, self.clip, strict=self.strict)

    def check_name(self, protocol: str) -> None:
        """ValueError when a protocol's name calls clips held out that are of a training split or of no split."""
        if "held out" not in protocol.replace("-", " ").lower():
            return
        split = self.source.split_name()
        if split == ALL or "train" in split:
            raise ValueError(
                f"the protocol '{protocol}' says held out, but the split of its clips is '{split}': hold clips out "
                "(data.source.held_out true, or a split of a manifest), or choose another protocol name"
            )

    def protocol(self, name: str, task: Literal["generation", "prediction", "reconstruction"], count: int) -> Protocol:
        """The record of numbers on `count` of these clips, with the split of the source; without a feature network."""
        self.check_name(name)
        window = self.clip.window
        return Protocol(
            name=name,
            task=task,
            dataset=readable(str(configuration.encode(self.source))),
            split=self.source.split_name(),
            frames=None if window == "whole" else self.clip.frames,
            clips=next(clips for clips, its_window in WINDOWS.items() if its_window == window),
            count=count,
            resolution=min(self.clip.resolution),
            features="",
        )


@dataclass(frozen=True)
class DistortionSpec:
    """What training lowers, or a scorer predicts."""

    weights: DistortionConfig = field(default_factory=DistortionConfig)
    perceptual: PerceptualConfig = field(default_factory=StructureConfig)

    def build(self) -> Distortion:
        return Distortion(self.weights, self.perceptual.build())


def load_adaptok(source: str) -> AdapTok:
    """An AdapTok model folder or Hub id; ValueError when it holds another model."""
    model = load_model(source)
    if not isinstance(model, AdapTok):
        raise ValueError(f"{source} holds a {model.model_type} model, but an AdapTok tokenizer is needed")
    return model


def load_scorer(source: str, tokenizer: AdapTok) -> Scorer:
    """The scorer of `tokenizer`; ValueError when it was trained for another one."""
    scorer = load_model(source)
    if not isinstance(scorer, Scorer):
        raise ValueError(f"{source} holds a {scorer.model_type} model, but a scorer is needed")
    fits = ScorerConfig.for_tokenizer(
        tokenizer.config,
        NetworkConfig(scorer.config.width, scorer.config.depth, scorer.config.heads),
        sizes=scorer.config.sizes,
        metric=scorer.config.metric,
        gains=scorer.config.gains,
    )
    if fits != scorer.config:
        raise ValueError(f"the scorer {source} was trained for a tokenizer of another shape")
    scorer.check_made_from(tokenizer=tokenizer)
    return scorer


def class_names(model: RowModel) -> list[str]:
    """Names of the classes by number. In a run folder of an older version, those of the cache that it was trained on,
    while that is there; empty where nothing says them."""
    run = None if model.folder is None else model.folder.parent / "config.yaml"
    if model.origin.classes or run is None or not run.is_file():
        return model.origin.classes
    held = yaml.safe_load(run.read_text())
    cache = held.get("cache") if isinstance(held, dict) else None
    return TokenCache.open(cache).classes if cache and (Path(cache) / FINGERPRINT).is_file() else []


def load_calibration(source: str, tokenizer: AdapTok, scorer: Scorer | None) -> Calibration:
    """The calibration of `tokenizer` and `scorer`; ProvenanceError when it was measured with others."""
    calibration = Calibration.load(source)
    recorded = {"tokenizer": calibration.provenance.tokenizer, "scorer": calibration.provenance.scorer}
    given = {"tokenizer": tokenizer.fingerprint, "scorer": None if scorer is None else scorer.fingerprint}
    known = {role: value for role, value in given.items() if value is not None}
    check_made_from(source, recorded, known, "calibrate again")
    return calibration


def device() -> torch.device:
    """Where this process of a recipe computes."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
