"""The `genvid` command: look into files, convert published weights, encode, decode and sample videos, run protocols.

Training is done by recipes (recipes/), because it has too many choices for a command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from genvid.cli.coding import decode, encode, reconstruct
from genvid.cli.conversion import convert
from genvid.cli.evaluation import add_evaluation, evaluate, report
from genvid.cli.inspection import info
from genvid.cli.sampling import add_sample, sample
from genvid.command import command


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; bad input ends in one sentence and exit status 2."""
    _run(sys.argv[1:] if argv is None else argv)


@command
def _run(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    arguments.verb(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="genvid", description="Generative video modelling on adaptive tokens.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def add(verb: Callable[[argparse.Namespace], None], summary: str, *positional: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(verb.__name__, help=summary, description=summary)
        added.set_defaults(verb=verb)
        for name in positional:
            added.add_argument(
                name, nargs="+" if name in ("videos", "reports") else None, metavar=name.upper().rstrip("S")
            )
        return added

    def add_tokenizer(to: argparse.ArgumentParser, *, budget: bool, many: bool = False) -> None:
        to.add_argument("--tokenizer", required=not many, metavar="T", help="model folder or Hub id")
        if budget:
            to.add_argument("--scorer", metavar="S", help="the tokenizer's scorer: model folder or Hub id")
            number: dict[str, Any] = {"nargs": "+"} if many else {}
            meaning = "mean tokens of a whole clip (needs --scorer), or tokens of every clip, or whole video, of LIT"
            to.add_argument("--tokens", type=int, metavar="N", help=meaning, **number)
            to.add_argument("--published", action="store_true", help="spend N as the published AdapTok evaluation does")

    def add_sampling(to: argparse.ArgumentParser) -> None:
        to.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance; 1: none (1)")
        to.add_argument("--temperature", type=float, default=1.0, help="0: the most likely token (1)")
        to.add_argument("--top-k", type=int, default=0, help="draw from the k most likely tokens; 0: all (0)")
        to.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest of this probability (1)")

    add(info, "say what a model folder, run folder, token cache, token file or video is", "path")
    add(convert, "make a model folder of a published model (a folder or a Hub id)", "source", "destination")
    encoding = add(encode, "turn videos into one token file (.npz)", "videos", "output")
    add_tokenizer(encoding, budget=True)
    decoding = add(decode, "turn a token file into a video (.mp4), or into a folder of videos", "tokens", "output")
    add_tokenizer(decoding, budget=False)
    reconstructing = add(reconstruct, "show a video beside its reconstruction (.mp4)", "video", "output")
    add_tokenizer(reconstructing, budget=True)

    sampling = add(sample, "generate videos of a class, or that continue a prompt")
    add_sampling(sampling)
    sampling.add_argument("--model", required=True, metavar="AR", help="autoregressive model: model folder or Hub id")
    add_tokenizer(sampling, budget=True)
    add_sample(sampling)

    evaluation = add(evaluate, "run a published evaluation protocol by its name", "protocol")
    add_evaluation(evaluation)
    add_tokenizer(evaluation, budget=True, many=True)
    add_sampling(evaluation)
    comparing = add(report, "compare the reports of evaluations: a Markdown table", "reports")
    comparing.add_argument("--html", metavar="FILE", help="and a page with rate-distortion curves and BD-rate")
    return parser
