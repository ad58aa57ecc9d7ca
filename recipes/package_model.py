"""Put a tokenizer, its scorer and a model card into one folder: python recipes/package_model.py CONFIG.yaml

The folder is what `genvid.load` and the Hub take. The numbers of its card are those of an evaluation of these two
models (recipes/compare_allocators.py).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genvid import config as configuration
from genvid.checkpoint import CONFIG, WEIGHTS, load_model, resolve
from genvid.command import command
from genvid.eval.gaps import UNIFORM
from genvid.eval.report import format_column, markdown_table
from genvid.files import write_atomically
from genvid.provenance import check_made_from
from genvid.tokenizer.adaptok.loading import load_scorer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokens.code_counts import FILE as CODE_COUNTS


@dataclass(frozen=True, kw_only=True)
class PackageRun:
    """The parts of the folder, and the text of its card."""

    output_dir: str
    """New folder."""
    tokenizer: str
    """Its code counts (recipes/count_codes.py) are copied, if there are any."""
    scorer: str
    evaluation: str
    """summary.json of an evaluation of both."""
    card: str
    """Markdown. `{size}`, `{results}`, `{protocol}` and `{made}` in it are replaced by these numbers."""
    rules: tuple[str, ...] = (UNIFORM, "joint", "threshold", "online", "clip")
    """Allocation rules of the card."""


def package(run: PackageRun) -> Path:
    """Write the folder, complete or not at all; ProvenanceError where its parts do not belong together."""
    folder, evaluation = Path(run.output_dir), Path(run.evaluation)
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another output_dir or remove it first")
    if not evaluation.is_file():
        raise ValueError(f"no summary {evaluation}; make one with recipes/compare_allocators.py")
    tokenizer = load_model(run.tokenizer, AdapTok)
    scorer = load_scorer(run.scorer, tokenizer)
    summary = configuration.read_json(evaluation)
    given = {"tokenizer": tokenizer.fingerprint, "scorer": scorer.fingerprint}
    check_made_from(evaluation, summary["provenance"]["weights"], given, "evaluate these models")
    text = Path(run.card).read_text()
    there = {row["rule"] for row in summary["rows"]}
    if missing := ", ".join(rule for rule in run.rules if rule not in there):
        raise ValueError(f"{evaluation} has no results of {missing}: set rules to some of {', '.join(sorted(there))}")
    for name, value in _results(summary, run.rules).items():
        text = text.replace(f"{{{name}}}", value)
    with write_atomically(folder) as temporary:
        for model, part in ((tokenizer, temporary), (scorer, temporary / "scorer")):
            part.mkdir(parents=True)
            assert model.folder is not None
            for file in (CONFIG, WEIGHTS):
                shutil.copyfile(model.folder / file, part / file)
        counts = resolve(run.tokenizer) / CODE_COUNTS
        if counts.is_file():
            shutil.copyfile(counts, temporary / CODE_COUNTS)
        parameters = sum(value.numel() for model in (tokenizer, scorer) for value in model.parameters())
        megabytes = sum(file.stat().st_size for file in temporary.rglob(WEIGHTS)) / 1e6
        size = f"{parameters / 1e6:.1f} M parameters, {megabytes:.1f} MB"
        (temporary / "README.md").write_text(text.replace("{size}", size))
    return folder


def _results(summary: Mapping[str, Any], rules: Sequence[str]) -> dict[str, str]:
    """Placeholder of a card -> its text, from summary.json."""
    protocol, made = summary["protocol"], summary["provenance"]
    rows = [row for row in summary["rows"] if row["rule"] in rules]
    names = [name for name, better in summary["better"].items() if better != "neither"]
    columns = [format_column([row["numbers"][name] for row in rows]) for name in names]
    ends = [["-" if row["closed"] is None else f"{row['closed']:.0f}" for row in rows]]
    starts = [[row["rule"] for row in rows], [f"{row['spent']:.0f}" for row in rows]]
    header = ["rule", "tokens", *names, "gap closed, %"]
    return {
        "results": markdown_table(header, zip(*starts, *columns, *ends, strict=True)),
        "protocol": f"{protocol['name']}, {summary['clips']} clips of {protocol['frames']} frames",
        "made": f"genvid {made['code']}, {made['date']}",
    }


@command
def main(argv: Sequence[str]) -> None:
    usage = "python recipes/package_model.py CONFIG.yaml [--key value ...]"
    print(f"wrote {package(configuration.parse(PackageRun, argv, usage=usage))}")


if __name__ == "__main__":
    main(sys.argv[1:])
