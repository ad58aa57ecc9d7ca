"""Score LIT, the simple fillers and the rules that it is compared with.

accelerate launch recipes/compare_lit.py CONFIG.yaml [--key value ...]

At every keep rate each clip keeps the same number of positions under every rule, except ElasticTok's, whose target
error is calibrated to that rate on a drawn batch, and where all clips have one price, which is calibrated on drawn
clips; "budget met, %" counts the clips that keep that number exactly.
Writes a report for each method and rate, table.md, page.html, and side_by_side as mp4 and as a picture (WebP) for
Markdown. Running it again resumes.
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
from genvid.allocation import Allocator
from genvid.batch import Batch
from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.command import command
from genvid.data.animation import write_animation
from genvid.data.clips import to_uint8
from genvid.data.dataset import VideoData
from genvid.data.loader import one_pass
from genvid.data.video import video_bytes, write_video
from genvid.device import device
from genvid.eval.evaluation import Candidate, Evaluation, Execution, Measures, Output
from genvid.eval.features.loading import load_features
from genvid.eval.features.mirrored import mirrored
from genvid.eval.metrics.fidelity import ClipFlicker, ClipPSNR, ClipSSIM, MeanPerceptual
from genvid.eval.pages.page import Clip, Page
from genvid.eval.pages.rate_distortion import curves, quality_chart
from genvid.eval.protocols import check_held_out, data_protocol
from genvid.eval.reconstruction import PerBatch
from genvid.eval.report import Provenance, Report, compare, write_table
from genvid.eval.selection import EvaluationClips, Selection
from genvid.eval.summary import Summary
from genvid.perceptual import PerceptualConfig, StructureConfig
from genvid.tokenizer.lit.budget import BudgetAllocator, PriceAllocator, calibrate_prices, check_floor
from genvid.tokenizer.lit.comparators import ElasticTokRule, InfoTokRule
from genvid.tokenizer.lit.model import LIT, Filler, fill_by_copying, fill_by_interpolation
from genvid.tokenizer.lit.refinement import refine_latents
from genvid.tokens import BlockTokens, TokenizerSpec
from genvid.train.accelerator import make_state

ONE_PRICE = ", one price"
ELASTIC = "ElasticTok's rule"
METHODS = (
    "LIT",
    "means copied",
    "copy-forward",
    "interpolation",
    f"LIT{ONE_PRICE}",
    f"copy-forward{ONE_PRICE}",
    "InfoTok's rule",
    ELASTIC,
)


@dataclass(frozen=True, kw_only=True)
class LITEvaluationRun:
    """Held-out clips, the model, and the keep rates and methods that are compared."""

    output_dir: str
    model: str
    data: VideoData
    rates: tuple[float, ...] = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
    methods: tuple[str, ...] = METHODS
    """ElasticTok's rule takes longer than all the others together."""
    priced_clips: int = 64
    """Clips that the one price of all is calibrated on, drawn among all; ElasticTok's rule on their first batch."""
    targets: int = 8
    """Target errors that calibrate ElasticTok's rule."""
    refine: int = 0
    """Steps by which the kept latents of every method are refined, for its own filler
    (genvid.tokenizer.lit.refinement)."""
    perceptual: PerceptualConfig = field(default_factory=StructureConfig)
    features: str | None = None
    """Feature network of a Frechet distance: a file or a model folder."""
    protocol: str = "clips of the source"
    batch_size: int = 8
    workers: int = 2
    shown: int = 4
    """Clips of the page and of side_by_side; 0 where they may not be shown."""
    shown_rate: float = 0.2
    """The rate that is nearest to it is shown."""

    def __post_init__(self) -> None:
        check_held_out(self.protocol, self.data)
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods or not self.rates or not all(0 < rate <= 1 for rate in self.rates):
            raise ValueError(
                f"keep rates in (0, 1] and some of the methods {', '.join(METHODS)} are needed, "
                f"got rates {self.rates} and methods {self.methods}"
            )
        configuration.check_counts(self, "priced_clips", "batch_size")
        if self.targets < 2 or min(self.shown, self.refine) < 0:
            raise ValueError(
                "targets is at least 2, shown and refine are at least 0, "
                f"got {self.targets}, {self.shown} and {self.refine}"
            )

    @property
    def nearest_rate(self) -> float:
        """The rate of the clips that are shown."""
        return min(self.rates, key=lambda rate: abs(rate - self.shown_rate))


