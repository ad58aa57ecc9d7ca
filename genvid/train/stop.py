"""SIGTERM, SIGUSR1 (preemption, the end of a Slurm job's time) and failures become the wish to stop after a step."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

STOPPED = os.EX_TEMPFAIL
"""Exit status of a run that was told to stop and can go on: 75, which sysexits(3) calls "try again later"."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(SystemExit):
    """A run that was told to stop, after its state was saved; ends the process with status `STOPPED`."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


T = TypeVar("T")


class LookAhead(Generic[T]):
    """Items of a stream, of which the next `steps` are held: when the stream fails, a process among several can still
    take part in so many steps, until all have agreed to stop."""

    def __init__(self, stream: Iterator[T], steps: int) -> None:
        self.stream, self.steps = stream, steps
        self.held: deque[T] = deque()
        self.failure: Exception | None = None

    def take(self) -> T | None:
        """The next item; None when the stream has ended or failed and nothing is held any more."""
        while self.failure is None and len(self.held) <= self.steps:
            try:
                self.held.append(next(self.stream))
            except StopIteration:
                break
            except (ValueError, OSError, RuntimeError) as error:
                self.failure = error
        return self.held.popleft() if self.held else None


class StopRequest:
    """A context in which the signals end nothing, but make `agreed` true on all processes after the same step.

    Processes tell each other with every step, in a sum that they exchange anyway. To read a sum never makes a GPU
    wait: it is looked at `LAG` steps later, when it has long been computed.
    """

    LAG = 2

    def __init__(self, processes: int, device: torch.device) -> None:
        self.alone, self.device = processes == 1, device
        self.received: signal.Signals | None = None
        self.failure: Exception | None = None
        """The first error of this process that leaves its state whole: of the data, or of the journal."""
        self._answers = torch.tensor([0, 1], device=device)
        self._told: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
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

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Processes that are started here never see the signals, which launchers send to whole process groups."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def fail(self, error: Exception) -> None:
        """Wish to stop because of an error; later ones are consequences of the first."""
        self.failure = self.failure or error

    @property
    def wished(self) -> bool:
        """Whether this process wishes to stop."""
        return self.received is not None or self.failure is not None

    def wish(self) -> Tensor:
        """1 where this process wishes to stop, else 0: to be summed over the processes."""
        return self._answers[int(self.wished)]

    def tell(self, wishes: Tensor) -> None:
        """The sum of a step's wishes."""
        if not self.alone:
            copy, event = wishes.to("cpu", non_blocking=True), None
            if self.device.type == "cuda":
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
            self._told.append((copy, event))

    def agreed(self) -> bool:
        """Whether to stop after this step; the same on all processes."""
        if self.alone:
            return self.wished
        if len(self._told) <= self.LAG:
            return False
        copy, event = self._told.popleft()
        if event is not None:
            event.synchronize()
        return bool(copy)
