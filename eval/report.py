"""Numbers with their protocol and their provenance: stored as JSON, shown as a Markdown row, compared with care."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from genvid import config as configuration
from genvid.eval.features.loading import I3D_NAME
from genvid.eval.protocols import EvaluationProtocol, check_name
from genvid.files import write_json, write_text

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Number:
    """One measured value."""

    name: str
    value: float
    protocol: EvaluationProtocol
    count: int
    """Clips it was measured on."""
    unit: str = ""
    better: Better = "neither"
    spread: float | None = None
    """Standard deviation over sampler seeds."""
    interval: tuple[float, float] | None = None
    """Where the value would lie in 95 of 100 draws of as many other clips."""

    def __post_init__(self) -> None:
        check_name(self.protocol)
        if self.name.partition(",")[0] == "FVD" and self.protocol.features != I3D_NAME:
            raise ValueError(f"a Frechet distance on features of {self.protocol.features or 'nothing'} is not FVD")

    def text(self, value: str) -> str:
        """The number as people write it, around its formatted value."""
        spread = "" if self.spread is None else f" ± {self.spread:.2g}"
        return f"{value}{spread}{f' {self.unit}' if self.unit else ''}"


@dataclass(frozen=True)
class Provenance:
    """How the numbers came about."""

    code: str
    command: str
    date: str
    weights: dict[str, str] = field(default_factory=dict)
    """Role (tokenizer, features, ...) -> fingerprint of the weights."""

    @staticmethod
    def now(weights: dict[str, str]) -> Provenance:
        """Of this process, at this moment."""
        return Provenance(
            code=code_version(),
            command=" ".join(sys.argv),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            weights=weights,
        )


@dataclass(frozen=True)
class Report:
    """The numbers of one run."""

    title: str
    numbers: list[Number]
    provenance: Provenance
    remarks: list[str] = field(default_factory=list)
    """Notes for the reader: missing files, origin of samples."""

    def save(self, path: str | Path) -> None:
        """Write JSON that `load` reads back to an equal report."""
        write_json(path, asdict(self))

    @staticmethod
    def load(path: str | Path) -> Report:
        """Read what `save` wrote; ValueError in words otherwise."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no report {path}")
        try:
            data: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:  # no JSON, or no text
            raise ValueError(f"{path} is not a report: {error}") from None
        return configuration.decode(Report, data, source=str(path))

    def value(self, name: str) -> float:
        """The number called `name`; KeyError where there is none."""
        return {number.name: number.value for number in self.numbers}[name]

    def markdown_row(self) -> str:
        """`| title | value | ... |`, in the order of the numbers."""
        return _row([self.title, *(number.text(format_value(number.value)) for number in self.numbers)])


def columns(reports: Sequence[Report]) -> dict[str, Number]:
    """Name -> first number of that name, over all reports.

    ValueError when a column would mix protocols: such numbers do not compare.
    """
    found: dict[str, Number] = {}
    for report in reports:
        for number in report.numbers:
            first = found.setdefault(number.name, number)
            if first.protocol != number.protocol:
                raise ValueError(
                    f"{number.name} of '{report.title}' follows {number.protocol.name} {_difference(number, first)}; "
                    "numbers of different protocols do not share a column; compare reports of one protocol"
                )
    return found


def compare(reports: Sequence[Report]) -> str:
    """A Markdown table with a row for each report and a column for each number, the best value in bold.

    ValueError when a column would mix protocols.
    """
    names = list(columns(reports))
    cells = [[f"**{text}**" if best else text for text, best in column(reports, name)] for name in names]
    rows = [[report.title, *texts] for report, *texts in zip(reports, *cells, strict=True)]
    return markdown_table(["", *names], rows)


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(map(_row, [header, ["---"] * len(header), *rows]))


def write_table(path: Path, reports: Sequence[Report]) -> str:
    """Write the table of `compare` to a file; returns it."""
    table = compare(reports)
    write_text(path, f"{table}\n")
    return table


def column(reports: Sequence[Report], name: str) -> list[tuple[str, bool]]:
    """The text of one number for each report, and whether it is the best; ("", False) where a report lacks it."""
    found = [next((number for number in report.numbers if number.name == name), None) for report in reports]
    present = [number for number in found if number]
    texts = iter(format_column([number.value for number in present]))
    best = _best(present)
    return [(number.text(next(texts)), number.value == best) if number else ("", False) for number in found]


def format_value(value: float) -> str:
    """Four significant digits, without an exponent where people do not expect one."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_column(values: Sequence[float]) -> list[str]:
    """Values as `format_value` would, but all with as many decimals as the one that needs most."""
    texts = [format_value(value) for value in values]
    if any("e" in text for text in texts):
        return texts
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [f"{value:,.{decimals}f}" for value in values]


def code_version() -> str:
    """Version of genvid and, in a checkout, its commit; `+` marks changed files."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        return version("genvid")
    git = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return version("genvid")
    return f"{version('genvid')} ({commit})"


def _difference(number: Number, other: Number) -> str:
    """Name the fields in which two protocols differ."""
    mine, theirs = asdict(number.protocol), asdict(other.protocol)
    fields = [key for key in mine if mine[key] != theirs[key]]
    return f"({', '.join(f'{key} {mine[key]} against {theirs[key]}' for key in fields)})"


def _best(numbers: Sequence[Number]) -> float | None:
    """None where there is no contest."""
    if len(numbers) < 2 or numbers[0].better == "neither":
        return None
    values = [number.value for number in numbers]
    return max(values) if numbers[0].better == "higher" else min(values)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
