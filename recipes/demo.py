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
from pathlib import Path
from typing import Any

import yaml

from genvid import config as configuration
from genvid.command import command
from genvid.data import ClipConfig, FolderConfig
from genvid.eval.pages.charts import LineChart, Series
from genvid.eval.pages.page import Page
from genvid.eval.pages.rate_distortion import split_title
from genvid.eval.report import Report, compare
from genvid.recipes import compare_allocators, generate
from genvid.recipes.cache_tokens import CacheRun, cache_tokens
from genvid.recipes.calibrate import CalibrationRun, run_calibration
from genvid.recipes.compare_allocators import EvaluationRun
from genvid.recipes.generate import GenerationRun
from genvid.recipes.train import read_run, train
from genvid.tokens.cache import FINGERPRINT

CONFIGS = Path(__file__).parent / "configs" / "demo"
TRAINED = ("tokenizer", "scorer", "ar", "frame_prediction", "classifier")
FPS = 8.0


class Demo:
    """The stages of one output folder, and the seconds that each took."""

    def __init__(self, output: Path, data: str | None, quick: bool) -> None:
        self.output, self.data, self.quick = output, data, quick
        self.seconds: dict[str, float] = {}

    def overrides(self, name: str) -> list[str]:
        """Changes of a recipe: its folder, the clips of `--data`, and with `--quick` the number of steps."""
        recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        changed = _moved(recipe, self.output)
        if self.data is not None and "data" in recipe:
            split = "val" if recipe["data"]["source"].get("seed") else "train"
            changed["data.source"] = json.dumps({"type": "folder", "path": self.data, "held_out": split == "val"})
            changed["data.clip.window"] = "all" if split == "val" else "random"
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

    def run(self) -> Path:
        """All stages; returns the page."""
        if self.data is not None and len(FolderConfig(self.data).open(ClipConfig()).classes) < 2:
            raise ValueError(f"{self.data} must hold two class folders or more: the demo samples by class")
        self.train("tokenizer")
        self.train("scorer")
        calibration = self.config(CalibrationRun, "calibration")
        if not (self.output / "calibration" / "calibration.json").exists():
            self.stage("calibration", lambda: run_calibration(calibration))
        cache = self.config(CacheRun, "cache")
        if not (self.output / "cache" / FINGERPRINT).exists():
            self.stage("cache", lambda: cache_tokens(cache))
        for name in ("ar", "frame_prediction", "classifier"):
            self.train(name)
        reconstruction = self.config(EvaluationRun, "evaluation")
        reports, shown = self.stage("reconstruction", lambda: compare_allocators.evaluate(reconstruction))
        samples = self.stage("samples", lambda: generate.generate(self.config(GenerationRun, "generation")))
        predictions = self.stage("predictions", lambda: generate.generate(self.config(GenerationRun, "prediction")))
        capacity = samples.generated.tokens.keep.shape[-1]
        page = Page(
            "genvid demo",
            lead="A tokenizer that decides how many tokens each block of a video deserves, a model that writes such "
            "sequences, and what both are worth. Every clip below is held out or generated.",
        )
        self._summary(page, reports, samples.report, predictions.report)
        section = page.section("Reconstruction at three budgets")
        section.text(
            "Bars are the tokens of each block of four frames. The joint program spends one budget over all clips: "
            "more where it predicts that they help, equal shares where it predicts nothing better."
        )
        compare_allocators.add_to_page(section, reconstruction, reports, shown, FPS)
        generate.add_to_page(page.section("Samples of each class"), samples, per_class=6, fps=FPS, capacity=capacity)
        generate.add_to_page(page.section("Frame prediction"), predictions, per_class=6, fps=FPS, capacity=capacity)
        self._curves(page)
        page.write(self.output / "report.html")
        for report in (*reports, samples.report, predictions.report):
            report.save(self.output / "reports" / f"{report.title.replace(' @ ', '_').replace(' ', '_')}.json")
        print("\n" + compare([r for r in reports if split_title(r.title)[0] not in compare_allocators.ORACLES]))
        print("\n" + compare([samples.report]))
        print("\n" + compare([predictions.report]))
        return self.output / "report.html"

    def _summary(self, page: Page, reports: Sequence[Report], samples: Report, predictions: Report) -> None:
        half = {split_title(r.title)[0]: r for r in reports if split_title(r.title)[1] == "32"}
        facts: dict[str, str | float | None] = {
            "samples classified as asked": f"{100 * samples.value('class as asked'):.0f} %",
        }
        for name in ("joint", "uniform"):
            if name in half:
                facts[f"PSNR, {name}, half the tokens"] = f"{half[name].value('PSNR'):.2f} dB"
        facts["minutes in all"] = f"{sum(self.seconds.values()) / 60:.1f}"
        section = page.section("In short").facts(facts)
        section.table(["stage", "seconds"], [[name, round(taken, 1)] for name, taken in self.seconds.items()])

    def _curves(self, page: Page) -> None:
        charts = []
        for name in TRAINED:
            lines = (self.output / name / "metrics.jsonl").read_text().splitlines()
            records = [json.loads(line) for line in lines]
            steps = [record["step"] for record in records]
            charts.append(
                LineChart(name, [Series("loss", steps, [r["loss"] for r in records])], "step", "loss", log_y=True)
            )
        page.section("Training").charts(*charts)


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
    parser = argparse.ArgumentParser(description="Every stage on small clips, and one page that shows what came out.")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for runs and report.html")
    parser.add_argument("--data", help="folder of videos in class subfolders, in place of generated clips")
    parser.add_argument("--quick", action="store_true", help="a few steps per stage, to check that all of them run")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    page = Demo(options.output, options.data, options.quick).run()
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes; open {page.resolve()}")


if __name__ == "__main__":
    main(sys.argv[1:])
