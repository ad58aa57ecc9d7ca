"""Self-contained HTML pages: text, numbers, playable clips, charts, in one file that needs nothing from outside.

page = Page("A day of training", lead="What the models learnt.")
page.section("Reconstruction").text("Held-out clips.").clips([Clip(mp4, tokens=(40, 4, 4, 4), capacity=64)])
page.write("report.html")
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Literal, Self

from genvid.eval.pages.charts import LineChart
from genvid.eval.pages.histograms import Histograms
from genvid.eval.report import Report, column, columns, format_column, format_value
from genvid.files import write_text

Value = str | float | None
NUMBERED = 8
"""Most blocks of a clip whose tokens are written below their bars."""


@dataclass(frozen=True)
class Clip:
    """A playable video, with the tokens of its blocks drawn below it."""

    mp4: bytes
    caption: str = ""
    tokens: Sequence[int] = ()
    """Kept tokens of each block."""
    capacity: int = 0
    """Tokens that fill a bar; needed with `tokens`."""

    def __post_init__(self) -> None:
        if self.tokens and max(self.tokens) > self.capacity:
            raise ValueError(f"a block of {max(self.tokens)} tokens does not fit a capacity of {self.capacity}")

    def html(self) -> str:
        """A `<figure>`."""
        source = f"data:video/mp4;base64,{base64.b64encode(self.mp4).decode()}"
        caption = f'<div class="caption">{_inline(self.caption)}</div>' if self.caption else ""
        return f'<figure><video src="{source}" autoplay loop muted playsinline></video>{self._bars()}{caption}</figure>'

    def _bars(self) -> str:
        if not self.tokens:
            return ""
        label = f"tokens per block: {', '.join(str(count) for count in self.tokens)}"
        few = len(self.tokens) <= NUMBERED
        bars = "".join(
            f'<span><i style="--part:{100 * count / self.capacity:.1f}%"></i>{count if few else ""}</span>'
            for count in self.tokens
        )
        return f'<div class="bars" role="img" aria-label="{label}" title="{label}">{bars}</div>'


class Section:
    """A titled part of a page. Every method appends to it and returns it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def text(self, text: str) -> Self:
        """Paragraphs, separated by empty lines; `code` in backticks, **strong** words between stars."""
        return self._add(_paragraphs(text))

    def heading(self, text: str) -> Self:
        """A title within the section."""
        return self._add(f"<h3>{_inline(text)}</h3>")

    def note(self, text: str) -> Self:
        """Small print below a table or a grid."""
        return self._add(f'<p class="note">{_inline(text)}</p>')

    def facts(self, facts: Mapping[str, Value]) -> Self:
        """A few headline numbers, each over its label."""
        tiles = "".join(f"<div><b>{_value(v)}</b><span>{_inline(k)}</span></div>" for k, v in facts.items())
        return self._add(f'<div class="facts">{tiles}</div>')

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[Value]],
        *,
        best: Mapping[str, Literal["higher", "lower"]] | None = None,
    ) -> Self:
        """Rows of text and numbers; in the columns that `best` names, the best number is marked."""
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"a row of {len(row)} cells does not fit a header of {len(header)}: {list(row)}")
        head = "".join(f'<th scope="col">{_inline(name)}</th>' for name in header)
        cells = [_column([row[i] for row in rows], (best or {}).get(name)) for i, name in enumerate(header)]
        return self._table(head, ["".join(row) for row in zip(*cells, strict=True)])

    def numbers(self, reports: Sequence[Report]) -> Self:
        """Reports side by side with protocol and provenance; ValueError when a column would mix protocols."""
        found = columns(reports)
        head = '<th scope="col"></th>' + "".join(
            f'<th scope="col">{_inline(name)}<small>{escape(number.protocol.name)}, {number.count:,} clips</small></th>'
            for name, number in found.items()
        )
        cells = [[_cell(escape(text), best) for text, best in column(reports, name)] for name in found]
        titles = [_cell(escape(report.title), False) for report in reports]
        self._table(head, ["".join(row) for row in zip(titles, *cells, strict=True)])
        return self.provenance(reports)

    def provenance(self, reports: Sequence[Report]) -> Self:
        """Code, command, date and weights behind reports, folded away."""
        sources = "".join(_provenance(report) for report in reports)
        return self._add(f"<details><summary>How these numbers were measured</summary>{sources}</details>")

    def clips(self, clips: Sequence[Clip]) -> Self:
        """Clips in as many columns as fit."""
        return self._add(f'<div class="clips">{"".join(clip.html() for clip in clips)}</div>')

    def comparison(self, header: Sequence[str], rows: Mapping[str, Sequence[Clip]]) -> Self:
        """Versions of the same clip side by side: a column for each name of `header`, a titled row for each clip."""
        lines = []
        for title, clips in rows.items():
            if len(clips) != len(header):
                raise ValueError(f"row '{title}' has {len(clips)} clips for {len(header)} columns")
            figures = "".join(clip.html() for clip in clips)
            lines.append(f'<div class="row"><h3>{_inline(title)}</h3><div>{figures}</div></div>')
        names = "".join(f"<div>{_inline(name)}</div>" for name in header)
        style = f"--columns:{len(header)}"
        return self._add(f'<div class="rows" style="{style}"><div class="columns">{names}</div>{"".join(lines)}</div>')

    def charts(self, *charts: LineChart | Histograms) -> Self:
        """Charts, side by side where they fit."""
        return self._add(f'<div class="charts">{"".join(chart.html() for chart in charts)}</div>')

    def html(self, anchor: str) -> str:
        """The `<section>`, reachable as #anchor."""
        return f'<section id="{anchor}"><h2>{escape(self.title)}</h2>{"".join(self._parts)}</section>'

    def _add(self, part: str) -> Self:
        self._parts.append(part)
        return self

    def _table(self, head: str, rows: Sequence[str]) -> Self:
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return self._add(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )


