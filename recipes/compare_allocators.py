"""Score reconstructions of every allocator at every budget.

accelerate launch recipes/compare_allocators.py CONFIG.yaml [--key value ...]

Each clip is encoded once for all of them. Writes a report for each allocator and budget, with protocol and provenance,
summary.json (all numbers and gaps in one file) and page.html. Running it again resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genvid import config as configuration
from genvid import noise
from genvid.allocation import Allocator, AllocatorConfig, DistortionPredictor, build_allocator, choices
from genvid.allocation.config import JointConfig
from genvid.batch import Batch
from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.command import command
from genvid.data.clips import to_uint8
from genvid.data.dataset import VideoData
from genvid.device import device
from genvid.eval.evaluation import Candidate, Evaluation, Execution, Measures, Output
from genvid.eval.examples import Example, add_examples, draw_videos, join_windows, write_pictures
from genvid.eval.features.loading import load_features
from genvid.eval.features.mirrored import mirrored
from genvid.eval.gaps import RATE, UNIFORM, gap_table, gaps
from genvid.eval.metrics.fidelity import ClipDistance, ClipFlicker, ClipPSNR, ClipSSIM, MeanPerceptual
from genvid.eval.pages.page import Page, Section
from genvid.eval.pages.rate_distortion import curves, quality_chart
from genvid.eval.protocols import check_held_out, data_protocol
from genvid.eval.reconstruction import PerBatch
from genvid.eval.report import Provenance, Report
from genvid.eval.selection import EvaluationClips, Selection
from genvid.eval.summary import Summary
from genvid.files import sha256, write_json
from genvid.perceptual import PerceptualConfig
from genvid.tokenizer.adaptok.curves import MeasuredCurves
from genvid.tokenizer.adaptok.loading import load_calibration, load_scorer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokenizer.losses import DistortionSpec
from genvid.tokenizer.refinement import check_refined, refine_clips
from genvid.tokens import BlockTokens, TokenizerSpec
from genvid.tokens.coding import decode, encode
from genvid.train.accelerator import make_state

ORACLES = ("oracle", "clip_oracle")
"""Joint programs on measured curves, in three rounds: what perfect prediction would give."""
CLIP_PROGRAMS = ("clip", "clip_oracle")
"""Joint programs of each clip alone."""
ALLOCATORS = ("uniform", "group", "joint", "threshold", "online", "clip", *ORACLES, "table")
"""All that can be compared. Charts show the first seven."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """Held-out clips, the models, and the allocators and budgets that are compared."""

    output_dir: str
    tokenizer: str
    scorer: str
    calibration: str
    data: VideoData
    budgets: tuple[float, ...]
    """Mean tokens per video. Where these are all tokens, only uniform lengths are measured."""
    allocators: tuple[str, ...] = ALLOCATORS
    """The oracles take longer than all the others together: they decode each clip many times."""
    refine: int = 0
    """Steps by which the kept codes are refined, whatever the allocator (genvid.tokenizer.refinement)."""
    distortion: DistortionSpec = field(default_factory=DistortionSpec)
    """The distortion that the scorer predicts: measured here, and minimised by the oracle."""
    perceptual: PerceptualConfig | None = None
    """Another distance that is measured beside `distortion` and its perceptual part."""
    features: str | None = None
    """Feature network of a Frechet distance: a file or a model folder."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of tokenizer and scorer. Distances and features are computed in float32."""
    training: VideoData | None = None
    """Clips that the tokenizer was trained on: uniform lengths are measured on `training_clips` of them too."""
    training_clips: int = 256
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
    pictures: VideoData | None = None
    """Clips that may be shown: the page shows `shown` videos of them, drawn and not chosen, in place of those that are
    measured, and `pictures/` holds them as pictures."""

    def __post_init__(self) -> None:
        check_held_out(self.protocol, self.data)
        unknown = [name for name in self.allocators if name not in ALLOCATORS]
        if unknown or not self.allocators or not self.budgets:
            raise ValueError(
                f"at least one budget and one of the allocators {', '.join(ALLOCATORS)} are needed, "
                f"got budgets {self.budgets} and allocators {self.allocators}"
            )
        configuration.check_counts(self, "training_clips", "clips", "group_size", "batch_size")
        if self.shown < 0:
            raise ValueError(f"shown is at least 0, got {self.shown}")


