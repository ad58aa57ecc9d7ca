"""The `genvid` command: describe files, convert published weights, encode, decode and sample videos, run protocols.

Each verb is a function of one dataclass of options, and can be called from Python with it:

    from genvid.cli.coding import EncodeOptions, encode

    encode(EncodeOptions(Path("a.mp4"), Path("a.tok"), tokenizer="tokenizer/export"))

Training is done by recipes (recipes/): it has more choices than a command line holds.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from genvid.cli.options import add_options, read_options
from genvid.command import command

VERBS = {
    "info": "genvid.cli.inspection",
    "convert": "genvid.cli.conversion",
    "encode": "genvid.cli.coding",
    "decode": "genvid.cli.coding",
    "reconstruct": "genvid.cli.coding",
    "sample": "genvid.cli.sampling",
    "studio": "genvid.cli.studio",
    "evaluate": "genvid.cli.evaluation",
    "report": "genvid.cli.evaluation",
}
"""Verb -> the module of its function. Only that of the given verb is imported: sampling and evaluation need libraries
that take seconds to import, and coding a video none of them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; bad input ends in one sentence and exit status 2."""
    _run(sys.argv[1:] if argv is None else argv)


@command
def _run(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="genvid", description="Generative video modelling on adaptive tokens.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    if not argv or argv[0] not in VERBS:
        for name in VERBS:
            verbs.add_parser(name, help=_summary(name))
        parser.parse_args(argv[:1])  # prints the verbs or an error, and exits
    verb = getattr(importlib.import_module(VERBS[argv[0]]), argv[0])
    options = typing.get_type_hints(verb)["options"]
    epilog = getattr(options, "EPILOG", None)
    add_options(verbs.add_parser(argv[0], description=inspect.getdoc(verb), epilog=epilog), options)
    verb(read_options(options, parser.parse_args(argv)))


def _summary(verb: str) -> str:
    """First line of the docstring of a verb's function, read from its source."""
    spec = importlib.util.find_spec(VERBS[verb])
    assert spec is not None
    assert spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text()).body
    (function,) = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == verb)
    return (ast.get_docstring(function) or "").partition("\n")[0]
