"""Drift of generated video: python benchmarks/drift.py [--output drift]

Trains a tokenizer of rotary geometry on drawn clips of 64 frames, and two models of frame prediction on its tokens: one
on windows of streams, one on clips that are encoded alone. Both continue held-out prompts of 16 frames to 64, as
`genvid sample --frames` does: the first goes on from tokens (`continue_stream`), for the second the last frames are
encoded anew before each part (`continue_video`). The table has the Frechet distance of every 16 frames to the same
frames of other held-out clips. The same command resumes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from genvid import config as configuration
from genvid import noise
from genvid.allocation import UniformAllocator
from genvid.ar.row_model import RowModel
from genvid.checkpoint import load_model
from genvid.data.clips import ClipConfig
from genvid.data.dataset import VideoData
from genvid.data.loader import one_pass
from genvid.data.sources.files import FolderConfig
from genvid.data.sources.synthetic import SyntheticConfig
from genvid.data.video import write_video
from genvid.device import device
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.features.loading import load_features
from genvid.eval.metrics.frechet import frechet_distance, frechet_interval, frechet_name
from genvid.generation.engine.scheduler import Engine
from genvid.generation.pipeline import continue_stream, continue_video
from genvid.generation.sampler import SamplingConfig
from genvid.recipes.cache_tokens import CacheRun, cache_tokens
from genvid.recipes.train import read_run, train
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.streams import video_decoder
from genvid.tokens.cache import FINGERPRINT

RECIPES = Path(__file__).resolve().parents[1] / "recipes/configs/demo"
FRAMES, PROMPT, PART = 64, 16, 16
"""Of a clip, of a prompt, and of the parts whose distance is measured."""
TOKENS = 6
"""Of a block."""
CONTEXT, ROW = 4, 8
"""Blocks that the models read, and blocks of their rows."""
STEPS = 350
"""Of the models."""
CLIPS = {"train": (2048, 0), "held_out": (512, 1)}
"""Number and seed of the clips of a split."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("drift"))
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    for split in CLIPS:
        draw_videos(options.output / "videos" / split, *CLIPS[split])
    train_all(options.output)
    features = load_features(options.output / "classifier/export").to(device())
    real = held_out(options.output)
    prompts, others = real[::2], real[1::2]
    print(f"{frechet_name(features)}, {len(prompts)} clips beside {len(others)} others, 95 % intervals")
    print(f"{'frames':16}" + "".join(f"{f'{start} to {start + PART - 1}':>22}" for start in range(0, FRAMES, PART)))
    for name, videos in continued(options.output, prompts, SamplingConfig(options.temperature)):
        print(f"{name:16}" + "".join(f"{cell:>22}" for cell in distances(features, others, videos)), flush=True)


def draw_videos(folder: Path, clips: int, seed: int) -> None:
    """Files of drawn clips in class folders."""
    rule = ClipConfig(frames=FRAMES, resolution=(32, 32))
    shapes = ("disc", "square", "diamond", "triangle")
    source = SyntheticConfig(clips, seed, complexities=("plain",), shapes=shapes).open(rule)
    for number, label in enumerate(source.labels):
        file = folder / source.classes[label] / f"{number:05d}.mp4"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_video(file, source.clip(number, 0), fps=8)


def train_all(output: Path) -> None:
    """Tokenizer, classifier, and for each way a cache and a model: the recipes of the demo, changed."""
    clips = {"data.source": _videos(output, "train"), "validation.source": _videos(output, "held_out")}
    geometry = json.dumps({"type": "rotary", "window": 2, "sides": [32, 32]})
    _train("tokenizer", output / "tokenizer", clips | {"model.geometry": geometry})
    _train("classifier", output / "classifier", clips)
    train_predictor(output, "stream", {"data.clip.frames": FRAMES, "data.clip.window": "first"}, sink_blocks=1)
    train_predictor(output, "sliding", {"data.clip.frames": 4 * ROW, "passes": 4}, sink_blocks=0)


