"""Runs of several processes, and runs that are killed: a process that has imported everything forks one for each
attempt, as often as it is asked.

Run as a program it reads attempts from stdin, a JSON object a line, and answers with the exit codes (negative: signal).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_trainer
import torch
from test_trainer import stream, train

from genvid.train.run import RunError

WATCHED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
"""What a run does to its folder, as sys.addaudithook names it."""
SETTINGS = {"steps": 24, "save_every": 4, "log_every": 2}


class Runs:
    """The program, seen from a test."""

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.program = subprocess.Popen([sys.executable, __file__], **pipes)
        assert self._answer() == "ready"

    def attempt(self, folder: Path, **request: Any) -> list[int]:
        """Train into `folder` until the end or the fault; returns the exit code of each process."""
        assert self.program.stdin
        if request.get("processes", 1) > 1 and torch.cuda.device_count() == 1:
            pytest.skip("needs two GPUs")
        print(json.dumps({"folder": str(folder), **request}), file=self.program.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.program.stdout
        return json.loads(self.program.stdout.readline())

    def close(self) -> None:
        assert self.program.stdin
        self.program.stdin.close()
        self.program.wait()


def main() -> None:
    _import_what_training_imports()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        processes = request.pop("processes", 1)
        after = request.pop("kill_after", None)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [_fork(rank, processes, port, request) for rank in range(processes)]
        if after is not None:
            time.sleep(after)
            for child in children:
                os.kill(child, signal.SIGKILL)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


def _import_what_training_imports() -> None:
    """Modules that torch imports when it is used, so that not every attempt has to."""
    with tempfile.TemporaryDirectory() as folder:
        used = Path(folder) / "modules"
        if not (child := os.fork()):
            try:
                train(Path(folder) / "run", steps=1)
                used.write_text("\n".join(sys.modules))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        for name in used.read_text().splitlines():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def _fork(rank: int, processes: int, port: int, request: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if processes > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
        _attempt(rank, **request)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except RunError:
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _attempt(
    rank: int,
    folder: str,
    task: str = "ToyTask",
    kill_at: int | None = None,
    signal_at: int | None = None,
    fail_at: int | None = None,
    **settings: Any,
) -> None:
    if kill_at is not None:
        _kill_at_file_operation(Path(folder), kill_at)

    def batches(shard: Any) -> Iterator[Any]:
        for step, batch in enumerate(stream(shard), shard.start_step):
            if step == signal_at and rank == shard.world_size - 1:
                signal.raise_signal(signal.SIGUSR1)
            if step == fail_at and rank == shard.world_size - 1:
                raise OSError("clips are gone")
            yield batch

    train(Path(folder), getattr(test_trainer, task), batches, **SETTINGS | settings)


def _kill_at_file_operation(folder: Path, count: int) -> None:
    """Die instead of doing the `count`-th thing to a file in `folder`."""
    left = count

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in WATCHED and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def moments(seed: int, count: int, highest: float) -> Iterator[float]:
    """Random moments at which to die."""
    chance = random.Random(seed)
    return (chance.uniform(0, highest) for _ in range(count))


if __name__ == "__main__":
    main()
