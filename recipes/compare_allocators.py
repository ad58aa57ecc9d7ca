"""Score reconstructions of every allocator at every budget.

accelerate launch recipes/compare_allocators.py CONFIG.yaml [--key value ...]

Each clip is encoded once for all of them. Writes a report for each allocator and budget, with protocol and provenance,
and page.html. Running it again resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genvid import config as configuration
from genvid import noise
from genvid.allocation import Allocator, DistortionPredictor, JointAllocator, build_allocator, choices
from genvid.batch import Batch
from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.command import command
from genvid.data.clips import to_uint8
from genvid.data.dataset import VideoData
from genvid.data.video import video_bytes
from genvid.device import device
from genvid.eval.evaluation import Candidate, Evaluation, Execution, Measures, Output
from genvid.eval.metrics.fidelity import ClipDistance, ClipPSNR, ClipSSIM, MeanPerceptual
from genvid.eval.pages.page import Clip, Page, Section
from genvid.eval.pages.rate_distortion import curves, quality_chart, split_title
from genvid.eval.protocols import check_held_out, data_protocol
from genvid.eval.reconstruction import PerBatch
from genvid.eval.report import Provenance, Report
from genvid.eval.selection import EvaluationClips, Selection
from genvid.eval.summary import Summary
from genvid.files import sha256
from genvid.perceptual import PerceptualConfig
from genvid.tokenizer.adaptok.curves import MeasuredCurves
from genvid.tokenizer.adaptok.loading import load_calibration, load_scorer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import ScorerPredictor
from genvid.tokenizer.losses import DistortionSpec
from genvid.tokens import BlockTokens, TokenizerSpec
from genvid.tokens.coding import decode, encode
from genvid.train.accelerator import make_state

ALLOCATORS = ("uniform", "table", "group", "joint", "threshold", "online", "oracle")
"""All that can be compared. `oracle` is the joint program on measured curves: what perfect prediction would give."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """Held-out clips, the models, and the allocators and budgets that are compared."""

    output_dir: str
    tokenizer: str
    scorer: str
    calibration: str
    data: VideoData
    budgets: tuple[float, ...]
    """Mean tokens per video."""
    allocators: tuple[str, ...] = ALLOCATORS
    """The oracle takes longer than all the others together: it decodes each clip many times."""
    distortion: DistortionSpec = field(default_factory=DistortionSpec)
    """The distortion that the scorer predicts: measured here, and minimised by the oracle."""
    perceptual: PerceptualConfig | None = None
    """Another distance that is measured beside `distortion` and its perceptual part."""
    protocol: str = "clips of the source"
    clips: int | None = None
    """Clips compared, drawn among all; None: all."""
    group_size: int = 64
    """Clips that share a budget: drawn over the data set, because neighbours in its order are of one class or file."""
    seed: int = 0
    """Of the draw of the clips and their groups."""
    batch_size: int = 16
    """Clips decoded at a time: memory, not results."""
    workers: int = 2
    shown: int = 8
    """Clips of the page, as the joint program cuts them; 0 where they may not be shown."""

    def __post_init__(self) -> None:
        check_held_out(self.protocol, self.data)
        unknown = [name for name in self.allocators if name not in ALLOCATORS]
        if unknown or not self.allocators or not self.budgets:
            raise ValueError(
                f"at least one budget and one of the allocators {', '.join(ALLOCATORS)} are needed, "
                f"got budgets {self.budgets} and allocators {self.allocators}"
            )
        if self.clips is not None and self.clips < 1:
            raise ValueError(f"clips is at least 1, got {self.clips}")


@dataclass(frozen=True)
class Example:
    """A clip of the page, uint8 (3, T, H, W), and by budget its version of the joint program with the lengths of its
    blocks."""

    name: str
    original: Tensor
    versions: dict[float, tuple[Tensor, list[int]]]


class Comparison:
    """The models, the clips, and a candidate for each allocator and budget."""

    def __init__(self, run: EvaluationRun) -> None:
        self.run = run
        self.tokenizer = load_model(run.tokenizer, AdapTok).to(device())
        scorer = load_scorer(run.scorer, self.tokenizer).to(device())
        self.predictor = ScorerPredictor(self.tokenizer, scorer)
        self.calibration = load_calibration(run.calibration, self.tokenizer, scorer)
        self.distortion = run.distortion.build().to(device())
        self.weights = {"tokenizer": fingerprint(resolve(run.tokenizer)), "scorer": fingerprint(resolve(run.scorer))}
        self.encoded = PerBatch(self._encode)
        self.evaluation = self._evaluation()
        self.models = {
            (name, budget): Allocated(self, name, budget) for budget in run.budgets for name in run.allocators
        }
        folder = Path(run.output_dir)
        self.candidates = [
            Candidate(f"{name} @ {budget:g}", model, folder / f"{name}_{budget:g}")
            for (name, budget), model in self.models.items()
        ]

    def allocator(self, name: str, budget: float, blocks: int, measured: DistortionPredictor) -> Allocator:
        """`measured`: the curves of the group, for the oracle."""
        group_size, calibration = self.run.group_size, self.calibration
        if name == "oracle":
            return JointAllocator(measured, budget, group_size, block_weights=calibration.block_weights)
        return build_allocator(choices(budget, group_size)[name], blocks, self.predictor, calibration)

    def examples(self) -> list[Example]:
        """The first clips, cut by the joint program within their groups."""
        run, real = self.run, self.evaluation.clips.real
        joint = {budget: model for (name, budget), model in self.models.items() if name == "joint"}
        parts = torch.split(torch.arange(len(real)), run.group_size)[: -(-run.shown // run.group_size)]
        found: list[Example] = []
        for part, batch in zip(parts, real.load(parts, workers=0, device=device()), strict=True):
            outputs = {budget: model(batch, part) for budget, model in joint.items()}
            for row in range(min(len(part), run.shown - len(found)) if joint else 0):
                versions = {
                    budget: (to_uint8(output.video[row]).cpu(), output.tokens.lengths[row].tolist())
                    for budget, output in outputs.items()
                    if output.tokens is not None
                }
                found.append(Example(real.names()[int(part[row])], to_uint8(batch["video"][row]).cpu(), versions))
        return found

    def _encode(self, video: Tensor) -> tuple[BlockTokens, MeasuredCurves]:
        size = self.run.batch_size
        measured = MeasuredCurves(self.tokenizer, video, self.predictor.sizes, self.distortion, batch_size=size)
        return encode(self.tokenizer, video, size), measured

    def _evaluation(self) -> Evaluation:
        run, dataset = self.run, self.run.data.open()
        dataset.strict = True  # another clip in the place of one that fails would be another set
        drawn = noise.permutation(run.seed, "groups", len(dataset))[: run.clips].tolist()
        protocol = replace(
            data_protocol(run.data, run.protocol, "reconstruction", len(drawn)),
            seed=run.seed,
            note=f"groups of {run.group_size} clips, drawn over the data set, share a budget",
        )
        configs = {run.perceptual, run.distortion.perceptual} - {None}
        distances: list[ClipDistance] = [config.build() for config in sorted(configs, key=repr) if config is not None]
        fidelity = [ClipPSNR(), ClipSSIM(), *map(MeanPerceptual, [*distances, self.distortion])]
        clips = EvaluationClips(protocol, protocol, Selection(dataset, [(index, index) for index in drawn]))
        state = make_state()
        execution = Execution(
            run.group_size,
            workers=run.workers,
            device=device(),
            rank=state.process_index,
            world_size=state.num_processes,
        )
        return Evaluation(clips, Measures(None, fidelity, codebook=True, examples=0), execution)


class Allocated:
    """A `VideoModel`: groups of clips, cut by one allocator at one budget."""

    def __init__(self, comparison: Comparison, name: str, budget: float) -> None:
        self.comparison, self.name, self.budget = comparison, name, budget
        self.spec: TokenizerSpec | None = comparison.tokenizer.spec

    def describe(self) -> Mapping[str, Any]:
        run = self.comparison.run
        made_from = {**self.comparison.weights, "calibration": sha256(run.calibration)[:16]}
        about = {**made_from, "allocator": self.name, "budget": self.budget}
        return about | {"distortion": configuration.encode(run.distortion)} if self.name == "oracle" else about

    @torch.no_grad()
    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        comparison = self.comparison
        tokens, measured = comparison.encoded(conditioning["video"])
        kept = comparison.allocator(self.name, self.budget, tokens.keep.shape[1], measured)(tokens)
        return Output(decode(comparison.tokenizer, kept, comparison.run.batch_size), kept)


def evaluate(run: EvaluationRun) -> tuple[list[Report], list[Example]]:
    """A report for each allocator and budget, and the clips of the page."""
    comparison = Comparison(run)
    comparison.evaluation.measure(*comparison.candidates)
    make_state().wait_for_everyone()
    provenance = Provenance.now(comparison.weights)
    reports = [Summary(comparison.evaluation, candidate).report(provenance) for candidate in comparison.candidates]
    return reports, comparison.examples()


OVERSPENT = 0.01
"""Part of its budget by which a rule may spend more and still be compared at that budget."""
TIE = 1e-3
"""Part of its value by which uniform lengths may lie above the oracle without a gap that could be closed."""


def gap_table(reports: Sequence[Report], metric: str) -> tuple[list[str], list[list[str | float | None]]]:
    """A row for each budget and allocator: tokens spent, `metric` and, with an oracle, the part of the way from uniform
    lengths to it that is closed, in %.

    That part is None, a dash, where there is no way (`TIE`), and where the rule keeps its budget in the mean of the
    calibration only and spends more here (`OVERSPENT`): then it is not compared at equal cost.
    """
    found = {split_title(report.title): report for report in reports}
    header, rows = ["mean budget", "allocator", "tokens spent", metric], list[list[str | float | None]]()
    ends = all((name, budget) in found for _, budget in found for name in ("uniform", "oracle"))
    for (name, budget), report in found.items():
        spent, value = report.value("tokens per clip"), report.value(metric)
        row: list[str | float | None] = [budget, name, round(spent, 1), value]
        if ends:
            worst, best = (found[end, budget].value(metric) for end in ("uniform", "oracle"))
            comparable = worst - best > TIE * abs(worst) and spent <= (1 + OVERSPENT) * float(budget)
            row.append(round(100 * (worst - value) / (worst - best), 1) if comparable else None)
        rows.append(row)
    return [*header, "gap closed, %"] if ends else header, rows


def add_to_page(
    section: Section, reports: Sequence[Report], examples: Sequence[Example], capacity: int, fps: float
) -> None:
    """Charts, tables and clips of an evaluation; a block holds at most `capacity` tokens."""
    distances = [number.name for number in reports[0].numbers if number.better == "lower"]
    rate = "tokens per clip"
    section.charts(*(quality_chart(curves(reports, rate, name), rate, name) for name in ("PSNR", *distances)))
    section.table(*gap_table(reports, distances[-1]))
    section.note("A dash: uniform lengths are as good as the oracle, or the rule spent more than its budget.")
    section.numbers(reports)
    if not examples:
        return
    scale = max(1, 128 // examples[0].original.shape[-1])
    rows = {}
    for clip in examples:
        versions = [
            Clip(video_bytes(video, fps, scale=scale), f"{sum(lengths)} tokens", lengths, capacity)
            for video, lengths in clip.versions.values()
        ]
        rows[clip.name] = [Clip(video_bytes(clip.original, fps, scale=scale)), *versions]
    section.comparison(["original", *(f"mean budget {budget:g}" for budget in examples[0].versions)], rows)


@command
def main(argv: Sequence[str]) -> None:
    usage = "accelerate launch recipes/compare_allocators.py CONFIG.yaml [--key value ...]"
    run = configuration.parse(EvaluationRun, argv, usage=usage)
    reports, examples = evaluate(run)
    if make_state().is_main_process:
        folder = Path(run.output_dir)
        for report in reports:
            report.save(folder / f"{report.title.replace(' @ ', '_')}.json")
        page = Page("Reconstruction", lead=f"{run.protocol}: every allocator at every budget.")
        capacity = load_model(run.tokenizer, AdapTok).spec.block_capacity
        add_to_page(page.section("Allocators"), reports, examples, capacity, fps=8)
        page.write(folder / "page.html")
        print(f"wrote {folder / 'page.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
