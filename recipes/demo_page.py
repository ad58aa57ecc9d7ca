"""The page of the demo, and its tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from genvid import api, checkpoint
from genvid.data import EXAMPLE_VIDEO
from genvid.data.clips import to_float
from genvid.data.video import probe, read_clip, video_bytes
from genvid.eval.examples import Example, add_examples
from genvid.eval.gaps import RATE
from genvid.eval.metrics.fidelity import ClipPSNR
from genvid.eval.pages.page import Clip, Page, Section, Value
from genvid.eval.pages.rate_distortion import curves, quality_chart, split_title
from genvid.eval.report import Report
from genvid.recipes.compare_allocators import ORACLES
from genvid.recipes.samples_page import Samples, add_samples
from genvid.recipes.training_curves import loss_chart
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.train.run import read_journal

FPS = 8.0
"""Of the generated clips."""
SHOWN = 4
"""Clips of each class, and predictions, that are shown."""
SHARES = (1 / 16, 1 / 4, 1)
"""Of the tokens of the shipped tokenizer: budgets of the real video."""
LEAD = "Videos as tokens, more of them where more happens; a model that generates such tokens; measurements of both."


@dataclass(frozen=True)
class Results:
    """All that the stages measured."""

    reports: Sequence[Report]
    """Reconstructions, of every rule at every budget."""
    examples: Sequence[Example]
    samples: Samples
    predictions: Samples
    seconds: Mapping[str, float]
    """Of each stage."""

    @property
    def capacity(self) -> int:
        return int(self.samples.generated.tokens.keep.shape[-1])


@dataclass(frozen=True)
class Table:
    """A few numbers under their own headings, for the page and the terminal."""

    title: str
    header: list[str]
    rows: list[list[Value]]

    def text(self) -> str:
        """Aligned columns under the title."""
        texts = [self.header, *([_text(value) for value in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in texts]
        return "\n".join([self.title, *("  " + "  ".join(line) for line in lines)])

    def add_to(self, section: Section) -> None:
        section.heading(self.title).table(self.header, self.rows)


def reconstruction_table(reports: Sequence[Report]) -> Table:
    """PSNR of every rule at every budget."""
    found = {split_title(report.title): report.value("PSNR") for report in reports}
    rules, budgets = (list(dict.fromkeys(key[part] for key in found)) for part in (0, 1))
    rows: list[list[Value]] = [[rule, *(round(found[rule, budget], 2) for budget in budgets)] for rule in rules]
    return Table("PSNR of reconstructions, dB", ["rule", *(f"{budget} tokens" for budget in budgets)], rows)


def generation_table(samples: Report, predictions: Report) -> Table:
    """Classes that a classifier of real clips finds in generated ones, distances, and tokens."""
    rows: list[list[Value]] = []
    for name, report in (("samples of a class", samples), ("predictions", predictions)):
        values = {number.name: number.value for number in report.numbers}
        percent = [round(100 * values[share], 1) for share in ("class as asked", "classifier on real clips")]
        rows.append([name, *percent, round(values["tokens per clip"], 1)])
    return Table("Generated clips", ["clips", "as asked, %", "real clips, %", "tokens"], rows)


def tables(results: Results) -> list[Table]:
    """The tables that the terminal shows."""
    without = [report for report in results.reports if split_title(report.title)[0] not in ORACLES]
    generated = generation_table(results.samples.report, results.predictions.report)
    return [reconstruction_table(without), generated]


def first_page(shipped: str) -> Page:
    """The page before training: a real video through the tokenizer of this name, where it is installed with genvid."""
    page = Page("genvid demo", lead=LEAD)
    if (checkpoint.SHIPPED / shipped / checkpoint.CONFIG).is_file():
        add_real_video(page.section("A real video at three budgets"), shipped)
    return page


@torch.no_grad()
def add_real_video(section: Section, shipped: str) -> None:
    """The video that comes with genvid, as its tokenizer reconstructs it."""
    tokenizer, info = api.load(shipped), probe(EXAMPLE_VIDEO)
    assert isinstance(tokenizer, api.Tokenizer)
    assert isinstance(tokenizer.model, AdapTok)
    spec, config = tokenizer.model.spec, tokenizer.model.config
    video = read_clip(EXAMPLE_VIDEO, 0, info.frames, info=info)
    pixels, seconds = _tensor(video), info.frames / info.fps
    clips, header = [Clip(video_bytes(pixels, info.fps, scale=2))], ["original"]
    for share in SHARES:
        budget = int(share * config.grid[0] * spec.block_capacity)
        tokens = tokenizer.encode(video, tokens=budget)
        decoded, lengths = _tensor(tokenizer.decode(tokens)), tokens.lengths[0].tolist()
        psnr = ClipPSNR().score(to_float(decoded)[None], to_float(pixels)[None]).item()
        bits = sum(float(spec.clip_bits(clip)[0]) for clip in tokens.clips)
        caption = f"{sum(lengths):,} tokens, {bits / seconds / 1000:.1f} kbit/s, {psnr:.1f} dB"
        clips.append(Clip(video_bytes(decoded, info.fps, scale=2), caption, lengths, spec.block_capacity))
        header.append(f"at most {budget:,} tokens of {config.frames} frames")
    section.text(
        "Four seconds of a robot arm, coded by the tokenizer that is installed with genvid. Bars are the tokens of "
        "each block of four frames. Try your own video: `genvid studio`."
    ).comparison(header, {"robot arm": clips})


def fill(page: Page, results: Results, folder: Path) -> None:
    """All other sections."""
    _add_summary(page.section("In short"), results)
    _add_reconstruction(page.section("Reconstruction of held-out clips"), results)
    for title, samples in (("Samples of each class", results.samples), ("Frame prediction", results.predictions)):
        add_samples(page.section(title), samples, per_class=SHOWN, fps=FPS, capacity=results.capacity)
    section = page.section("Training")
    runs = [name for name in results.seconds if (folder / name / checkpoint.EXPORT).is_dir()]
    section.charts(*(loss_chart(name.replace("_", " "), {"": read_journal(folder / name)}) for name in runs))
    Table("Seconds of each stage", ["stage", "seconds"], [[k, round(v, 1)] for k, v in results.seconds.items()]).add_to(
        section
    )


def _add_summary(section: Section, results: Results) -> None:
    found = {report.title: report.value("PSNR") for report in results.reports}
    half = f"joint @ {2 * results.capacity}"
    section.facts(
        {
            "samples as asked, by a classifier of real clips": f"{results.samples.report.value('class as asked'):.0%}",
            "predictions that go on as begun": f"{results.predictions.report.value('class as asked'):.0%}",
            "PSNR of held-out clips from half their tokens": f"{found[half]:.1f} dB" if half in found else None,
            "minutes in all": f"{sum(results.seconds.values()) / 60:.1f}",
        }
    )


def _add_reconstruction(section: Section, results: Results) -> None:
    section.text(
        "The joint program spends one budget over all of them: more where it predicts that tokens help, equal shares "
        "where it predicts nothing better."
    )
    clips = [replace(example, name=f"clip {number}") for number, example in enumerate(results.examples, 1)]
    add_examples(section, clips, results.capacity, FPS)
    reconstruction_table(results.reports).add_to(section)
    section.note("Rules and oracles: docs/allocation.md. Every other number is in the folder reports/.")
    section.charts(*(quality_chart(curves(results.reports, RATE, name), RATE, name) for name in ("PSNR", "SSIM")))
    section.provenance(results.reports)


def _tensor(video: object) -> Tensor:
    """(T, H, W, 3) uint8 -> (3, T, H, W)."""
    return torch.as_tensor(video).permute(3, 0, 1, 2)


def _text(value: Value) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:g}"
