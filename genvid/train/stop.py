"""Stopping after a step: on Ctrl+C, SIGTERM or SIGUSR1 (preemption, the end of a Slurm job's time), or a failure."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

STOPPED = os.EX_TEMPFAIL
"""Exit status of a run that was stopped and can be resumed: 75, "try again later" of sysexits(3)."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(SystemExit):
    """The end of a stopped run, its state saved: ends the process with status `STOPPED`."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


T = TypeVar("T")


class LookAhead(Generic[T]):
    """Items of a stream, the next `steps` of them read ahead. When the stream fails on one of several processes, that
    process can still take part in so many steps, until all have agreed to stop. Errors of the first items are raised:
    with fewer steps ahead the other processes would wait for this one."""

    def __init__(self, stream: Iterator[T], steps: int) -> None:
        self.stream, self.steps = stream, steps
        self.held = deque(islice(stream, steps + 1))
        self.failure: Exception | None = None

    def take(self) -> T | None:
        """The next item; None when the stream has ended or failed and all items read ahead are used up."""
        while self.failure is None and len(self.held) <= self.steps:
            try:
                self.held.append(next(self.stream))
            except StopIteration:
                break
            except (ValueError, OSError, RuntimeError) as error:
                self.failure = error
        return self.held.popleft() if self.held else None


class StopRequest:
    """A context in which signals do not end the process, but make `agreed` true on all processes after the same step.

    The request of each process is part of a sum that they exchange in every step. The sum is read `LAG` steps late, so
    reading it never stalls the GPU.
    """

    LAG = 2

    def __init__(self, processes: int, device: torch.device) -> None:
        self.alone, self.device = processes == 1, device
        self.received: signal.Signals | None = None
        self.failure: Exception | None = None
        """The first error of this process that leaves weights and optimizers intact: of the data, or of the journal."""
        self._indicators = torch.tensor([0, 1], device=device)
        self._totals: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            print("Ctrl+C: the run is saved after this step; a second one ends it at once", file=sys.stderr)
            signal.signal(number, signal.default_int_handler)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Processes started here are not reached by the signals, which launchers send to complete process groups."""
        resource_tracker.ensure_running()  # which lets signals through when it starts, before data workers
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def fail(self, error: Exception) -> None:
        """Request a stop because of an error; later errors are consequences of the first."""
        self.failure = self.failure or error

    @contextmanager
    def after(self, kind: type[Exception]) -> Iterator[None]:
        """An error of this kind becomes the request to stop: the run first tries to save once more."""
        try:
            yield
        except kind as error:
            self.fail(error)

    @property
    def requested(self) -> bool:
        """Whether this process requests a stop."""
        return self.received is not None or self.failure is not None

    def indicator(self) -> Tensor:
        """() int64: 1 where this process requests a stop, else 0; to be summed over the processes."""
        return self._indicators[int(self.requested)]

    def add_total(self, requests: Tensor) -> None:
        """Take the sum of `indicator` over all processes, once a step."""
        if not self.alone:
            copy, event = requests.to("cpu", non_blocking=True), None
            if self.device.type == "cuda":
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
            self._totals.append((copy, event))

    def agreed(self) -> bool:
        """Whether to stop after this step; the same on all processes."""
        if self.alone:
            return self.requested
        if len(self._totals) <= self.LAG:
            return False
        copy, event = self._totals.popleft()
        if event is not None:
            event.synchronize()
        return bool(copy)
