"""Score LIT, the simple fillers and the rules it is compared with: python recipes/compare_lit.py CONFIG.yaml [...]

At every keep rate each clip keeps the same number of positions under every rule, except ElasticTok's, whose target
error is calibrated to that rate on a drawn batch, and where all clips have one price, which is calibrated on drawn
clips; "budget met, %" counts the clips that keep that number exactly.
Writes a report for each method and rate, table.md, page.html, and side_by_side as mp4 and as a picture (WebP) for
Markdown. One process.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

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
from genvid.eval.features.loading import load_features
from genvid.eval.metrics.fidelity import ClipPSNR, ClipSSIM, MeanPerceptual
from genvid.eval.metrics.frechet import FrechetVideoDistance
from genvid.eval.pages.page import Clip, Page
from genvid.eval.pages.rate_distortion import curves, quality_chart
from genvid.eval.protocols import check_held_out, data_protocol
from genvid.eval.reconstruction import ReconstructionScores
from genvid.eval.report import Provenance, Report, compare
from genvid.files import write_atomically
from genvid.perceptual import PerceptualConfig, StructureConfig
from genvid.tokenizer.lit.budget import BudgetAllocator, PriceAllocator, calibrate_prices, check_floor
from genvid.tokenizer.lit.codecs.codec import CodecSpec
from genvid.tokenizer.lit.comparators import ElasticTokRule, InfoTokRule
from genvid.tokenizer.lit.model import LIT, FilledCodec, fill_by_copying, fill_by_interpolation
from genvid.tokens import BlockTokens, VideoTokenizer

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
        if min(self.priced_clips, self.batch_size) < 1 or self.targets < 2:
            raise ValueError(
                "priced_clips and batch_size are at least 1 and targets at least 2, "
                f"got {self.priced_clips}, {self.batch_size} and {self.targets}"
            )


class Rates:
    """Sums of what `ReconstructionScores` do not count."""

    def __init__(self, spec: CodecSpec) -> None:
        self.spec = spec
        self.kept = self.positions = self.mask = self.met = self.clips = 0.0

    def update(self, tokens: BlockTokens, budget: int) -> None:
        self.kept += float(tokens.keep.sum())
        self.positions += tokens.keep.numel()
        self.mask += float(self.spec.side_bits(tokens.keep).sum())
        self.met += float((tokens.keep.sum((1, 2)) == budget).sum())
        self.clips += len(tokens.keep)

    def compute(self) -> dict[str, float]:
        return {
            "keep rate": self.kept / self.positions,
            "mask bits per clip": self.mask / self.clips,
            "budget met, %": 100 * self.met / self.clips,
        }


class Comparison:
    """Scores of every method at every rate."""

    def __init__(self, run: LITEvaluationRun) -> None:
        self.run = run
        self.lit = load_model(run.model, LIT).to(device()).at(run.data.clip.resolution)
        self.spec = self.lit.spec
        self.positions = self.spec.num_blocks(run.data.clip.frames) * self.spec.block_capacity
        check_floor(self._budget(min(run.rates)), self.spec.block_capacity)
        self.prices: dict[tuple[bool, float], float] = {}
        """By whether means are sent and by keep rate, that of a latent where all clips have one."""
        self.targets: list[tuple[float, float]] = []
        """Target errors of ElasticTok's rule, and the keep rates they led to."""
        distance = run.perceptual.build().to(device())
        self.features = None if run.features is None else load_features(run.features)
        self.scores = {
            (name, rate): ReconstructionScores(
                self.spec,
                [ClipPSNR(), ClipSSIM(), MeanPerceptual(distance)],
                frechet=None if self.features is None else FrechetVideoDistance(self.features),
            )
            for rate in run.rates
            for name in run.methods
        }
        self.rates = {key: Rates(self.spec) for key in self.scores}

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Calibrate what cannot be set to a keep rate: the one price of all clips, and ElasticTok's target errors."""
        videos, latents = (batch["video"] for batch in batches), []
        for number, video in enumerate(videos):
            tokens = self.lit.encode(video)
            if number == 0 and ELASTIC in self.run.methods:
                self._find_targets(video, tokens)
            latents.append(tokens.latents)
        for means in (False, True):
            prices = calibrate_prices(latents, self.run.rates, self.lit.metric, means=means)  # type: ignore[arg-type]
            self.prices |= {(means, rate): price for rate, price in zip(self.run.rates, prices, strict=True)}

    @torch.no_grad()
    def add(self, video: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Count a batch. By method, what it made of the batch at the rate to be shown: frames and kept positions."""
        tokens, shown = self.lit.encode(video), {}
        shown_rate = min(self.run.rates, key=lambda rate: abs(rate - self.run.shown_rate))
        for (name, rate), scores in self.scores.items():
            kept = self._allocator(name, rate, video)(tokens)
            restored = self._tokenizer(name).decode(kept).float()
            scores.update(video, restored, kept)
            self.rates[name, rate].update(kept, self._budget(rate))
            if rate == shown_rate:
                shown[name] = (restored, kept.keep)
        return shown

    def reports(self) -> list[Report]:
        run = self.run
        provenance = Provenance.now({"LIT": fingerprint(resolve(run.model))})
        pixels = run.data.clip.frames * math.prod(run.data.clip.resolution)
        reports = []
        for key, scores in self.scores.items():
            values = scores.compute()
            count = int(values.pop("clips"))
            protocol = replace(
                data_protocol(run.data, run.protocol, "reconstruction", count),
                features="" if self.features is None else self.features.name,
                note=f"codec {self.lit.codec.name}, window {self.lit.codec.codec_window}",
            )
            rates = self.rates[key].compute() | {"bits per 16 pixels": 16 * values["bits per clip"] / pixels}
            numbers = scores.numbers(rates | values, protocol, count)
            reports.append(Report(f"{key[0]} @ {key[1]:g}", numbers, provenance))
        return reports

    def _budget(self, rate: float) -> int:
        return round(rate * self.positions)

    def _allocator(self, name: str, rate: float, video: Tensor) -> Allocator:
        budget = self._budget(rate)
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

    def _tokenizer(self, name: str) -> VideoTokenizer:
        copied = dict.fromkeys(("means copied", "copy-forward"), fill_by_copying)
        fillers = copied | {"interpolation": fill_by_interpolation}
        filler = fillers.get(name.removesuffix(ONE_PRICE))
        return self.lit if filler is None else FilledCodec(self.lit, filler)

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


@dataclass(frozen=True)
class Shown:
    """A clip as the page shows it: uint8 videos (3, T, H, W) by caption."""

    name: str
    videos: dict[str, Tensor]


def evaluate(run: LITEvaluationRun) -> tuple[list[Report], list[Shown]]:
    """A report for each method and rate, and the clips to show."""
    comparison, dataset = Comparison(run), run.data.open()
    batches = partial(one_pass, dataset, batch_size=run.batch_size, workers=run.workers, device=device())
    if any(name == ELASTIC or name.endswith(ONE_PRICE) for name in run.methods):
        drawn = noise.permutation(0, "calibration", len(dataset))[: run.priced_clips].tolist()
        comparison.calibrate(batches(items=drawn))
    shown: list[Shown] = []
    for batch in tqdm(batches(), total=-(-len(dataset) // run.batch_size), desc="evaluating", unit="batch"):
        video = batch["video"]
        made = comparison.add(video)
        for row in range(min(len(video), run.shown - len(shown)) if made else 0):
            videos = {"original": video[row]}
            if "LIT" in made:
                videos["kept by LIT"] = _masked(video[row], made["LIT"][1][row], comparison.lit)
            videos |= {name: restored[row] for name, (restored, _) in made.items()}
            name = dataset.name(int(batch["index"][row]))
            shown.append(Shown(name, {caption: to_uint8(clip).cpu() for caption, clip in videos.items()}))
    return comparison.reports(), shown


def write_results(run: LITEvaluationRun, reports: Sequence[Report], shown: Sequence[Shown], fps: float = 12) -> None:
    """Reports, table.md, page.html and the clips side by side in the output folder."""
    folder = Path(run.output_dir)
    for report in reports:
        name = report.title.replace(" @ ", "_").replace("'s rule", "").replace(",", "").replace(" ", "_")
        report.save(folder / f"{name}.json")
    with write_atomically(folder / "table.md") as temporary:
        temporary.write_text(compare(reports) + "\n")
    page = Page("LIT", lead=f"{run.protocol}: fillers and rules on one frozen codec.")
    section = page.section("Quality against keep rate")
    qualities = [n.name for n in reports[0].numbers if n.better != "neither"]
    section.charts(*(quality_chart(curves(reports, "keep rate", name), "keep rate", name) for name in qualities))
    section.numbers(reports)
    if shown:
        captions = list(shown[0].videos)
        rows = {clip.name: [Clip(video_bytes(video, fps)) for video in clip.videos.values()] for clip in shown}
        page.section(f"Clips at a keep rate of {run.shown_rate:g}").comparison(captions, rows)
        wall = torch.cat([torch.cat(list(clip.videos.values()), 3) for clip in shown], 2)
        write_video(folder / "side_by_side.mp4", wall, fps)
        write_animation(folder / "side_by_side.webp", wall, fps)
    page.write(folder / "page.html")


def _masked(video: Tensor, keep: Tensor, lit: LIT) -> Tensor:
    """The frames of a clip (3, T, H, W), dropped positions darkened: what is transmitted."""
    codec, frames = lit.codec, []
    for start in range(0, video.shape[1], codec.codec_window or video.shape[1]):
        length = min(codec.codec_window or video.shape[1], video.shape[1] - start)
        frames += [1] + [codec.geometry.temporal_stride] * ((length - 1) // codec.geometry.temporal_stride)
    mask = torch.unflatten(keep, 1, lit.grid).repeat_interleave(torch.tensor(frames, device=keep.device), 0)
    mask = mask.repeat_interleave(codec.geometry.spatial_stride, 1).repeat_interleave(codec.geometry.spatial_stride, 2)
    return torch.where(mask, video, 0.2 * (video + 1) - 1)


@command
def main(argv: Sequence[str]) -> None:
    usage = "python recipes/compare_lit.py CONFIG.yaml [--key value ...]"
    run = configuration.parse(LITEvaluationRun, argv, usage=usage)
    reports, shown = evaluate(run)
    write_results(run, reports, shown)
    print(compare(reports))
    print(f"wrote {Path(run.output_dir) / 'page.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