@dataclass(frozen=True)
class Example:
    """A clip of the page: uint8 videos (3, T, H, W) by caption."""

    name: str
    videos: dict[str, Tensor]


class Comparison:
    """The model, the clips, and a candidate for each method and rate."""

    def __init__(self, run: LITEvaluationRun) -> None:
        self.run = run
        self.lit = load_model(run.model, LIT).to(device()).at(run.data.clip.resolution)
        self.spec = self.lit.spec
        self.positions = self.spec.num_blocks(run.data.clip.frames) * self.spec.block_capacity
        check_floor(self.budget(min(run.rates)), self.spec.block_capacity)
        self.dataset = run.data.open()
        self.dataset.strict = True  # another clip in the place of one that fails would be another set
        self.weights = {"LIT": fingerprint(resolve(run.model))}
        self.encoded = PerBatch(self.lit.encode)
        self.prices: dict[tuple[bool, float], float] = {}
        """By whether means are sent and by keep rate, that of a latent where all clips have one."""
        self.targets: list[tuple[float, float]] = []
        """Target errors of ElasticTok's rule, and the keep rates they led to."""
        self.evaluation = self._evaluation()
        self.methods = {(name, rate): Method(self, name, rate) for rate in run.rates for name in run.methods}
        self.candidates = [
            Candidate(f"{name} @ {rate:g}", method, Path(run.output_dir) / slug(f"{name} @ {rate:g}"))
            for (name, rate), method in self.methods.items()
        ]

    @torch.no_grad()
    def calibrate(self) -> None:
        """Calibrate what cannot be set to a keep rate: the one price of all clips, and ElasticTok's target errors."""
        run, latents = self.run, []
        if not any(is_calibrated(name) for name in run.methods):
            return
        drawn = noise.permutation(0, "calibration", len(self.dataset))[: run.priced_clips].tolist()
        batches = one_pass(self.dataset, batch_size=run.batch_size, items=drawn, workers=run.workers, device=device())
        for number, video in enumerate(batch["video"] for batch in batches):
            tokens = self.lit.encode(video)
            if number == 0 and ELASTIC in run.methods:
                self._find_targets(video, tokens)
            latents.append(tokens.latents)
        for means in (False, True):
            prices = calibrate_prices(latents, run.rates, self.lit.metric, means=means)  # type: ignore[arg-type]
            self.prices |= {(means, rate): price for rate, price in zip(run.rates, prices, strict=True)}

    @torch.no_grad()
    def examples(self) -> list[Example]:
        """The first clips and their versions at the rate to be shown."""
        run, real = self.run, self.evaluation.clips.real
        parts = torch.split(torch.arange(min(run.shown, len(real))), run.batch_size) if run.shown else ()
        found = []
        for part, batch in zip(parts, real.load(parts, workers=0, device=device()), strict=True):
            outputs = {name: self.methods[name, run.nearest_rate](batch, part) for name in run.methods}
            for row, video in enumerate(batch["video"]):
                videos = {"original": video}
                if "LIT" in outputs and (tokens := outputs["LIT"].tokens) is not None:
                    videos["kept by LIT"] = _masked(video, tokens.keep[row], self.lit)
                videos |= {name: output.video[row] for name, output in outputs.items()}
                name = real.names()[int(part[row])]
                found.append(Example(name, {caption: to_uint8(clip).cpu() for caption, clip in videos.items()}))
        return found

    def _evaluation(self) -> Evaluation:
        run, state = self.run, make_state()
        refined = f"; latents are refined by {run.refine} steps" if run.refine else ""
        protocol = replace(
            data_protocol(run.data, run.protocol, "reconstruction", len(self.dataset)),
            note=f"codec {self.lit.codec.name}, window {self.lit.codec.codec_window}{refined}",
        )
        features = None if run.features is None else mirrored(load_features(run.features), protocol.frames)
        followed = replace(protocol, features="" if features is None else features.name)
        real = Selection(self.dataset, [(index, index) for index in range(len(self.dataset))])
        fidelity = [ClipPSNR(), ClipSSIM(), ClipFlicker(), MeanPerceptual(run.perceptual.build())]
        execution = Execution(
            run.batch_size,
            workers=run.workers,
            device=device(),
            rank=state.process_index,
            world_size=state.num_processes,
        )
        clips = EvaluationClips(followed, protocol, real)
        return Evaluation(clips, Measures(features, fidelity, examples=0), execution)

    def budget(self, rate: float) -> int:
        return round(rate * self.positions)

    def allocator(self, name: str, rate: float, video: Tensor) -> Allocator:
        budget = self.budget(rate)
        if rate == 1:
            return _keep_all
        if name == "InfoTok's rule":
            return InfoTokRule(self.lit, video, budget)
        if name == ELASTIC:
            return ElasticTokRule(self.lit, video, self._target(rate))
        means = not name.startswith(("copy-forward", "interpolation"))
        if name.endswith(ONE_PRICE):
            return PriceAllocator(self.prices[means, rate], self.lit.metric, means=means)
        return BudgetAllocator(budget, self.lit.metric, means=means)

    def filler(self, name: str) -> Filler:
        copied = dict.fromkeys(("means copied", "copy-forward"), fill_by_copying)
        fillers = copied | {"interpolation": fill_by_interpolation}
        return fillers.get(name.removesuffix(ONE_PRICE), self.lit.fill)

    def _find_targets(self, video: Tensor, tokens: BlockTokens) -> None:
        """Keep rates that target errors lead to, from the codec's own error to that of dropping all."""
        spec = self.spec
        full, least = (
            float(((self.lit.decode(cut).clamp(-1, 1) - video) / 2).square().mean())
            for cut in (tokens, BudgetAllocator(spec.block_capacity, self.lit.metric, means=False)(tokens))
        )
        low, high = torch.tensor([full / 4, max(least, full * 1.5)]).log10().tolist()
        for target in torch.logspace(low, high, self.run.targets).tolist():
            kept = ElasticTokRule(self.lit, video, target)(tokens).keep
            self.targets.append((target, float(kept.double().mean())))

    def _target(self, rate: float) -> float:
        """The target error for a rate, linear between the calibrated ones on a logarithmic scale."""
        for (small, more), (large, fewer) in zip(self.targets, self.targets[1:], strict=False):
            if fewer <= rate <= more and more > fewer:
                share = (more - rate) / (more - fewer)
                return float(small ** (1 - share) * large**share)
        return self.targets[0][0] if rate > self.targets[0][1] else self.targets[-1][0]


