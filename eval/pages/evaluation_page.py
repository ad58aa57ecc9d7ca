"""Pages about numbers: one evaluation in full, or several reports compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase

import torch

from genvid.data.clips import to_uint8
from genvid.data.video import video_bytes
from genvid.eval.evaluation import Candidate, Evaluation
from genvid.eval.metrics.bjontegaard import bd_rate
from genvid.eval.pages.charts import PALETTE_SIZE, LineChart, Series
from genvid.eval.pages.histograms import Histograms
from genvid.eval.pages.page import Clip, Page, Section, Value
from genvid.eval.pages.rate_distortion import Curves, curves, quality_chart
from genvid.eval.report import Report, format_value
from genvid.eval.summary import Summary

RATE = "bits per clip"
MOST_CLASSES = 120
"""Rows of a chart of classes."""


def evaluation_page(report: Report, summary: Summary) -> Page:
    """Numbers with protocol and provenance, tokens by block and by class, samples beside real clips."""
    clips = summary.clips
    page = Page(report.title, lead=f"{clips.protocol.name}, {len(clips.conditioning):,} clips.")
    add_numbers(page.section("Numbers"), report)
    add_tokens(page, summary)
    classes = summary.classes()
    header = list(next(iter(classes.values())))
    if len(header) > 1:
        rows: list[list[Value]] = [[name, *values.values()] for name, values in classes.items()]
        page.section("Classes").table(["class", *header], rows)
    add_samples(page.section("Samples"), summary.evaluation, summary.candidate)
    return page


def add_numbers(section: Section, report: Report) -> None:
    """Each number with its spread, its interval and its protocol, then the provenance."""
    rows: list[list[Value]] = []
    protocols = list(dict.fromkeys(number.protocol.name for number in report.numbers))
    for number in report.numbers:
        spread = None if number.spread is None else format_value(number.spread)
        interval = None if number.interval is None else " to ".join(map(format_value, number.interval))
        letter = ascii_uppercase[protocols.index(number.protocol.name)]
        value = format_value(number.value) + (f" {number.unit}" if number.unit else "")
        rows.append([number.name, value, spread, interval, f"{number.count:,}", letter])
    section.table(["", "value", "± over seeds", "95 % interval", "clips", "protocol"], rows)
    for letter, name in zip(ascii_uppercase, protocols, strict=False):
        section.note(f"Protocol {letter}: {name}")
    for remark in report.remarks:
        section.note(remark)
    section.provenance([report])


def add_tokens(page: Page, summary: Summary) -> None:
    """Histograms of tokens by block and by class, and their bits by place where a model gave them."""
    blocks, classes = summary.lengths(), summary.class_lengths()
    charts: list[Histograms | LineChart] = []
    if blocks:
        charts.append(Histograms("Tokens of each block", blocks, "tokens"))
    if classes:
        every = [tokens for values in classes.values() for tokens in values]
        charts.append(Histograms("Tokens of the clips of each class", {"all": every, **_ends(classes)}, "tokens"))
    bits = summary.token_bits()
    if bits is not None:
        places = range(1, 1 + bits.shape[1])
        lines = [Series(f"block {g}", places, line.tolist()) for g, line in enumerate(bits[:PALETTE_SIZE])]
        charts.append(LineChart("Bits of a token under the model", lines, "place in its block", "bits"))
    if charts:
        section = page.section("Tokens").charts(*charts)
        if len(classes) > MOST_CLASSES:
            section.note(f"Of {len(classes)} classes, those that need most and least.")


def _ends(classes: dict[str, list[int]]) -> dict[str, list[int]]:
    """The first and last of more classes than a chart should have."""
    names = list(classes)
    if len(names) > MOST_CLASSES:
        names = names[: MOST_CLASSES // 2] + names[-MOST_CLASSES // 2 :]
    return {name: classes[name] for name in names}


def add_samples(section: Section, evaluation: Evaluation, candidate: Candidate) -> None:
    """Outputs beside real clips: the originals of reconstructions, for samples clips of the same class."""
    rows, clips = {}, evaluation.clips
    names = clips.real.names()
    for position in range(min(evaluation.measures.examples, len(names))):
        file = candidate.folder / "samples" / f"{position:04d}.mp4"
        if file.is_file():
            item = clips.dataset[clips.real.items[position]]
            real = item["video"] if item["video"].dtype == torch.uint8 else to_uint8(item["video"])
            title = f"{clips.dataset.classes[int(item['label'])]}, {Path(names[position]).name}"
            rows[title] = [Clip(video_bytes(real, 25)), Clip(file.read_bytes())]
    outputs = {"reconstruction": "reconstruction", "prediction": "prediction", "generation": "sample of the same class"}
    section.comparison(["real", outputs[clips.protocol.task]], rows)


def comparison_page(reports: Sequence[Report]) -> Page:
    """Reports side by side, with rate-distortion curves and the rate that methods save."""
    page = Page("Comparison", lead=", ".join(dict.fromkeys(report.title for report in reports)))
    page.section("Numbers").numbers(reports)
    qualities = {n.name: n.better for r in reports for n in r.numbers if n.better != "neither"}
    charts, rows = [], []
    for quality, better in qualities.items():
        found = {name: line for name, line in curves(reports, RATE, quality).items() if len(line) > 1}
        if not found:
            continue
        charts.append(quality_chart(found, RATE, quality))
        rows += bd_rows(found, quality, lower_is_better=better == "lower")
    if charts:
        section = page.section("Rate and distortion").charts(*charts)
        if rows:
            section.table(["quality", "method", "against", "BD-rate, %"], rows)
            section.note("Average difference in bits at equal quality; negative: the method needs fewer.")
    return page


def bd_rows(found: Curves, quality: str, *, lower_is_better: bool) -> list[list[Value]]:
    """Every later method against the first one."""
    (anchor, first), *others = found.items()
    rows: list[list[Value]] = []
    for name, line in others:
        try:
            saved: Value = round(bd_rate(first, line, lower_is_better=lower_is_better), 2)
        except ValueError:
            saved = None
        rows.append([quality, name, anchor, saved])
    return rows
