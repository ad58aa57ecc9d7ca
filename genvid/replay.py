"""Functions of tensors that a GPU runs as CUDA graphs: launching many small kernels takes longer than their work."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_MOST = 64
"""Graphs of one `Graphs`. Further functions and shapes run as written."""
_LARGEST = 2**28
"""Bytes of the arguments of a graph, which it holds a copy of. Larger work is not a matter of launches."""


class Graphs:
    """Calls functions. On a GPU the second call with arguments of the same shapes captures the launches, which later
    ones replay; the first one, calls on another device and those with large arguments run the function as it is.

    A function takes and returns tensors and tuples of them, and other hashable values, which are constants of a graph.
    Its result depends on its arguments and on weights that stay where they are as long as the graphs exist. It does not
    wait for the device. It runs without gradients on a GPU. Threads and streams may call side by side.
    """

    def __init__(self) -> None:
        self._seen: set[Any] = set()
        self._graphs: dict[Any, _Graph | None] = {}
        self._pool: Any = None
        self._lock = Lock()
        self._done: torch.cuda.Event | None = None
        """The end of the last replay, whose arguments and results the next one overwrites."""

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)`."""
        tensors = [*_tensors(arguments)]
        if not all(tensor.is_cuda for tensor in tensors) or sum(tensor.nbytes for tensor in tensors) > _LARGEST:
            return function(*arguments)
        with self._lock, torch.inference_mode(False), torch.no_grad():
            key = function, _form(arguments), torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
            if key not in self._graphs:
                if key not in self._seen or len(self._graphs) == _MOST:
                    self._seen.add(key)
                    return function(*arguments)
                self._graphs[key] = self._captured(function, arguments)
            graph = self._graphs[key]
            if graph is None:
                return function(*arguments)
            if self._done is not None:
                torch.cuda.current_stream().wait_event(self._done)
            result = graph(tensors)
            self._done = torch.cuda.current_stream().record_event()
            return result

    def _captured(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> _Graph | None:
        """None, and a warning, where something in the function cannot be captured on this device."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            return _Graph(function, arguments, self._pool)
        except RuntimeError as error:
            name = getattr(function, "__qualname__", function)
            warnings.warn(f"the launches of {name} cannot be replayed on this device: {error}", stacklevel=3)
            self._pool = None  # other graphs are captured in another one
            return None


class _Graph:
    """The launches of a function, with arguments and results of their own."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], pool: Any) -> None:
        self._arguments = [tensor.clone() for tensor in _tensors(arguments)]
        types = [tensor.dtype for tensor in self._arguments]
        self._places = [[i for i, dtype in enumerate(types) if dtype == one] for one in dict.fromkeys(types)]
        """Of the arguments of each type, which one launch copies."""
        own = _rebuilt(arguments, iter(self._arguments))
        # Casts of weights that autocast remembers would be freed after the capture.
        with torch.autocast("cuda", enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False):
            self._graph, self._result = capture(lambda: function(*own), pool)

    def __call__(self, tensors: list[Tensor]) -> Any:
        for places in self._places:
            torch._foreach_copy_([self._arguments[i] for i in places], [tensors[i] for i in places])
        self._graph.replay()
        return _rebuilt(self._result, (tensor.clone() for tensor in [*_tensors(self._result)]))


def capture(work: Callable[[], Result], pool: Any) -> tuple[torch.cuda.CUDAGraph, Result]:
    """The launches of `work` in the memory of `pool`, and its result, whose tensors every replay writes anew. It runs
    twice before."""
    graph, aside = torch.cuda.CUDAGraph(), _capture_stream(torch.cuda.current_device())
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
        result = work()
    return graph, result


@cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """One for each GPU: by default torch captures in a stream of the GPU on which it first did, and graphs share memory
    within a stream alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors within tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


def _form(value: Any) -> Any:
    """Nested tuples with shapes and types in place of tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    return tuple(map(_form, value)) if isinstance(value, tuple) else value


def _rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Nested tuples with other tensors."""
    if isinstance(value, Tensor):
        return next(tensors)
    if not isinstance(value, tuple):
        return value
    parts = (_rebuilt(part, tensors) for part in value)
    return value._make(parts) if hasattr(value, "_make") else tuple(parts)  # named tuples
