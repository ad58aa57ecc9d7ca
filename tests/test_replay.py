"""Functions replayed as CUDA graphs give what they give when they run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from genvid import replay
from genvid.replay import Graphs


class Pair(NamedTuple):
    left: Tensor
    scale: int


class Counted:
    """Counts the times that Python runs it."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, pair: Pair, others: tuple[Tensor, ...], shift: float | None) -> tuple[Pair, tuple[Tensor, None]]:
        self.runs += 1
        left = pair.left * pair.scale + (0 if shift is None else shift)
        return Pair(left, pair.scale), (torch.cat([left, *others]), None)


def arguments(device: torch.device, seed: int, scale: int = 2, others: int = 2) -> tuple[object, ...]:
    generator = torch.Generator().manual_seed(seed)
    left, *rest = (torch.rand(3, 4, generator=generator).to(device) for _ in range(1 + others))
    return Pair(left, scale), tuple(rest), 0.5


def test_every_call_runs_on_a_cpu() -> None:
    function, graphs = Counted(), Graphs()
    for seed in range(4):
        given = arguments(torch.device("cpu"), seed)
        (left, scale), (joined, nothing) = graphs(function, *given)
        expected = Counted()(*given)
        assert left.equal(expected[0].left)
        assert joined.equal(expected[1][0])
        assert (scale, nothing) == (2, None)
    assert function.runs == 4


@pytest.mark.gpu
def test_replayed_calls_equal_calls(gpu: torch.device) -> None:
    function, graphs = Counted(), Graphs()
    results = []
    for seed in range(6):
        for scale, others in ((2, 2), (3, 2), (2, 1)):
            given = arguments(gpu, seed, scale, others)
            results.append((graphs(function, *given), Counted()(*given)))
    for (pair, (joined, nothing)), (expected, (all_of_it, _)) in results:  # a later replay changes no earlier result
        assert pair.left.equal(expected.left)
        assert pair.scale == expected.scale
        assert joined.equal(all_of_it)
        assert nothing is None
    assert function.runs == 3 * 4  # the first calls, and three each to capture


@pytest.mark.gpu
def test_replayed_weights_are_read_anew_under_autocast(gpu: torch.device) -> None:
    linear, graphs = torch.nn.Linear(64, 64).to(gpu), Graphs()
    x = torch.rand(8, 64, device=gpu)
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        for _ in range(4):
            given = graphs(lambda value, layer=linear: layer(value), x)
            assert given.dtype == torch.bfloat16
    function = linear.__call__
    for _ in range(4):
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            half = graphs(function, x)
        whole = graphs(function, x)
        assert (half.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(half.float(), whole, rtol=2e-2, atol=2e-2)
        linear.weight.data.mul_(0.5)


@pytest.mark.gpu
def test_threads_with_streams_of_their_own_share_graphs(gpu: torch.device) -> None:
    function, graphs = Counted(), Graphs()
    for seed in range(3):
        graphs(function, *arguments(gpu, seed))

    def differences(thread: int) -> list[float]:
        with torch.cuda.stream(torch.cuda.Stream(gpu)):
            found = []
            for seed in range(100 * thread, 100 * thread + 50):
                given = arguments(gpu, seed)
                found.append((graphs(function, *given)[1][0] - Counted()(*given)[1][0]).abs().max())
            return torch.stack(found).tolist()

    with ThreadPoolExecutor(4) as pool:
        assert sum(map(sum, pool.map(differences, range(4)))) == 0


@pytest.mark.gpu
def test_a_function_that_cannot_be_captured_runs_as_it_is(gpu: torch.device) -> None:
    def waiting(x: Tensor) -> Tensor:
        return x * float(x.sum())

    graphs, x = Graphs(), torch.rand(5, device=gpu)
    assert graphs(waiting, x).equal(waiting(x))
    with pytest.warns(UserWarning, match="waiting cannot be replayed on this device"):
        assert graphs(waiting, x).equal(waiting(x))
    assert graphs(waiting, x).equal(waiting(x))
    doubled = partial(torch.mul, 2)
    assert all(graphs(doubled, x + step).equal(2 * (x + step)) for step in range(4))


@pytest.mark.gpu
def test_large_work_runs_as_it_is(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_LARGEST", 100)
    function, graphs = Counted(), Graphs()
    for seed in range(4):
        graphs(function, *arguments(gpu, seed))
    assert function.runs == 4