def _keep_all(tokens: BlockTokens) -> BlockTokens:
    return tokens


class Method:
    """A `VideoModel`: clips cut and filled by one method at one keep rate."""

    def __init__(self, comparison: Comparison, name: str, rate: float) -> None:
        self.comparison, self.name, self.rate = comparison, name, rate
        self.spec: TokenizerSpec | None = comparison.spec

    def describe(self) -> Mapping[str, Any]:
        run = self.comparison.run
        about = {**self.comparison.weights, "method": self.name, "rate": self.rate}
        if run.refine:
            about["refine"] = run.refine
        calibration = {"priced_clips": run.priced_clips, "targets": run.targets}
        return about | calibration if is_calibrated(self.name) else about

    @torch.no_grad()
    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        comparison, video = self.comparison, conditioning["video"]
        kept = comparison.allocator(self.name, self.rate, video)(comparison.encoded(video))
        comparison.lit.check(kept)
        fill = comparison.filler(self.name)
        if comparison.run.refine:
            kept = refine_latents(comparison.lit, video, kept, comparison.run.refine, fill)
        restored = comparison.lit.render(fill(kept)).float()
        spec, pixels = comparison.spec, video[0, 0].numel()
        measured = {
            "keep rate": kept.keep.double().mean((1, 2)),
            "mask bits per clip": spec.side_bits(kept.keep),
            "budget met, %": 100 * (kept.keep.sum((1, 2)) == comparison.budget(self.rate)).double(),
            "bits per 16 pixels": 16 * spec.clip_bits(kept) / pixels,
        }
        return Output(restored, kept, measured)


