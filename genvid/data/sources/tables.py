"""Lists and tables of videos, as data sets distribute them and as spreadsheets save them."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Row(NamedTuple):
    """A row of a table by column, and its place for error messages."""

    place: str
    cells: dict[str, str]


def read_table(file: Path, columns: Sequence[str], delimiter: str = ",") -> tuple[list[Row], list[str]]:
    """The rows of a CSV file, and one sentence for each that is cut short, as the last line of an incomplete copy is.

    ValueError when the file lacks one of `columns`.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), delimiter=delimiter)
    rows, problems = [], []
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        lacking = [name for name in columns if name not in names]
        if lacking:
            raise ValueError(f"{file} lacks the column {', '.join(lacking)}; it has {', '.join(names) or 'none'}")
        reader.fieldnames = names
        for cells in reader:
            place = f"{file} line {reader.line_num}"
            absent = [name for name in columns if cells[name] is None]
            if absent:
                problems.append(f"{place} is cut short: it has no {', '.join(absent)}")
            else:
                rows.append(Row(place, cells))
    except csv.Error as error:
        raise ValueError(f"{file} is not a table ({error})") from None
    return rows, problems


def read_lines(file: Path) -> list[tuple[str, str]]:
    """The lines of a list that are not blank, each with its place for error messages."""
    lines = read_text(file).splitlines()
    return [(f"{file} line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def read_text(file: Path) -> str:
    """UTF-8 or UTF-16, with or without a byte order mark; any other text is taken for Western European."""
    data = file.read_bytes()
    if data.startswith(_UTF16):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        logger.warning("%s is not UTF-8 (byte %d); it is read as Latin-1 (Windows-1252)", file, error.start)
        return data.decode("cp1252", "replace")
