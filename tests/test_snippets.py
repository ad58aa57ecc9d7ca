"""The Python blocks of the pages run, one after another, in a folder and with variables that each page takes as given.

Models are tiny and untrained. Nothing is fetched: a folder takes the place of a Hub model.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from genvid.allocation import FixedCurves, UniformAllocator
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.data import ClipConfig, SyntheticConfig, to_float, write_video
from genvid.data.dataset import ClipDataset
from genvid.data.loader import one_pass
from genvid.provenance import Origin
from genvid.tokenizer.adaptok.config import AdapTokConfig, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens import BlockTokens
from genvid.tokens.cache_info import CacheInfo
from genvid.tokens.rows import BlockLayout

ROOT = Path(__file__).resolve().parents[1]
PAGES = {str(page.relative_to(ROOT)): page for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]}
BLOCKS = {name: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S) for name, page in PAGES.items()}
CODES = VQConfig(codebook_size=64)
LAYOUT = BlockLayout(codebook_size=64, num_classes=3, num_blocks=4, block_capacity=16, sizes=(2, 4, 16))


@dataclass(frozen=True)
class Helpers:
    """Modules of helpers in folders of the tests, imported by their paths (`tokenizer/tiny_codecs`)."""

    monkeypatch: pytest.MonkeyPatch

    def __call__(self, module: str) -> Any:
        self.monkeypatch.syspath_prepend(ROOT / "tests" / Path(module).parent)
        return importlib.import_module(Path(module).name)


def adaptok() -> AdapTok:
    network = StackConfig(width=16, depth=1, heads=2)
    config = AdapTokConfig(resolution=(32, 32), block_capacity=16, encoder=network, decoder=network, quantizer=CODES)
    return AdapTok(config).eval()


def transformer(context_blocks: int = 0) -> BlockTransformer:
    sizes = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=96)
    return BlockTransformer(ARConfig(LAYOUT, sizes, context_blocks)).eval()


def readme(helpers: Helpers) -> dict[str, Any]:
    tokenizer, model = adaptok(), transformer()
    tokenizer.save("demo/tokenizer/export")
    sizes = ScorerConfig.for_tokenizer(tokenizer.config, StackConfig(16, 1, 2), sizes=LAYOUT.sizes, metric="x")
    Scorer(sizes).save("demo/scorer/export")
    model.origin = Origin(classes=["still", "circle", "grow"])
    model.save("demo/ar/export")
    return {}


def allocation(helpers: Helpers) -> dict[str, Any]:
    curves, sizes = torch.tensor([[3.0, 2.0, 1.5], [9.0, 4.0, 1.0]]), torch.tensor([1, 2, 4])
    given = {"curves": curves, "candidate_sizes": sizes, "budget": 5, "multiplier": 0.1}
    tokens = BlockTokens(torch.ones(1, 2, 4).bool(), torch.zeros(1, 2, 4).long())
    return {**given, "tokens": tokens, "predictor": FixedCurves(curves[None], sizes)}


def data(helpers: Helpers) -> dict[str, Any]:
    dataset = ClipDataset(SyntheticConfig(clips=8), ClipConfig(resolution=(32, 32)))
    batches = [[batch] for batch in one_pass(dataset, batch_size=1)]
    info = CacheInfo("abc", {"type": "uniform"}, "data", 1, 16, 4, 16, [4], 64, list(dataset.classes))
    given = {"tokenizer": adaptok(), "allocator": UniformAllocator(4), "fingerprint": "abc", "i": 0, "seed": 0}
    return {"folder": "cache", "info": info, "dataset": dataset, "batches": batches, **given}


def evaluation(helpers: Helpers) -> dict[str, Any]:
    """The data set, the weights and the protocol's count of clips are toys."""
    toys, patch = helpers("eval/toy_models"), helpers.monkeypatch
    patch.setattr("genvid.eval.protocols.protocol", lambda name: replace(toys.TOY, task="generation", count=16))
    patch.setattr("genvid.eval.sources.protocol_source", lambda record, path: toys.CLIPS)
    patch.setattr("genvid.eval.sources.unseen_source", lambda record, path: None)
    patch.setattr("genvid.eval.features.loading.load_features", lambda path: toys.Colours())
    video = torch.zeros(3, 16, 32, 32).byte()
    given = {"video": video, "reconstruction": video, "steps": [1, 2], "losses": [0.5, 0.4]}
    return {"sample": lambda labels, seeds: torch.rand(len(labels), 3, 16, 32, 32), **given}


