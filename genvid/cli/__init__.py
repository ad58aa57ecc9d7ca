"""The `genvid` command: describe files, convert published weights, encode, decode and sample videos, run protocols.

Each verb is a function of one dataclass of options, and can be called from Python with it:

    encode(EncodeOptions(Path("a.mp4"), Path("a.tok"), tokenizer="tokenizer/export"))

Training is done by recipes (recipes/): it has more choices than a command line holds.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from genvid.cli.coding import decode, encode, reconstruct
from genvid.cli.conversion import convert
from genvid.cli.evaluation import evaluate, report
from genvid.cli.inspection import info
from genvid.cli.options import add_options, read_options
from genvid.cli.sampling import sample
from genvid.cli.studio import studio
from genvid.command import command
from genvid.eval.protocols import PROTOCOLS

VERBS: tuple[Callable[[Any], None], ...] = (
    info,
    convert,
    encode,
    decode,
    reconstruct,
    sample,
    studio,
    evaluate,
    report,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; bad input ends in one sentence and exit status 2."""
    _run(sys.argv[1:] if argv is None else argv)


@command
def _run(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    arguments.verb(read_options(arguments.options, arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="genvid", description="Generative video modelling on adaptive tokens.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        text = inspect.getdoc(verb) or ""
        added = verbs.add_parser(verb.__name__, help=text.partition("\n")[0], description=text)
        options = typing.get_type_hints(verb)["options"]
        add_options(added, options)
        added.set_defaults(verb=verb, options=options)
        if verb is evaluate:
            added.epilog = "protocols: " + ", ".join(PROTOCOLS)
    return parser
