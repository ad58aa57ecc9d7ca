"""SIGTERM and SIGUSR1 (preemption, the end of a Slurm job's time) become the wish to stop after a step."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor

STOPPED = os.EX_TEMPFAIL
"""Exit status of a run that was told to stop and can go on: 75, which sysexits(3) calls "try again later"."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(SystemExit):
    """A run that was told to stop, after its state was saved; ends the process with status `STOPPED`."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class StopRequest:
    """A context in which the signals end nothing, but make `agreed` true on all processes after the same step.

    Processes tell each other with every step, in a sum that they exchange anyway. To read a sum never makes a GPU
    wait: it is looked at `LAG` steps later, when it has long been computed.
    """

    LAG = 2

    def __init__(self, processes: int, device: torch.device) -> None:
        self.alone, self.device = processes == 1, device
        self.received: signal.Signals | None = None
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

    def wish(self) -> Tensor:
        """1 where this process was told to stop, else 0: to be summed over the processes."""
        return self._answers[int(self.received is not None)]

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
            return self.received is not None
        if len(self._told) <= self.LAG:
            return False
        copy, event = self._told.popleft()
        if event is not None:
            event.synchronize()
        return bool(copy)