def generation(helpers: Helpers) -> dict[str, Any]:
    model = transformer()
    model.save("runs/ar/export")
    Path("yeahhhh326").mkdir()
    helpers("ar/test_ar_published").published_folder(Path("yeahhhh326/AdapTok-AR"))
    tokenizer, clip = adaptok(), to_float(torch.zeros(2, 3, 4, 32, 32).byte())
    given = {"allocator": UniformAllocator(4), "labels": torch.tensor([0, 2]), "seeds": torch.arange(2), "clip": clip}
    return {"model": model, "frame_model": transformer(context_blocks=1), "tokenizer": tokenizer, **given}


def shipped(helpers: Helpers) -> dict[str, Any]:
    """A tokenizer that takes the place of `genvid-tiny`, with a scorer."""
    network = StackConfig(width=16, depth=1, heads=2)
    sizes = AdapTokConfig(patch=(4, 16, 16), block_capacity=64, encoder=network, decoder=network, quantizer=CODES)
    tokenizer = AdapTok(sizes).eval()
    tokenizer.save("genvid-tiny")
    config = ScorerConfig.for_tokenizer(sizes, network, sizes=(8, 16, 64), metric="x")
    Scorer(config).save("genvid-tiny/scorer")
    return {}


def demo_models(helpers: Helpers) -> dict[str, Any]:
    readme(helpers)
    recipe = yaml.safe_load((ROOT / "recipes" / "configs" / "demo" / "frame_prediction.yaml").read_text())
    transformer(recipe["context_blocks"]).save("demo/frame_prediction/export")
    return {}


def folder_of_videos(size: tuple[int, int], frames: int) -> None:
    """Two classes of moving noise."""
    for number in range(4):
        video = (torch.rand(3, frames, *size) * 255).byte()
        file = Path("my_videos") / "ab"[number % 2] / f"{number}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_video(file, video, 8)


def train_on_folder(helpers: Helpers) -> dict[str, Any]:
    """The recipes with few steps of small networks."""
    folder_of_videos((64, 64), 16)
    Path("recipes").symlink_to(ROOT / "recipes")
    small = ["--train.steps=2", "--train.log_every=1", "--train.workers=0", "--train.compile=false"]
    small += ["--train.precision=fp32", "--train.batch_size=2"]
    network = "{width: 16, depth: 1, heads: 1}"
    networks = {
        "tokenizer": [f"--model.{part}={network}" for part in ("encoder", "decoder")],
        "scorer": [f"--model={network}"],
    }
    read = importlib.import_module("genvid.recipes.train").read_run

    def read_small(argv: list[str]) -> Any:
        return read([*argv, *small, *networks[Path(argv[0]).stem]])

    helpers.monkeypatch.setattr("genvid.recipes.train.read_run", read_small)
    return {}


def evaluate_folder(helpers: Helpers) -> dict[str, Any]:
    folder_of_videos((128, 128), 16)
    return shipped(helpers)


def lit(helpers: Helpers) -> dict[str, Any]:
    codecs = helpers("tokenizer/tiny_codecs")
    codecs.make_lit(codecs.cosmos(Path("codec").resolve(), window=9), resolution=64).save("runs/lit/lit/export")
    video, shown = codecs.drifting(1, 90, 64), []
    return {"video": video, "chunks": video.split(9, dim=2), "show": shown.append}


def streams(helpers: Helpers) -> dict[str, Any]:
    network = StackConfig(16, 1, 2)
    geometry = RotaryGeometry(sides=(96, 160))
    config = AdapTokConfig(16, (128, 128), (4, 16, 16), 8, network, network, CODES, True, geometry)
    AdapTok(config).save("runs/tiny/tokenizer/export")
    return {"video": torch.zeros(1, 3, 16, 128, 128)}


PREPARED: dict[str, Callable[[Helpers], dict[str, Any]]] = {
    "README.md": readme,
    "docs/allocation.md": allocation,
    "docs/data.md": data,
    "docs/evaluation.md": evaluation,
    "docs/examples/allocate.md": shipped,
    "docs/examples/evaluate.md": evaluate_folder,
    "docs/examples/reconstruct.md": shipped,
    "docs/examples/sample.md": demo_models,
    "docs/examples/train.md": train_on_folder,
    "docs/generation.md": generation,
    "docs/lit.md": lit,
    "docs/published.md": allocation,
    "docs/streams.md": streams,
}
"""Page -> a function that makes the files and returns the variables that its blocks take as given."""


@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if blocks])
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = PREPARED[name](Helpers(monkeypatch)) if name in PREPARED else {}
    for number, block in enumerate(BLOCKS[name]):
        code = compile(block, f"{name}, block {number}", "exec")
        exec(code, namespace)
