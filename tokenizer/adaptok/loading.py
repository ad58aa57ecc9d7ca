"""Tokenizers, scorers and calibrations from their folders, each checked against the tokenizer it was made for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from genvid.allocation import Allocator, AllocatorConfig, Calibration, build_allocator
from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.files import sha256
from genvid.provenance import check_made_from
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokenizer.layers import StackConfig


def load_scorer(source: str | Path, tokenizer: AdapTok) -> Scorer:
    """The scorer of `tokenizer`; ValueError when it was trained for another one."""
    scorer = load_model(source, Scorer)
    scorer.check_made_from(tokenizer=tokenizer)
    fits = ScorerConfig.for_tokenizer(
        tokenizer.config,
        StackConfig(scorer.config.width, scorer.config.depth, scorer.config.heads),
        sizes=scorer.config.sizes,
        metric=scorer.config.metric,
        gains=scorer.config.gains,
    )
    if fits != scorer.config:
        raise ValueError(f"the scorer {source} was trained for a tokenizer of another shape")
    return scorer


def load_calibration(source: str, tokenizer: AdapTok, scorer: Scorer | None) -> Calibration:
    """The calibration of `tokenizer` and `scorer`; ProvenanceError when it was measured with others."""
    calibration = Calibration.load(source)
    recorded = {"tokenizer": calibration.provenance.tokenizer, "scorer": calibration.provenance.scorer}
    given = {"tokenizer": tokenizer.fingerprint, "scorer": None if scorer is None else scorer.fingerprint}
    known = {role: value for role, value in given.items() if value is not None}
    check_made_from(source, recorded, known, "calibrate again")
    return calibration


@dataclass(frozen=True)
class AllocatedTokenizer:
    """A tokenizer with its allocator, as a config names them: model folders or Hub ids, and a calibration file."""

    tokenizer: str
    allocator: AllocatorConfig
    scorer: str | None = None
    calibration: str | None = None

    def made_from(self) -> dict[str, str]:
        """Fingerprints by role (genvid.provenance)."""
        models = {"tokenizer": self.tokenizer, "scorer": self.scorer}
        prints = {role: fingerprint(resolve(folder)) for role, folder in models.items() if folder is not None}
        return prints if self.calibration is None else prints | {"calibration": sha256(self.calibration)[:16]}

    def build(self, frames: int, device: torch.device) -> tuple[AdapTok, Allocator, list[int]]:
        """Tokenizer, allocator and candidate lengths of a block, for clips of `frames` frames, on `device`."""
        tokenizer = load_model(self.tokenizer, AdapTok).to(device)
        scorer = predictor = calibration = None
        sizes = list(range(1, tokenizer.spec.block_capacity + 1))
        if self.scorer is not None:
            scorer = load_scorer(self.scorer, tokenizer).to(device)
            predictor = ScorerPredictor(tokenizer, scorer)
            sizes = predictor.sizes.tolist()
        if self.calibration is not None:
            calibration = load_calibration(self.calibration, tokenizer, scorer)
            sizes = list(calibration.sizes)
        blocks = tokenizer.spec.num_blocks(frames)
        return tokenizer, build_allocator(self.allocator, blocks, predictor, calibration), sizes
