"""Frames as they come: the frames of each block, as soon as its tokens are complete, decoded beside the sampling.

A thread samples; the caller's thread decodes, on a GPU in a stream of its own, and never waits for tokens of later
blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event

import torch
from torch import Tensor

from genvid.generation.engine.scheduler import Engine, Request
from genvid.generation.pipeline import Job, check_match
from genvid.tokens import BlockTokens, VideoTokenizer


@dataclass(frozen=True)
class Frames:
    """Consecutive frames of a sampled video."""

    number: int
    """Index of its request."""
    start: int
    """Frames of the video before these."""
    video: Tensor
    """(3, T, H, W) float in [-1, 1], on the CPU."""
    tokens: BlockTokens
    """Of all blocks so far, of 1 video, on the CPU; those of a prompt included."""
    last: bool
    """Whether the video ends with them."""


def stream_frames(engine: Engine, tokenizer: VideoTokenizer, job: Job) -> Iterator[Frames]:
    """Yield the frames of each block of each video; joined, those of a video are its frames in `pipeline.generate`.

    The first frames of a continued video are its prompt and its first block. Blocks of one video come in order; those
    of several, as they are complete. Unsupported requests raise ValueError before anything is computed.
    """
    check_match(engine.model, tokenizer)
    engine.check(job.requests)
    return _stream_frames(engine, tokenizer, job)


def _stream_frames(engine: Engine, tokenizer: VideoTokenizer, job: Job) -> Iterator[Frames]:
    rows: SimpleQueue[tuple[int, Tensor, bool] | None] = SimpleQueue()
    shown, stop = [0] * len(job.requests), Event()
    with ThreadPoolExecutor(1, "sampling") as thread:
        sampling = thread.submit(_sample, engine, job.requests, rows, stop)
        try:
            beside = _beside(engine.model.device)
            while (found := rows.get()) is not None:
                number, row, last = found
                tokens = job.unpack(number, row)
                with beside, torch.no_grad():
                    video = tokenizer.decode(tokens.to(engine.model.device)).float().clamp(-1, 1)[0].cpu()
                yield Frames(number, shown[number], video[:, shown[number] :], tokens, last)
                shown[number] = video.shape[1]
        finally:
            stop.set()
        sampling.result()


def _sample(
    engine: Engine,
    requests: Sequence[Request],
    rows: SimpleQueue[tuple[int, Tensor, bool] | None],
    stop: Event,
) -> None:
    """Put every row into the queue at the end of each of its blocks, and None at the end of all."""
    device = engine.model.device
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for found in engine.run_blocks(requests):
                rows.put(found)
                if stop.is_set():
                    return
    finally:
        rows.put(None)


def _beside(device: torch.device) -> AbstractContextManager[object]:
    """A stream of its own, whose kernels run before those of the engine: later tokens are not urgent, frames are."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device, priority=-1))  # type: ignore[no-untyped-call]
