"""Recipes of a few seconds: 8 frames at 16x16 in 2 blocks of up to 8 tokens, on generated clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from two_processes import launch_two

from genvid.recipes import cache_tokens, calibrate, compare_allocators, generate, train

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NETWORK = {"width": 32, "depth": 1, "heads": 2}
DISTORTION = {"weights": {"mse": 20.0, "perceptual": 1.0}}
TAIL_DROP = {"mean": 4, "std": 3, "minimum": 1, "maximum": 8}
SIZES = [1, 2, 4, 8]
BUDGETS = [6, 10]
GROUP = 16
STRATEGIES = ["fsdp2", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
"""Launch files that must train as DDP does."""


def clips(count: int = 64, seed: int = 0) -> dict[str, Any]:
    return {
        "source": {"type": "synthetic", "clips": count, "seed": seed},
        "clip": {"frames": 8, "resolution": [16, 16], "window": "all"},
    }


def training(*phases: str, **settings: Any) -> dict[str, Any]:
    optimizers = {phase: {"lr": 1e-3, "warmup_steps": 2, "final_lr": 1.0} for phase in phases or ("model",)}
    defaults = {"steps": 2, "batch_size": 8, "workers": 0, "log_every": 1, "ema_decay": 0.9}
    return {**defaults, "optimizers": optimizers, **settings}


class MeanColour(torch.nn.Module):
    """A feature network."""

    num_features = 3

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return video.mean((2, 3, 4))


class Stages:
    """The config of every stage in one folder, ready to be changed and run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        models = {"tokenizer": self.path("tokenizer/export"), "scorer": self.path("scorer/export")}
        calibration = self.path("calibration/calibration.json")
        self.configs: dict[str, dict[str, Any]] = {
            "tokenizer": {
                "task": "adaptok",
                "data": clips(),
                "model": {
                    "frames": 8,
                    "resolution": [16, 16],
                    "patch": [4, 8, 8],
                    "block_capacity": 8,
                    "encoder": NETWORK,
                    "decoder": NETWORK,
                    "quantizer": {"type": "fsq", "levels": [4, 4]},
                },
                "objective": {"tail_drop": TAIL_DROP, "prior": {"transformer": NETWORK}},
                "distortion": {"weights": {"l1": 1.0, "perceptual": 0.1}},
                "discriminator": {"transformer": NETWORK},
                "train": training("generator", "discriminator"),
            },
            "scorer": {
                "task": "scorer",
                "data": clips(),
                "tokenizer": models["tokenizer"],
                "model": NETWORK,
                "sizes": SIZES,
                "tail_drop": TAIL_DROP,
                "distortion": DISTORTION,
                "train": training(),
            },
            "calibration": {
                **models,
                "data": clips(),
                "budgets": BUDGETS,
                "distortion": DISTORTION,
                "clips": 32,
                "batch_size": 16,
                "workers": 0,
            },
            "cache": {
                "data": clips(),
                "tokens": {
                    **models,
                    "calibration": calibration,
                    "allocator": {"type": "joint", "tokens_per_video": 10, "group_size": GROUP},
                },
                "group_size": GROUP,
                "batch_size": 8,
                "workers": 0,
            },
            "ar": {
                "task": "ar",
                "cache": self.path("cache"),
                "model": {"width": 32, "depth": 1, "heads": 2, "kv_heads": 2, "hidden": 64, "max_positions": 64},
                "train": training(),
            },
            "classifier": {"task": "classifier", "data": clips(), "width": 8, "train": training()},
            "evaluation": {
                **models,
                "calibration": calibration,
                "data": clips(32, seed=1),
                "budgets": BUDGETS,
                "distortion": DISTORTION,
                "group_size": GROUP,
                "batch_size": 8,
                "workers": 0,
                "shown": 2,
            },
            "generation": {
                "model": self.path("ar/export"),
                "tokens": {
                    **models,
                    "calibration": calibration,
                    "allocator": {"type": "threshold", "tokens_per_video": 10},
                },
                "classifier": self.path("classifier/export"),
                "data": clips(32, seed=1),
                "count": 16,
                "batch_size": 8,
                "workers": 0,
            },
        }

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, stage: str, name: str | None = None, **changes: Any) -> Path:
        """A config file of `stage` whose output folder is `name` (the stage's own by default)."""
        name = name or stage
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**self.configs[stage], "output_dir": self.path(name), **changes}))
        return file

    def run(self, stage: str, name: str | None = None, *overrides: str, **changes: Any) -> Path:
        """Run a stage as its script would; returns its output folder."""
        mains = {
            "calibration": calibrate,
            "cache": cache_tokens,
            "evaluation": compare_allocators,
            "generation": generate,
        }
        mains.get(stage, train).main([str(self.write(stage, name, **changes)), *overrides])
        return self.folder / (name or stage)

    def launch(self, stage: str, name: str, **changes: Any) -> Path:
        """Run a stage in two processes."""
        scripts = {"cache": "cache_tokens.py", "evaluation": "compare_allocators.py", "generation": "generate.py"}
        script = RECIPES / scripts.get(stage, "train.py")
        launch_two(script, self.write(stage, name, **changes))
        return self.folder / name

    def launch_all(self, runs: list[tuple[str, Path]]) -> None:
        """Train the configs one after another in one launch of two processes, each under its own launch file."""
        launch_all(self.folder / "runs.json", runs)


def launch_all(listing: Path, runs: list[tuple[str, Path]]) -> None:
    """Train configs one after another in one launch of two processes: (launch file, config); listed in `listing`."""
    listing.write_text(json.dumps([[launch, str(config)] for launch, config in runs]))
    launch_two(Path(__file__).with_name("launched_runs.py"), listing)


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
