"""Frames as they come: the frames of each block, as soon as its tokens are complete.

A thread samples and decodes, and the caller has its own time for the frames. A GPU decodes a block before it samples
the next one: side by side, the kernels of later tokens kept the first frames waiting until the end of the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event

import torch
from torch import Tensor

from genvid.generation.engine.scheduler import Engine
from genvid.generation.pipeline import Job, check_match
from genvid.tokens import BlockTokens, VideoTokenizer

_AHEAD = 64
"""Most parts of videos that wait for the caller."""


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
    made: Queue[Frames | None] = Queue(_AHEAD)
    stop = Event()
    with ThreadPoolExecutor(1, "sampling") as thread:
        sampling = thread.submit(_sample, engine, tokenizer, job, made, stop)
        try:
            while (frames := made.get()) is not None:
                yield frames
        finally:
            stop.set()
            with suppress(Empty):  # room for the last frames of the thread
                while True:
                    made.get_nowait()
        sampling.result()


@torch.no_grad()
def _sample(engine: Engine, tokenizer: VideoTokenizer, job: Job, made: Queue[Frames | None], stop: Event) -> None:
    """Put the frames of every block into the queue, and None at the end of all."""
    device, shown = engine.model.device, [0] * len(job.requests)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for number, row, last in engine.run_blocks(job.requests):
                tokens = job.unpack(number, row)
                video = tokenizer.decode(tokens.to(device)).float().clamp(-1, 1)[0].cpu()
                made.put(Frames(number, shown[number], video[:, shown[number] :], tokens, last))
                shown[number] = video.shape[1]
                if stop.is_set():
                    return
    finally:
        made.put(None)
