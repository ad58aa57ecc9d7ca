"""Histograms of many groups below each other, as inline SVG: which classes and which blocks cost how many tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from genvid.eval.pages.charts import linear_ticks

_WIDTH, _LEFT, _RIGHT, _ROW, _BOTTOM = 440, 112, 42, 15, 42
_MOST_BINS = 24
_LONGEST_NAME = 18


@dataclass(frozen=True)
class Histograms:
    """Whole numbers of each group in common bins: a row for each group, its cells the darker the more of it they hold.

    A mark shows each mean, whose value is beside the row.
    """

    title: str
    groups: Mapping[str, Sequence[int]]
    x_label: str

    def __post_init__(self) -> None:
        if not self.groups or not all(self.groups.values()):
            raise ValueError(f"histograms '{self.title}' need at least one group, and numbers in every group")

    def html(self) -> str:
        """A `<figure>` with title, key and drawing."""
        bins = _Bins.around([value for values in self.groups.values() for value in values])
        shares = [bins.shares(values) for values in self.groups.values()]
        most = max(map(max, shares))
        rows = "".join(
            self._row(number, name, bins, row, most)
            for number, (name, row) in enumerate(zip(self.groups, shares, strict=True))
        )
        height = len(self.groups) * _ROW + _BOTTOM
        return (
            f'<figure class="chart"><figcaption>{escape(self.title)}</figcaption>'
            f'<div class="legend"><span><i style="background:var(--bar)"></i>{100 * most:.3g} % of a row</span>'
            f"<span>line and number: mean</span></div>"
            f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(self.title)}">'
            f"{rows}{self._axis(bins, height - _BOTTOM)}</svg></figure>"
        )

    def _row(self, number: int, name: str, bins: _Bins, shares: Sequence[float], most: float) -> str:
        values, top, tall = self.groups[name], number * _ROW, _ROW - 2
        shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        mean = sum(values) / len(values)
        drawn = (
            f'<text x="{_LEFT - 6}" y="{top + 10}" text-anchor="end">{escape(shown)}</text>'
            f'<rect class="track" x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - _RIGHT}" height="{tall}"/>'
        )
        for bin, share in enumerate(shares):
            if share:
                low, high = bins.ends(bin)
                span = str(low) if low == high else f"{low} to {high}"
                title = f"{name}: {span} {self.x_label}, {100 * share:.3g} % of {len(values):,}"
                drawn += (
                    f'<rect class="cell" x="{bins.edge(low):.1f}" y="{top}" '
                    f'width="{bins.edge(high + 1) - bins.edge(low) - 1:.1f}" height="{tall}" '
                    f'fill-opacity="{max(share / most, 0.06):.2f}">'
                    f"<title>{escape(title)}</title></rect>"
                )
        place = bins.middle(mean)
        return (
            f'{drawn}<line class="mean" x1="{place:.1f}" x2="{place:.1f}" y1="{top}" y2="{top + tall}"/>'
            f'<text x="{_WIDTH - _RIGHT + 6}" y="{top + 10}">{mean:.4g}</text>'
        )

    def _axis(self, bins: _Bins, top: int) -> str:
        near = {round(tick) for tick in linear_ticks(bins.low - 0.5, bins.high + 0.5)}
        ticks = [tick for tick in sorted(near) if bins.low <= tick <= bins.high]
        numbers = "".join(
            f'<text x="{bins.middle(tick):.1f}" y="{top + 12}" text-anchor="middle">{tick:,}</text>' for tick in ticks
        )
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        return f'{numbers}<text x="{middle}" y="{top + 32}" text-anchor="middle">{escape(self.x_label)}</text>'


@dataclass(frozen=True)
class _Bins:
    """At most 24 bins of equally many whole numbers from `low` on, and where they are drawn."""

    low: int
    high: int
    size: int
    """Numbers in a bin."""
    count: int

    @staticmethod
    def around(values: Sequence[int]) -> _Bins:
        low, high = min(values), max(values)
        size = -(-(high - low + 1) // _MOST_BINS)
        return _Bins(low, high, size, (high - low) // size + 1)

    def shares(self, values: Sequence[int]) -> list[float]:
        """The part of the values in each bin."""
        counts = [0] * self.count
        for value in values:
            counts[(value - self.low) // self.size] += 1
        return [count / len(values) for count in counts]

    def ends(self, bin: int) -> tuple[int, int]:
        """First and last number of a bin."""
        return self.low + bin * self.size, self.low + (bin + 1) * self.size - 1

    def edge(self, value: float) -> float:
        """Where the place of a number begins."""
        return _LEFT + (value - self.low) / (self.count * self.size) * (_WIDTH - _LEFT - _RIGHT)

    def middle(self, value: float) -> float:
        """The middle of the place of a number."""
        return (self.edge(value) + self.edge(value + 1)) / 2
