"""Quality against rate over several reports: a line for each method, a point for each budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from genvid.eval.pages.charts import PALETTE_SIZE, LineChart, Series
from genvid.eval.report import Report

Curves = Mapping[str, list[tuple[float, float]]]
"""Method -> its (rate, quality), cheapest first."""


def split_title(title: str) -> tuple[str, str]:
    """`method @ budget` -> both."""
    method, _, budget = title.partition(" @ ")
    return method, budget


def curves(reports: Sequence[Report], rate: str, quality: str) -> Curves:
    """The numbers called `rate` and `quality` of each report, by method; reports that lack either are left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for report in reports:
        values = {number.name: number.value for number in report.numbers}
        if rate in values and quality in values:
            found.setdefault(split_title(report.title)[0], []).append((values[rate], values[quality]))
    return {method: sorted(points) for method, points in found.items()}


def quality_chart(lines: Curves, rate: str, quality: str) -> LineChart:
    """One line for each method, for at most `PALETTE_SIZE` methods."""
    series = [Series(name, *zip(*line, strict=True)) for name, line in list(lines.items())[:PALETTE_SIZE]]
    return LineChart(quality, series, x_label=rate, y_label=quality, markers=True)
