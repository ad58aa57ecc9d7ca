"""Every stage on small clips, with a page of results: python recipes/demo.py [--output demo] [--data DIR]

Runs the recipes of recipes/configs/demo in one process. `--data` is a folder of videos in class subfolders; without it
the clips are generated. The same command resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from genvid import config as configuration
from genvid.command import command
from genvid.data import ClipConfig, FolderConfig
from genvid.eval.metrics.frechet import FEWEST_REAL
from genvid.recipes import compare_allocators, generate
from genvid.recipes.cache_tokens import CacheRun, cache_tokens
from genvid.recipes.calibrate import CalibrationRun, run_calibration
from genvid.recipes.compare_allocators import EvaluationRun
from genvid.recipes.demo_page import Results, fill, first_page, tables
from genvid.recipes.generate import GenerationRun
from genvid.recipes.train import read_run, train
from genvid.tokens.cache_info import FINGERPRINT

CONFIGS = Path(__file__).parent / "configs" / "demo"
SHIPPED_TOKENIZER = "genvid-tiny"


class Demo:
    """The stages of one output folder, and the seconds that each took."""

    def __init__(self, output: Path, data: str | None, quick: bool) -> None:
        self.output, self.data, self.quick = output, data, quick
        self.page = output / "report.html"
        self.seconds: dict[str, float] = {}

    def overrides(self, name: str) -> list[str]:
        """Changes of a recipe: its folder, the clips of `--data`, and with `--quick` the number of steps."""
        recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        changed = _moved(recipe, self.output)
        if self.data is not None and "data" in recipe:
            split = "val" if recipe["data"]["source"].get("seed") else "train"
            changed["data.source"] = json.dumps({"type": "folder", "path": self.data, "held_out": split == "val"})
            changed["data.clip.window"] = "all" if split == "val" else "random"
            if "source" in recipe.get("validation", {}):
                changed["validation.source"] = json.dumps({"type": "folder", "path": self.data, "held_out": True})
        if self.quick and "train" in recipe:
            changed["train.steps"] = "4"
        return [f"--{key}={value}" for key, value in changed.items()]

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Run one stage and measure its time."""
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - start
        return result

    def train(self, name: str) -> None:
        run = read_run([str(CONFIGS / f"{name}.yaml"), *self.overrides(name)])
        self.stage(name, lambda: train(run))

    def config(self, cls: type[Any], name: str) -> Any:
        return configuration.load(cls, CONFIGS / f"{name}.yaml", self.overrides(name))

    def check_data(self, folder: str) -> None:
        """ValueError, before anything is trained, for videos of which the last stages cannot make their numbers."""
        if len(FolderConfig(folder).open(ClipConfig()).classes) < 2:
            raise ValueError(f"{folder} must hold two class folders or more: the demo samples by class")
        clips = self.config(GenerationRun, "generation").data.open()
        if len(clips) < FEWEST_REAL:
            raise ValueError(
                f"{folder} has {len(clips)} held-out clips of {clips.clip.frames} frames, and the demo compares with "
                f"at least {FEWEST_REAL}: give it more videos, or longer ones (the last eighth of each class is held "
                "out)"
            )

    def run(self) -> Path:
        """All stages; returns the page."""
        if self.data is not None:
            self.check_data(self.data)
        page = self.stage("real video", lambda: first_page(SHIPPED_TOKENIZER))
        page.write(self.page)
        print(f"open {self.page.resolve()}: the first section is there, the others follow")
        self.train("tokenizer")
        self.train("scorer")
        calibration = self.config(CalibrationRun, "calibration")
        if not (self.output / "calibration" / "calibration.json").exists():
            self.stage("calibration", lambda: run_calibration(calibration))
        for name in ("cache", "held_out_cache"):
            if not (self.output / name / FINGERPRINT).exists():
                self.stage(name, partial(cache_tokens, self.config(CacheRun, name)))
        for name in ("ar", "frame_prediction", "classifier"):
            self.train(name)
        reconstruction = self.config(EvaluationRun, "evaluation")
        reports, examples = self.stage("reconstruction", lambda: compare_allocators.evaluate(reconstruction))
        samples = self.stage("samples", lambda: generate.generate(self.config(GenerationRun, "generation")))
        predictions = self.stage("predictions", lambda: generate.generate(self.config(GenerationRun, "prediction")))
        results = Results(reports, examples, samples, predictions, self.seconds)
        fill(page, results, self.output)
        page.write(self.page)
        for report in (*reports, samples.report, predictions.report):
            report.save(self.output / "reports" / f"{report.title.replace(' @ ', '_').replace(' ', '_')}.json")
        for table in tables(results):
            print(f"\n{table.text()}")
        return self.page


def _moved(recipe: dict[str, Any], output: Path, prefix: str = "") -> dict[str, str]:
    """Every path below demo/ of a recipe, as an override that puts it below `output`."""
    moved: dict[str, str] = {}
    for key, value in recipe.items():
        if isinstance(value, dict):
            moved |= _moved(value, output, f"{prefix}{key}.")
        elif isinstance(value, str) and value.startswith("demo/"):
            moved[prefix + key] = str(output / value.removeprefix("demo/"))
    return moved


@command
def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Every stage on small clips, and one page with the results.")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for runs and report.html")
    parser.add_argument("--data", help="folder of videos in class subfolders, in place of generated clips")
    parser.add_argument("--quick", action="store_true", help="a few steps per stage, to check that all of them run")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    page = Demo(options.output, options.data, options.quick).run()
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes; open {page.resolve()}")


if __name__ == "__main__":
    main(sys.argv[1:])