def is_calibrated(method: str) -> bool:
    """Whether a method cannot be set to a keep rate directly."""
    return method == ELASTIC or method.endswith(ONE_PRICE)


def slug(title: str) -> str:
    """Title of a report -> its file name."""
    return title.replace(" @ ", "_").replace("'s rule", "").replace(",", "").replace(" ", "_")


def evaluate(run: LITEvaluationRun) -> tuple[list[Report], list[Example]]:
    """A report for each method and rate, and the clips of the page."""
    comparison = Comparison(run)
    comparison.calibrate()
    comparison.evaluation.measure(*comparison.candidates)
    make_state().wait_for_everyone()
    provenance = Provenance.now(comparison.weights)
    summaries = [Summary(comparison.evaluation, candidate, resamples=0) for candidate in comparison.candidates]
    return [summary.report(provenance) for summary in summaries], comparison.examples()


def write_results(
    run: LITEvaluationRun, reports: Sequence[Report], examples: Sequence[Example], fps: float = 12
) -> Path:
    """Write reports, table.md, page.html and the clips side by side; returns the path of the page."""
    folder = Path(run.output_dir)
    for report in reports:
        report.save(folder / f"{slug(report.title)}.json")
    write_table(folder / "table.md", reports)
    page = Page("LIT", lead=f"{run.protocol}: fillers and rules on one frozen codec.")
    section = page.section("Quality against keep rate")
    qualities = [n.name for n in reports[0].numbers if n.better != "neither"]
    section.charts(*(quality_chart(curves(reports, "keep rate", name), "keep rate", name) for name in qualities))
    section.numbers(reports)
    if examples:
        captions = list(examples[0].videos)
        rows = {clip.name: [Clip(video_bytes(video, fps)) for video in clip.videos.values()] for clip in examples}
        page.section(f"Clips at a keep rate of {run.nearest_rate:g}").comparison(captions, rows)
        wall = torch.cat([torch.cat(list(clip.videos.values()), 3) for clip in examples], 2)
        write_video(folder / "side_by_side.mp4", wall, fps)
        write_animation(folder / "side_by_side.webp", wall, fps)
    return page.write(folder / "page.html")


def _masked(video: Tensor, keep: Tensor, lit: LIT) -> Tensor:
    """The frames of a clip (3, T, H, W), dropped positions darkened: the transmitted ones."""
    codec, frames = lit.codec, []
    for start in range(0, video.shape[1], codec.codec_window or video.shape[1]):
        length = min(codec.codec_window or video.shape[1], video.shape[1] - start)
        frames += [1] + [codec.geometry.temporal_stride] * ((length - 1) // codec.geometry.temporal_stride)
    mask = torch.unflatten(keep, 1, lit.grid).repeat_interleave(torch.tensor(frames, device=keep.device), 0)
    mask = mask.repeat_interleave(codec.geometry.spatial_stride, 1).repeat_interleave(codec.geometry.spatial_stride, 2)
    return torch.where(mask, video, 0.2 * (video + 1) - 1)


@command
def main(argv: Sequence[str]) -> None:
    usage = "accelerate launch recipes/compare_lit.py CONFIG.yaml [--key value ...]"
    run = configuration.parse(LITEvaluationRun, argv, usage=usage)
    reports, examples = evaluate(run)
    if make_state().is_main_process:
        print(compare(reports))
        print(f"wrote {write_results(run, reports, examples)}")


if __name__ == "__main__":
    main(sys.argv[1:])
