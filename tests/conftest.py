"""Devices of the tests: all of them run on the CPU; with `--gpu`, those marked `gpu` run on the GPUs of the machine.

`make test` does both where there is a GPU. Without `--gpu` no GPU is visible, neither to a test nor to the processes
that it starts, so a test may compare with tensors on the CPU.

Operations have one thread: two threads of an operation wait for each other in a loop, and on cores that the workers of
pytest share with other processes a test takes ten times as long (OMP_NUM_THREADS sets another number).
"""

from __future__ import annotations

import os

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="run the tests marked gpu, on GPUs")


def pytest_configure(config: pytest.Config) -> None:
    threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(threads))
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        raise pytest.UsageError("--gpu needs a GPU that PyTorch can use; run pytest without it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--gpu"):
        config.hook.pytest_deselected(items=[item for item in items if not item.get_closest_marker("gpu")])
        items[:] = [item for item in items if item.get_closest_marker("gpu")]


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of this session: a GPU with `--gpu`."""
    return torch.device("cuda" if request.config.getoption("--gpu") else "cpu")


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """A GPU, for tests that need one."""
    if device.type == "cpu":
        pytest.skip("needs a GPU: pytest --gpu")
    return device
