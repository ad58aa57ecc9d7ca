"""`genvid encode` and `decode` of a long video: python benchmarks/long_video.py VIDEO [--tokens-per-second 800]

Prints the time for each minute of the video, the resident memory of both processes over their course, and the most
tokens of any second in the token file. Fails where a second has more than its budget.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from genvid.api import Tokenizer, load
from genvid.checkpoint import resolve
from genvid.data.video import probe
from genvid.tokenizer.streams import fitted
from genvid.tokens.code_counts import CodeCounts
from genvid.tokens.entropy import UniformCodes
from genvid.tokens.file import read_token_file

COURSE = (0.1, 0.5, 1.0)
"""Shares of the time of a process at which its memory is printed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--tokenizer", default="genvid-tiny")
    parser.add_argument("--tokens-per-second", type=int, default=800)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the processes")
    options = parser.parse_args()
    minutes = probe(options.video).frames / probe(options.video).fps / 60
    print(f"{minutes:.1f} minutes of video, {options.threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        coded, decoded = Path(folder) / "video.tok", Path(folder) / "video.mp4"
        limit = ("--tokens-per-second", str(options.tokens_per_second))
        verbs = ("encode", options.video, coded, *limit), ("decode", coded, decoded)
        for verb, *arguments in verbs:
            seconds, resident = watched([verb, *map(str, arguments), "--tokenizer", options.tokenizer], options.threads)
            course = ", ".join(f"{memory(resident, share):.0f} MB at {share:.0%}" for share in COURSE)
            print(f"{verb}: {seconds:.0f} s, {seconds / minutes:.1f} s a minute; {course}", flush=True)
        most, mean = tokens_of_a_second(coded, options.tokenizer)
    print(f"tokens of a second: at most {most}, {mean:.0f} on average, of {options.tokens_per_second}")
    if most > options.tokens_per_second:
        raise SystemExit("a second has more tokens than its budget")


def watched(arguments: list[str], threads: int) -> tuple[float, list[int]]:
    """Run a command of genvid -> its seconds, and its resident bytes about once a second."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start, resident = time.perf_counter(), list[int]()
    with subprocess.Popen([sys.executable, "-m", "genvid.cli", *arguments], env=environment) as process:
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                resident.append(psutil.Process(process.pid).memory_info().rss)
            time.sleep(1)
    if process.returncode:
        raise SystemExit(f"genvid {arguments[0]} failed")
    return time.perf_counter() - start, resident


def memory(resident: list[int], share: float) -> float:
    """Most MB up to this share of the time."""
    return max(resident[: math.ceil(share * len(resident))]) / 1e6


def tokens_of_a_second(coded: Path, source: str) -> tuple[int, float]:
    """Most and mean tokens of the fewest consecutive blocks that outlast a second."""
    tokenizer = load(source)
    assert isinstance(tokenizer, Tokenizer)
    with read_token_file(coded) as file:
        model = fitted(tokenizer.model, (file.header.height, file.header.width))
        codes = CodeCounts.load(resolve(source), model.spec) or UniformCodes(model.spec)
        lengths = torch.cat([tokens.lengths[0] for _, tokens in file.tokens(codes)])
        blocks = model.spec.continued.covering(math.ceil(file.header.fps))
    sums = lengths.unfold(0, min(blocks, len(lengths)), 1).sum(1)
    return int(sums.max()), float(sums.double().mean())


if __name__ == "__main__":
    main()
