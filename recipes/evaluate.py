"""Score reconstructions of every allocator at every budget: accelerate launch recipes/evaluate.py CONFIG.yaml [...]

One pass over the clips serves all of them. Writes report.json (one report per allocator and budget, with protocol and
provenance) and page.html.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from genvid import config as configuration
from genvid.allocation import Allocator, Calibration, JointAllocator, build_allocator
from genvid.allocation.config import (
    AllocatorConfig,
    GroupConfig,
    JointConfig,
    OnlineConfig,
    TableConfig,
    ThresholdConfig,
    UniformConfig,
)
from genvid.checkpoint import fingerprint, resolve
from genvid.data.clips import to_uint8
from genvid.data.loader import one_pass
from genvid.data.video import video_bytes
from genvid.eval.charts import LineChart, Series
from genvid.eval.metrics.fidelity import ClipPSNR, ClipSSIM, MeanPerceptual
from genvid.eval.page import Clip, Page, Section
from genvid.eval.protocols import Protocol
from genvid.eval.reconstruction import ReconstructionScores
from genvid.eval.report import Number, Provenance, Report
from genvid.perceptual import PerceptualConfig, StructureConfig
from genvid.recipes.allocated import decode, encode
from genvid.recipes.calibrate import measured_predictor
from genvid.recipes.command import command
from genvid.recipes.loading import DistortionSpec, VideoData, device, load_adaptok, load_scorer
from genvid.tokenizer.adaptok.scorer import ScorerPredictor

CHARTED = ("uniform", "table", "group", "joint", "threshold", "oracle")
"""Allocators of the rate-distortion charts."""
RATE = ("tokens per clip", "bits per clip", "codebook used", "codebook perplexity")
"""Numbers that are neither good nor bad."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """Held-out clips, the models, and the budgets that are compared."""

    output_dir: str
    tokenizer: str
    scorer: str
    calibration: str
    data: VideoData
    budgets: tuple[float, ...]
    """Mean tokens per video."""
    distortion: DistortionSpec = field(default_factory=DistortionSpec)
    """What the scorer predicts: measured too, and what the oracle minimises."""
    perceptual: PerceptualConfig = field(default_factory=StructureConfig)
    protocol: str = "held-out clips"
    group_size: int = 64
    batch_size: int = 16
    workers: int = 2
    shown: int = 8
    """Clips of the page; 0 where they may not be shown."""


@dataclass(frozen=True)
class Shown:
    """A clip as the page shows it: the original, and what each budget of the joint program made of it."""

    name: str
    original: Tensor
    versions: dict[float, tuple[Tensor, list[int]]]


@torch.no_grad()
def evaluate(run: EvaluationRun) -> tuple[list[Report], list[Shown]]:
    """All reports, and the clips to show (on the main process)."""
    state = PartialState()
    tokenizer = load_adaptok(run.tokenizer).to(device())
    predictor = ScorerPredictor(tokenizer, load_scorer(run.scorer, tokenizer).to(device()))
    calibration = Calibration.load(run.calibration)
    distortion, perceptual = run.distortion.build().to(device()), run.perceptual.build()
    dataset = run.data.open()
    blocks = tokenizer.spec.num_blocks(run.data.clip.frames)
    scores: dict[tuple[str, float], ReconstructionScores] = {}
    shown: list[Shown] = []
    groups = one_pass(
        dataset,
        batch_size=run.group_size,
        rank=state.process_index,
        world_size=state.num_processes,
        workers=run.workers,
        device=device(),
    )
    total = -(-len(dataset) // (run.group_size * state.num_processes))
    for group in tqdm(groups, total=total, desc="evaluating", unit="group", disable=not state.is_main_process):
        video = group["video"]
        tokens = encode(tokenizer, video, run.batch_size)
        oracle = measured_predictor(tokenizer, video, predictor.sizes, distortion)
        versions: list[dict[float, tuple[Tensor, list[int]]]] = [{} for _ in video]
        for budget in run.budgets:
            rules: dict[str, Allocator] = {
                choice: build_allocator(config, blocks, predictor, calibration)
                for choice, config in choices(budget, run.group_size).items()
            }
            rules["oracle"] = JointAllocator(oracle, budget, run.group_size, block_weights=calibration.block_weights)
            for name, rule in rules.items():
                kept = rule(tokens)
                restored = decode(tokenizer, kept, run.batch_size)
                if (name, budget) not in scores:
                    fidelity = [ClipPSNR(), ClipSSIM(), MeanPerceptual(perceptual), MeanPerceptual(distortion)]
                    scores[name, budget] = ReconstructionScores(tokenizer.spec, fidelity)
                scores[name, budget].update(video, restored, kept)
                if name == "joint" and len(shown) < run.shown:
                    for row, version in enumerate(versions[: run.shown]):
                        version[budget] = (to_uint8(restored[row]).cpu(), kept.lengths[row].tolist())
        for row in range(min(len(video), run.shown - len(shown))):
            name = dataset.name(int(group["index"][row]))
            shown.append(Shown(name, to_uint8(video[row]).cpu(), versions[row]))
    return [_report(run, name, budget, score) for (name, budget), score in scores.items()], shown


def choices(budget: float, group_size: int) -> dict[str, AllocatorConfig]:
    """Every allocator at one budget."""
    return {
        "uniform": UniformConfig(budget),
        "table": TableConfig(budget),
        "group": GroupConfig(budget, group_size),
        "joint": JointConfig(budget, group_size),
        "threshold": ThresholdConfig(budget),
        "online": OnlineConfig(budget),
    }


def _report(run: EvaluationRun, name: str, budget: float, scores: ReconstructionScores) -> Report:
    values = scores.compute()
    clip = run.data.clip
    protocol = Protocol(
        name=run.protocol,
        task="reconstruction",
        dataset=str(configuration.encode(run.data.source)),
        split="held out",
        frames=clip.frames,
        clips={"all": "windows", "first": "first", "random": "random"}[clip.window],  # type: ignore[arg-type]
        count=int(values["clips"]),
        resolution=min(clip.resolution),
        note=f"groups of {run.group_size} clips in the order of the data set share a budget",
    )
    better = {"PSNR": "higher", "SSIM": "higher"}
    numbers = [
        Number(
            metric,
            value,
            protocol,
            int(values["clips"]),
            unit="dB" if metric == "PSNR" else "",
            better=better.get(metric, "lower" if metric not in RATE else "neither"),  # type: ignore[arg-type]
        )
        for metric, value in values.items()
        if metric != "clips"
    ]
    weights = {part: fingerprint(resolve(getattr(run, part))) for part in ("tokenizer", "scorer")}
    return Report(f"{name} @ {budget:g}", numbers, Provenance.now(weights))


def gap_table(reports: Sequence[Report], metric: str) -> tuple[list[str], list[list[str | float]]]:
    """Distortion of every allocator at every budget, and the share of the uniform-to-oracle gap that each closes."""
    table: dict[str, dict[str, float]] = {}
    for report in reports:
        name, _, budget = report.title.partition(" @ ")
        table.setdefault(name, {})[budget] = next(n.value for n in report.numbers if n.name == metric)
    budgets = list(next(iter(table.values())))
    header = ["allocator", *(f"{metric} @ {b}" for b in budgets), *(f"gap closed @ {b}, %" for b in budgets)]
    rows: list[list[str | float]] = []
    for name, values in table.items():
        worst, best = table["uniform"], table["oracle"]
        closed = [100 * (worst[b] - values[b]) / max(worst[b] - best[b], 1e-12) for b in budgets]
        rows.append([name, *values.values(), *(round(share, 1) for share in closed)])
    return header, rows


def add_to_page(section: Section, reports: Sequence[Report], shown: Sequence[Shown], capacity: int, fps: float) -> None:
    """Charts, tables and clips of an evaluation."""
    names = [number.name for number in reports[0].numbers]
    metric = names[3]
    charts = []
    for quality in ("PSNR", names[2]):
        series = []
        for name in CHARTED:
            rows = [r for r in reports if r.title.startswith(f"{name} @")]
            value = {
                n.name: [next(m.value for m in r.numbers if m.name == n.name) for r in rows] for n in rows[0].numbers
            }
            series.append(Series(name, value["tokens per clip"], value[quality]))
        charts.append(LineChart(quality, series, x_label="tokens per clip", y_label=quality, markers=True))
    section.charts(*charts)
    header, table = gap_table(reports, metric)
    section.table(header, table)
    section.numbers(reports)
    if shown:
        scale = max(1, 128 // shown[0].original.shape[-1])
        budgets = list(shown[0].versions)
        rows = {}
        for clip in shown:
            versions = [
                Clip(video_bytes(video, fps, scale=scale), f"{sum(lengths)} tokens", lengths, capacity)
                for video, lengths in clip.versions.values()
            ]
            rows[clip.name] = [Clip(video_bytes(clip.original, fps, scale=scale)), *versions]
        section.comparison(["original", *(f"mean budget {budget:g}" for budget in budgets)], rows)


@command
def main(argv: Sequence[str]) -> None:
    usage = "accelerate launch recipes/evaluate.py CONFIG.yaml [--key value ...]"
    run = configuration.parse(EvaluationRun, argv, usage=usage)
    reports, shown = evaluate(run)
    if PartialState().is_main_process:
        folder = Path(run.output_dir)
        for report in reports:
            report.save(folder / f"{report.title.replace(' @ ', '_')}.json")
        page = Page("Reconstruction", lead=f"{run.protocol}: every allocator at every budget.")
        capacity = load_adaptok(run.tokenizer).spec.block_capacity
        add_to_page(page.section("Allocators"), reports, shown, capacity, fps=8)
        page.write(folder / "page.html")
        print(f"wrote {folder / 'page.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