class Comparison:
    """The models, the clips, and a candidate for each allocator and budget."""

    def __init__(self, run: EvaluationRun) -> None:
        self.run = run
        self.tokenizer = load_model(run.tokenizer, AdapTok).to(device())
        scorer = load_scorer(run.scorer, self.tokenizer).to(device())
        check_refined(self.tokenizer, run.refine)
        self.predictor = ScorerPredictor(self.tokenizer, scorer)
        self.calibration = load_calibration(run.calibration, self.tokenizer, scorer)
        self.distortion = run.distortion.build().to(device())
        self.weights = {"tokenizer": fingerprint(resolve(run.tokenizer)), "scorer": fingerprint(resolve(run.scorer))}
        self.encoded = PerBatch(self._encode)
        self.evaluation = self._evaluation()
        for data in (run.training, run.pictures):
            if data is not None:
                data.open()  # clips that are not there are found before anything is measured
        every_token = self.tokenizer.spec.num_blocks(run.data.clip.frames) * self.tokenizer.spec.block_capacity
        self.models = {
            (name, budget): Allocated(self, name, budget)
            for budget in run.budgets
            for name in (run.allocators if budget < every_token else (UNIFORM,))
        }
        folder = Path(run.output_dir)
        self.candidates = [
            Candidate(f"{name} @ {budget:g}", model, folder / f"{name}_{budget:g}")
            for (name, budget), model in self.models.items()
        ]

    def allocator(self, name: str, budget: float, blocks: int, measured: DistortionPredictor) -> Allocator:
        """`measured`: the curves of the group, for the oracles."""
        predictor = measured if name in ORACLES else self.predictor
        return build_allocator(self.choice(name, budget), blocks, predictor, self.calibration)

    def choice(self, name: str, budget: float) -> AllocatorConfig:
        """The rule of an allocator."""
        group_size = 1 if name in CLIP_PROGRAMS else self.run.group_size
        if name in ORACLES:
            return JointConfig(budget, group_size, rounds=3)
        return choices(budget, group_size)["joint" if name in CLIP_PROGRAMS else name]

    def autocast(self) -> torch.autocast:
        """The precision of tokenizer and scorer."""
        return torch.autocast(device().type, torch.bfloat16, enabled=self.run.precision == "bf16")

    def examples(self) -> list[Example]:
        """The first clips, or the videos of `pictures`, cut by the joint program within their groups."""
        run, joint = self.run, {budget: model for (name, budget), model in self.models.items() if name == "joint"}
        if not joint or not run.shown:
            return []
        clips, count = self.evaluation.clips.real, run.shown
        if run.pictures is not None:
            clips = draw_videos(run.pictures.open(), run.shown, run.seed)
            count = len(clips)
        groups = torch.split(torch.arange(len(clips)), run.group_size)[: -(-count // run.group_size)]
        found: list[Example] = []
        for group, batch in zip(groups, clips.load(groups, workers=0, device=device()), strict=True):
            outputs = {budget: model(batch, group) for budget, model in joint.items()}
            for row, position in enumerate(group.tolist()):
                versions = {
                    budget: (to_uint8(output.video[row]).cpu(), output.tokens.lengths[row].tolist())
                    for budget, output in outputs.items()
                    if output.tokens is not None
                }
                found.append(Example(clips.names()[position], to_uint8(batch["video"][row]).cpu(), versions))
        return found[:count] if run.pictures is None else join_windows(found)

    def _encode(self, video: Tensor) -> tuple[BlockTokens, MeasuredCurves]:
        size = self.run.batch_size
        measured = MeasuredCurves(self.tokenizer, video, self.predictor.sizes, self.distortion, batch_size=size)
        return encode(self.tokenizer, video, size), measured

    def _evaluation(self) -> Evaluation:
        run, dataset = self.run, self.run.data.open()
        dataset.strict = True  # another clip in the place of one that fails would be another set
        drawn = noise.permutation(run.seed, "groups", len(dataset))[: run.clips].tolist()
        refined = f"; codes are refined by {run.refine} steps" if run.refine else ""
        protocol = replace(
            data_protocol(run.data, run.protocol, "reconstruction", len(drawn)),
            seed=run.seed,
            note=f"groups of {run.group_size} clips, drawn over the data set, share a budget{refined}",
        )
        configs = {run.perceptual, run.distortion.perceptual} - {None}
        distances: list[ClipDistance] = [config.build() for config in sorted(configs, key=repr) if config is not None]
        fidelity = [ClipPSNR(), ClipSSIM(), ClipFlicker(), *map(MeanPerceptual, [*distances, self.distortion])]
        features = None if run.features is None else mirrored(load_features(run.features), protocol.frames)
        followed = replace(protocol, features="" if features is None else features.name)
        clips = EvaluationClips(followed, protocol, Selection(dataset, [(index, index) for index in drawn]))
        state = make_state()
        execution = Execution(
            run.group_size,
            workers=run.workers,
            device=device(),
            rank=state.process_index,
            world_size=state.num_processes,
        )
        return Evaluation(clips, Measures(features, fidelity, codebook=True, examples=0), execution)


class Allocated:
    """A `VideoModel`: groups of clips, cut by one allocator at one budget."""

    def __init__(self, comparison: Comparison, name: str, budget: float) -> None:
        self.comparison, self.name, self.budget = comparison, name, budget
        self.spec: TokenizerSpec | None = comparison.tokenizer.spec

    def describe(self) -> Mapping[str, Any]:
        run = self.comparison.run
        made_from = {**self.comparison.weights, "calibration": sha256(run.calibration)[:16]}
        about = {**made_from, "allocator": self.name, "budget": self.budget}
        if isinstance(choice := self.comparison.choice(self.name, self.budget), JointConfig):
            about["rounds"] = choice.rounds
        if run.precision != "fp32":
            about["precision"] = run.precision
        if run.refine:
            about["refine"] = run.refine
        return about | {"distortion": configuration.encode(run.distortion)} if self.name in ORACLES else about

    @torch.no_grad()
    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        comparison, run = self.comparison, self.comparison.run
        with comparison.autocast():
            tokens, measured = comparison.encoded(conditioning["video"])
            kept = comparison.allocator(self.name, self.budget, tokens.keep.shape[1], measured)(tokens)
            kept = refine_clips(comparison.tokenizer, conditioning["video"], kept, run.refine, run.batch_size)
            return Output(decode(comparison.tokenizer, kept, run.batch_size).float(), kept)


def evaluate(run: EvaluationRun) -> tuple[list[Report], list[Example]]:
    """A report for each allocator and budget, and the clips of the page."""
    comparison = Comparison(run)
    comparison.evaluation.measure(*comparison.candidates)
    make_state().wait_for_everyone()
    provenance = Provenance.now(comparison.weights)
    reports = [
        Summary(comparison.evaluation, candidate, resamples=0).report(provenance) for candidate in comparison.candidates
    ]
    return reports, comparison.examples()


def evaluate_training(run: EvaluationRun) -> list[Report]:
    """Reports of uniform lengths on training clips; none where no such clips are given."""
    if run.training is None:
        return []
    of_training = replace(
        run,
        output_dir=str(Path(run.output_dir) / "training"),
        data=run.training,
        training=None,
        clips=run.training_clips,
        protocol="training clips",
        allocators=(UNIFORM,),
        shown=0,
    )
    return evaluate(of_training)[0]


def summary(run: EvaluationRun, reports: Sequence[Report], training: Sequence[Report]) -> dict[str, Any]:
    """All numbers of an evaluation, for summary.json: `gap` and `numbers` of each allocator and budget, and the numbers
    of the training clips."""
    metric = run.distortion.build().name
    numbers = {report.title: {number.name: number.value for number in report.numbers} for report in reports}
    first = reports[0].numbers[0]
    return {
        "protocol": asdict(first.protocol),
        "clips": first.count,
        "distortion": metric,
        "better": {number.name: number.better for number in reports[0].numbers},
        "provenance": asdict(reports[0].provenance),
        "rows": [
            {**asdict(gap), "numbers": numbers[report.title]}
            for gap, report in zip(gaps(reports, metric), reports, strict=True)
        ],
        "training": {report.title: {number.name: number.value for number in report.numbers} for report in training},
    }


def add_to_page(
    section: Section, run: EvaluationRun, reports: Sequence[Report], examples: Sequence[Example], fps: float
) -> None:
    """Charts, tables and clips of an evaluation."""
    metric, capacity = run.distortion.build().name, load_model(run.tokenizer, AdapTok).spec.block_capacity
    qualities = [number.name for number in reports[0].numbers if number.name == "PSNR" or number.better == "lower"]
    section.charts(*(quality_chart(curves(reports, RATE, name), RATE, name) for name in qualities))
    section.table(*gap_table(gaps(reports, metric), metric))
    section.note(
        "Gaps lie between uniform lengths and the oracle at the tokens that a rule spent. A dash: uniform lengths are "
        "as good as the oracle, or the rule spent more than the largest budget."
    )
    section.numbers(reports)
    add_examples(section, examples, capacity, fps)


@command
def main(argv: Sequence[str]) -> None:
    usage = "accelerate launch recipes/compare_allocators.py CONFIG.yaml [--key value ...]"
    run = configuration.parse(EvaluationRun, argv, usage=usage)
    reports, examples = evaluate(run)
    training = evaluate_training(run)
    if make_state().is_main_process:
        folder = Path(run.output_dir)
        for place, made in ((folder, reports), (folder / "training", training)):
            for report in made:
                report.save(place / f"{report.title.replace(' @ ', '_')}.json")
        write_json(folder / "summary.json", summary(run, reports, training))
        page = Page("Reconstruction", lead=f"{run.protocol}: every allocator at every budget.")
        add_to_page(page.section("Allocators"), run, reports, examples, fps=8)
        if training:
            page.section("Training clips").numbers(training)
        page.write(folder / "page.html")
        if run.pictures is not None and examples:
            capacity = load_model(run.tokenizer, AdapTok).spec.block_capacity
            write_pictures(folder / "pictures", examples, capacity, fps=8)
        print(f"wrote {folder / 'page.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
