"""Line charts as SVG: loss curves, rate against distortion. In a page the page's colours apply, in light and dark; a
file of its own has a light background."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 42
_HEADING = 46
_MOST_POINTS = 300
PALETTE_SIZE = 7
"""Series of a chart with colours of their own; the page defines the colours --series-0 and up."""
_STYLE = (
    "svg{--series-0:#2a62c9;--series-1:#d3591f;--series-2:#0b8f7f;--series-3:#7d4ac7;--series-4:#b83280;"
    "--series-5:#8a6d0b;--series-6:#5b6470}text{font:11px system-ui,sans-serif;fill:#5d636d}"
    ".title{font-weight:600;font-size:14px;fill:#1b1d21}.paper{fill:#fff}.grid{stroke:#e3e4e0}.base{stroke:#5d636d}"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round}.mark{stroke:#fff;stroke-width:1.5}"
)
"""Of a chart in a file: the light colours of page.css."""


@dataclass(frozen=True)
class Series:
    """One line: a name for the legend, and its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.name} has {len(self.x)} x values but {len(self.y)} y values")


@dataclass(frozen=True)
class LineChart:
    """Up to seven series on shared axes; `markers` draws every point and names its values on hover."""

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    log_y: bool = False
    markers: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.series) <= PALETTE_SIZE:
            raise ValueError(f"a chart shows 1 to {PALETTE_SIZE} series, '{self.title}' has {len(self.series)}")

    def html(self) -> str:
        """A `<figure>` with title, legend and drawing. ValueError when nothing can be drawn."""
        legend = "".join(
            f'<span><i style="background:var(--series-{index})"></i>{escape(series.name)}</span>'
            for index, series in enumerate(self.series)
        )
        return (
            f'<figure class="chart"><figcaption>{escape(self.title)}</figcaption>'
            f'<div class="legend">{legend if len(self.series) > 1 else ""}</div>'
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(self.title)}">'
            f"{self._drawing()}</svg></figure>"
        )

    def svg(self) -> str:
        """A file: title, legend and drawing in one `<svg>`. ValueError when nothing can be drawn."""
        names = "".join(
            f'<tspan style="fill:var(--series-{index})" dx="{12 * (index > 0)}">{escape(series.name)}</tspan>'
            for index, series in enumerate(self.series)
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT + _HEADING}" role="img">'
            f'<style>{_STYLE}</style><rect class="paper" width="100%" height="100%"/>'
            f'<text class="title" x="{_LEFT}" y="20">{escape(self.title)}</text><text x="{_LEFT}" y="38">{names}</text>'
            f'<g transform="translate(0 {_HEADING})">{self._drawing()}</g></svg>\n'
        )

    def _drawing(self) -> str:
        """Axes, labels and lines. ValueError when nothing can be drawn."""
        lines = [self._points(series) for series in self.series]
        if not any(lines):
            positive = " positive" if self.log_y else ""
            raise ValueError(f"chart '{self.title}' has no finite{positive} points")
        x_axis = _Axis.around([x for line in lines for x, _ in line], _LEFT, _WIDTH - _RIGHT, log=False)
        y_axis = _Axis.around([y for line in lines for _, y in line], _HEIGHT - _BOTTOM, _TOP, log=self.log_y)
        drawing = [_grid(x_axis, y_axis), self._labels()]
        for index, (series, line) in enumerate(zip(self.series, lines, strict=True)):
            drawing.append(self._line(index, series.name, line, x_axis, y_axis))
        return "".join(drawing)

    def _points(self, series: Series) -> list[tuple[float, float]]:
        """Finite points; long curves as the means of equal runs, so that a page stays small."""
        points = [
            (float(x), float(y))
            for x, y in zip(series.x, series.y, strict=True)
            if math.isfinite(x) and math.isfinite(y) and (y > 0 or not self.log_y)
        ]
        run = -(-len(points) // _MOST_POINTS)
        if run <= 1:
            return points
        runs = [points[start : start + run] for start in range(0, len(points), run)]
        return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in runs]

    def _labels(self) -> str:
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        return (
            f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(self.x_label)}</text>'
            f'<text transform="translate(12 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y_label)}</text>'
        )

    def _line(self, index: int, name: str, line: list[tuple[float, float]], x_axis: _Axis, y_axis: _Axis) -> str:
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn = f'<polyline class="line" style="stroke:var(--series-{index})" points="{path}"/>'
        if self.markers or len(line) == 1:
            for (x, y), (left, top) in zip(line, places, strict=True):
                drawn += (
                    f'<circle class="mark" style="fill:var(--series-{index})" cx="{left:.1f}" cy="{top:.1f}" r="4">'
                    f"<title>{escape(name)}: {x:.6g}, {y:.4g}</title></circle>"
                )
        return drawn


@dataclass(frozen=True)
class _Axis:
    """Linear or logarithmic map from values to pixels, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    @staticmethod
    def around(values: list[float], start: float, end: float, *, log: bool) -> _Axis:
        low, high = min(values), max(values)
        if log:
            low, high = low / 1.05, high * 1.05
            return _Axis(math.log10(low), math.log10(high), start, end, True, tuple(_log_ticks(low, high)))
        pad = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
        low, high = (low if low >= 0 and low < 0.1 * high else low - pad), high + pad
        return _Axis(low, high, start, end, False, tuple(linear_ticks(low, high)))

    def place(self, value: float) -> float:
        position = math.log10(value) if self.log else value
        return self.start + (position - self.low) / (self.high - self.low) * (self.end - self.start)


def linear_ticks(low: float, high: float) -> list[float]:
    """About five multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / 5
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; with their doubles and fives when fewer than three fit."""
    decades = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [factor * decade for decade in decades for factor in factors if low <= factor * decade <= high]
        if len(ticks) >= 3:
            return ticks
    return linear_ticks(low, high)


def _grid(x_axis: _Axis, y_axis: _Axis) -> str:
    left, right, bottom = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<line class="base" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    return "".join(parts)


def _short(value: float) -> str:
    """A tick label: 1.5k, 20M, 0.02."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):g}{suffix}"
    return f"{round(value, 10):g}"