def train_predictor(output: Path, name: str, clips: dict[str, object], *, sink_blocks: int) -> None:
    """The token cache of these clips, and the model of its rows."""
    cache, tokens = output / f"{name}_cache", TOKENS * int(str(clips["data.clip.frames"])) // 4
    coded = {
        "data.source": _videos(output, "train"),
        "tokens.tokenizer": output / "tokenizer/export",
        "tokens.scorer": None,
        "tokens.calibration": None,
        "tokens.allocator": json.dumps({"type": "uniform", "tokens_per_video": tokens}),
    }
    if not (cache / FINGERPRINT).exists():
        changed = _overrides(coded | clips | {"output_dir": cache})
        cache_tokens(configuration.load(CacheRun, RECIPES / "cache.yaml", changed))
    rows = {
        "cache": cache,
        "context_blocks": CONTEXT,
        "num_blocks": ROW,
        "sink_blocks": sink_blocks,
        "model.max_positions": 160,
    }
    _train("frame_prediction", output / name, rows | {"validation": None, "train.steps": STEPS})


def _videos(output: Path, split: str) -> str:
    return json.dumps({"type": "folder", "path": str(output / "videos" / split)})


def _train(recipe: str, output: Path, changed: dict[str, object]) -> None:
    train(read_run([str(RECIPES / f"{recipe}.yaml"), *_overrides(changed | {"output_dir": output})]))


def _overrides(changed: dict[str, object]) -> list[str]:
    return [f"--{key}={'null' if value is None else value}" for key, value in changed.items()]


def held_out(output: Path) -> Tensor:
    """(N, 3, T, H, W): all held-out clips, class by class."""
    source = FolderConfig(str(output / "videos/held_out"))
    data = VideoData(source, ClipConfig(frames=FRAMES, resolution=(32, 32), window="first"), strict=True).open()
    return torch.cat([batch["video"] for batch in one_pass(data, batch_size=64)])


@torch.no_grad()
def continued(output: Path, real: Tensor, sampling: SamplingConfig) -> Iterator[tuple[str, Tensor]]:
    """Name and videos of each way: real ones, what the tokenizer keeps of them, and the beginnings continued."""
    tokenizer = load_model(output / "tokenizer/export", AdapTok).to(device())
    allocator, seeds = UniformAllocator(TOKENS), noise.sample_seeds(0, "samples", torch.arange(len(real)))
    yield "real", real
    tokens = allocator(tokenizer.encode(real.to(device())))
    yield "reconstructed", tokenizer.decode(tokens).clamp(-1, 1).cpu()
    prompt = real[:, :, :PROMPT]
    stream = Engine(load_model(output / "stream/export", RowModel).to(device()), sampling)
    decode_next = video_decoder(tokenizer)
    given = tokens.blocks(slice(PROMPT // 4))
    beginning = decode_next(given).clamp(-1, 1).cpu()
    parts = continue_stream(
        stream, decode_next, given.to("cpu"), seeds, num_blocks=(FRAMES - PROMPT) // 4, at_a_time=ROW - CONTEXT
    )
    yield "stream", torch.cat([beginning, *(part.videos for part in parts)], 2)
    sliding = Engine(load_model(output / "sliding/export", RowModel).to(device()), sampling)
    yield "sliding", continue_video(sliding, tokenizer, allocator, prompt, seeds, num_frames=FRAMES - PROMPT).videos


@torch.no_grad()
def distances(features: FeatureNetwork, real: Tensor, videos: Tensor) -> list[str]:
    """Of every `PART` frames, with its interval."""
    found = []
    for start in range(0, FRAMES, PART):
        both = [
            torch.cat([features(part.to(device())).cpu() for part in torch.split(side[:, :, start : start + PART], 64)])
            for side in (real, videos)
        ]
        low, high = frechet_interval(both[0], both[1])
        found.append(f"{frechet_distance(both[0], both[1]):.2f} ({low:.2f} to {high:.2f})")
    return found


if __name__ == "__main__":
    main()