class Page:
    """A title, a sentence or two, and sections."""

    def __init__(self, title: str, *, lead: str = "") -> None:
        self.title = title
        self.lead = lead
        self._sections: list[Section] = []

    def section(self, title: str) -> Section:
        """Begin the next section."""
        self._sections.append(Section(title))
        return self._sections[-1]

    def html(self) -> str:
        """The whole document."""
        sections = [(f"part-{index}", section) for index, section in enumerate(self._sections, 1)]
        links = "".join(f'<a href="#{anchor}">{escape(section.title)}</a>' for anchor, section in sections)
        style, script = (
            resources.files("genvid.eval.pages").joinpath(f"page.{kind}").read_text() for kind in ("css", "js")
        )
        lead = f'<p class="lead">{_inline(self.lead)}</p>' if self.lead else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{style}</style></head>\n"
            f"<body><main><header><h1>{escape(self.title)}</h1>{lead}<nav>{links}</nav></header>\n"
            + "\n".join(section.html(anchor) for anchor, section in sections)
            + f'</main><button id="playback" hidden></button><script>{script}</script></body></html>\n'
        )

    def write(self, path: Path) -> Path:
        """Write the page to a file, whose path is returned."""
        write_text(path, self.html())
        return path


def _inline(text: str) -> str:
    """Escaped text with `code` and **strong** words marked up; stars within code are stars."""
    parts = re.split(r"`([^`]+)`", escape(text))
    parts[::2] = [re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"<strong>\1</strong>", part) for part in parts[::2]]
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_inline(part.strip())}</p>" for part in re.split(r"\n\s*\n", text) if part.strip())


def _value(value: Value) -> str:
    if value is None:
        return "–"
    return _inline(value) if isinstance(value, str) else format_value(value)


def _column(values: Sequence[Value], better: Literal["higher", "lower"] | None) -> list[str]:
    """Cells of a table's column: numbers with the same decimals, the best one marked."""
    numbers = [value for value in values if isinstance(value, int | float)]
    contest = better is not None and len(numbers) > 1
    best = (max(numbers) if better == "higher" else min(numbers)) if contest else None
    texts = iter(format_column(numbers))
    return [
        _cell(next(texts), value == best) if isinstance(value, int | float) else _cell(_value(value), False)
        for value in values
    ]


def _provenance(report: Report) -> str:
    source = report.provenance
    facts = {"code": source.code, "command": source.command, "date": source.date, **source.weights}
    lines = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    return f"<h3>{escape(report.title)}</h3><dl>{lines}</dl>"


def _cell(html: str, is_best: bool) -> str:
    return f'<td class="best"><span>{html}</span></td>' if is_best else f"<td>{html}</td>"
