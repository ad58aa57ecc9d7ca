"""Scripts in two processes, which a program that has imported genvid forks: importing it takes longer than most runs.

Run as a program it reads launches from stdin, a JSON object a line, and answers with the exit codes and the output.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

RECIPES = ("train", "cache_tokens", "generate", "compare_allocators", "compare_lit")
WORLD = 2


def launch_two(script: Path, *arguments: object) -> None:
    """Run a script in two processes with the environment of this one, as `python -m torch.distributed.run` does: on two
    GPUs, where GPUs are visible."""
    if torch.cuda.device_count() == 1:
        pytest.skip("needs two GPUs")
    codes, said = _launcher().launch([str(script), *map(str, arguments)])
    assert codes == [0] * WORLD, said


class Launcher:
    """The program, seen from a test. It ends with this process, whose end closes its stdin."""

    def __init__(self) -> None:
        # Asking the driver for GPUs before the fork would keep the processes from using them; NVML does not.
        environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, __file__]
        self.program = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    def launch(self, command: list[str]) -> tuple[list[int], str]:
        assert self.program.stdin
        assert self.program.stdout
        print(json.dumps({"command": command, "environment": {**os.environ}}), file=self.program.stdin, flush=True)
        try:
            codes, said = json.loads(self.program.stdout.readline())
        except BaseException:  # the time limit of a test: its answer is not that of the next one
            os.killpg(self.program.pid, signal.SIGKILL)
            _launcher.cache_clear()
            raise
        return codes, said


@functools.cache
def _launcher() -> Launcher:
    return Launcher()


def main() -> None:
    for name in RECIPES:
        importlib.import_module(f"genvid.recipes.{name}")
    for line in sys.stdin:
        request = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with tempfile.TemporaryFile("w+") as output:
            children = [_fork(rank, port, output.fileno(), **request) for rank in range(WORLD)]
            codes = _codes(children)
            output.seek(0)
            print(json.dumps([codes, output.read()]), flush=True)


def _fork(rank: int, port: int, output: int, command: list[str], environment: dict[str, str]) -> int:
    if child := os.fork():
        return child
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "MASTER_PORT": port}
    os.environ.clear()
    os.environ.update(environment, MASTER_ADDR="127.0.0.1", **{name: str(value) for name, value in names.items()})
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _codes(children: list[int]) -> list[int]:
    """The exit code of each child; when one fails the others, which may wait for it, are killed."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:
            for other in set(children) - codes.keys():
                os.kill(other, signal.SIGKILL)
    return [codes[child] for child in children]


if __name__ == "__main__":
    main()
