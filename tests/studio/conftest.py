"""Tiny models and a video for the studio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import genvid
from genvid.api import Generator, Tokenizer
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.data import write_video
from genvid.provenance import Origin
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens.rows import BlockLayout

NETWORK, SIZES = StackConfig(16, 1, 2), (2, 4, 8)
FRAMES, FPS = 15, 10.0


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers of 3 blocks of 2 frames and 8 tokens, `scored` and `plain`, models of the rows of the first, and
    one of the rows of another."""
    folder = tmp_path_factory.mktemp("studio_models")
    torch.manual_seed(0)
    config = AdapTokConfig(6, (32, 32), (2, 8, 8), 8, NETWORK, NETWORK, VQConfig(codebook_size=20, code_dim=4))
    for name in ("scored", "plain"):
        tokenizer = AdapTok(config)
        torch.nn.init.normal_(tokenizer.output.weight, std=0.1)
        tokenizer.save(folder / name)
    scorer = Scorer(ScorerConfig.for_tokenizer(config, NETWORK, sizes=SIZES, metric="x"))
    scorer.save(folder / "scored" / "scorer")
    layout = BlockLayout(codebook_size=20, num_classes=3, num_blocks=3, block_capacity=8, sizes=SIZES)
    sizes = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=80)
    classes = BlockTransformer(ARConfig(layout, sizes))
    classes.origin = Origin(classes=["swim", "run", "fly"])
    classes.save(folder / "classes")
    BlockTransformer(ARConfig(layout, sizes, context_blocks=1)).save(folder / "predictor")
    BlockTransformer(ARConfig(replace(layout, codebook_size=30), sizes)).save(folder / "other")
    return folder


@pytest.fixture(scope="session")
def tokenizers(models: Path) -> dict[str, Tokenizer]:
    loaded = {name: genvid.load(models / name, device="cpu") for name in ("scored", "plain")}
    return {name: tokenizer for name, tokenizer in loaded.items() if isinstance(tokenizer, Tokenizer)}


@pytest.fixture(scope="session")
def generators(models: Path) -> dict[str, Generator]:
    loaded = {name: genvid.load(models / name, device="cpu") for name in ("classes", "predictor")}
    return {name: model for name, model in loaded.items() if isinstance(model, Generator)}


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 15 frames: two clips of 6, and one of 3 that fill a block and a half."""
    file = tmp_path_factory.mktemp("studio_video") / "moving.mp4"
    frames = torch.zeros(3, FRAMES, 48, 64, dtype=torch.uint8)
    for number in range(FRAMES):
        frames[:, number, 10:30, 2 * number : 2 * number + 20] = torch.tensor([230, 120, 40])[:, None, None]
    write_video(file, frames, FPS)
    return file
