"""Frames as they come: the frames of each block, as soon as its tokens are complete.

A thread samples and decodes, and the caller has its own time for the frames. A GPU decodes a block before it samples
the next one: side by side, the kernels of later tokens kept the first frames waiting until the end of the video.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Thread
from weakref import finalize

import torch
from torch import Tensor

from genvid.generation.engine.scheduler import Engine
from genvid.generation.pipeline import Job, check_match
from genvid.hardware import on
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
    return _ahead(_frames(engine, tokenizer, job))


@torch.no_grad()
def _frames(engine: Engine, tokenizer: VideoTokenizer, job: Job) -> Generator[Frames]:
    """`stream_frames`, in one thread."""
    device, shown = engine.model.device, [0] * len(job.requests)
    with on(device):
        for number, row, last in engine.run_blocks(job.requests):
            tokens = job.unpack(number, row)
            video = tokenizer.decode(tokens.to(device)).float().clamp(-1, 1)[0].cpu()
            yield Frames(number, shown[number], video[:, shown[number] :], tokens, last)
            shown[number] = video.shape[1]


def _ahead(parts: Generator[Frames]) -> Iterator[Frames]:
    """Yield `parts`, which a thread makes while `_AHEAD` or fewer wait for the caller.

    The thread ends with its part where the caller leaves the loop, or the program ends inside it.
    """
    made: Queue[Frames | BaseException | None] = Queue(_AHEAD)
    left = Event()

    def put(part: Frames | BaseException | None) -> bool:
        while not left.is_set():
            with suppress(Full):
                made.put(part, timeout=0.1)
                return True
        return False

    def make() -> None:
        failure: BaseException | None = None
        try:
            with closing(parts):
                for part in parts:
                    if not put(part):
                        break
        except BaseException as error:
            failure = error
        put(failure)

    thread = Thread(target=make, name="sampling", daemon=True)

    def end() -> None:
        left.set()
        thread.join()

    thread.start()
    leave = finalize(thread, end)  # a program that ends calls it too
    try:
        while isinstance(part := made.get(), Frames):
            yield part
    finally:
        leave()
    if part is not None:
        raise part
