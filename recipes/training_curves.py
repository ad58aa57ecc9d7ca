"""Loss curves of runs: python recipes/training_curves.py FOLDER RUN [RUN ...] [--beside RECORDS.jsonl]

Writes NAME.svg, training and held-out loss over the steps (with a discriminator the generator's), and NAME.jsonl, the
records that it draws, for each run folder NAME. --beside adds the losses of such records, of another run of the same
recipe, to the chart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genvid.command import command
from genvid.eval.pages.charts import LineChart, Series
from genvid.files import write_text
from genvid.train.run import read_journal, read_records
from genvid.train.validation import PREFIX

Records = Sequence[Mapping[str, Any]]

MOST_RECORDS = 100
SPEEDS = {"items_per_second", "clips_per_second", "data_wait", "memory"}
"""Keys of a record that depend on the machine."""
DIGITS = 5
"""Of every number that is kept."""


def loss_chart(title: str, runs: Mapping[str, Records]) -> LineChart:
    """Training and held-out loss of runs, of two networks in turn that of the first; their keys end the names of the
    lines."""
    series = []
    for name, records in runs.items():
        loss = next((key for record in records for key in record if key.rpartition("/")[2] == "loss"), "loss")
        for label, key in (("training", loss), ("held out", PREFIX + loss)):
            points = [(record["step"], record[key]) for record in records if key in record]
            if points:
                series.append(Series(f"{label}{name}", *zip(*points, strict=True)))
    return LineChart(title, series, "step", "loss", log_y=all(min(line.y) > 0 for line in series))


def thinned(records: Records) -> list[dict[str, Any]]:
    """At most so many records with few digits and without speeds; of a longer run every n-th, and held-out losses."""
    every = -(-len(records) // MOST_RECORDS)
    kept = [r for number, r in enumerate(records, 1) if number % every == 0 or any(key.startswith(PREFIX) for key in r)]
    return [
        {key: value if isinstance(value, int) else float(f"{value:.{DIGITS}g}") for key, value in record.items()}
        for record in ({k: v for k, v in record.items() if k not in SPEEDS} for record in kept)
    ]


def write_curve(folder: Path, run: Path, beside: Path | None) -> None:
    """Write the chart and the records of a run."""
    records = thinned(read_journal(run))
    if not records:
        raise ValueError(f"no metrics.jsonl with a record in {run}: give run folders, output_dir of a recipe")
    runs = {"": records}
    if beside is not None:
        runs[f", {beside.stem}"] = read_records(beside)
    write_text(folder / f"{run.name}.svg", loss_chart(run.name.replace("_", " "), runs).svg())
    write_text(folder / f"{run.name}.jsonl", "".join(json.dumps(record) + "\n" for record in records))


@command
def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--beside", type=Path)
    options = parser.parse_args(argv)
    if options.beside is not None and not options.beside.is_file():
        raise ValueError(f"no records {options.beside}: give a .jsonl file of this script, or leave out --beside")
    names = [run.name for run in options.runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several runs are named {', '.join(twice)}, as their files would be: give each a FOLDER")
    for run in options.runs:
        write_curve(options.folder, run, options.beside)


if __name__ == "__main__":
    main(sys.argv[1:])
