"""A visit to the page: its video under each tokenizer, and the requests of its screens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from genvid.api import Generator, Tokenizer
from genvid.studio.video import CodedVideo

Part = TypeVar("Part")

_WORKING = Lock()
"""Held while something is computed: no two threads use a model at once, and each computation has all cores."""


class Requests:
    """Of one screen. A slider that is dragged makes many requests a second, each of many parts: a newer one ends all
    older ones after the part that they are at."""

    def __init__(self) -> None:
        self._numbers, self._newest = count(1), 0

    def parts(self, answer: Iterator[Part]) -> Iterator[tuple[int, Part]]:
        """The number of this request with each part of its answer, until there is a newer request."""
        number = self._newest = next(self._numbers)
        while True:
            with _WORKING:
                if number != self._newest:
                    return
                part = next(answer, None)
            if part is None:
                return
            yield number, part


class Session:
    """The video of a visit; until one is opened there is none."""

    def __init__(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        self.tokenizers = tokenizers
        self.requests = (Requests(), Requests())
        """Of the two screens."""
        self.opened = 0
        """Number of videos so far."""
        self._path: Path | None = None
        self._coded: dict[str, CodedVideo] = {}

    def open(self, path: str | Path) -> None:
        """Take this video in place of the one before. VideoError where the file is none."""
        with _WORKING:
            first = next(iter(self.tokenizers))
            self._coded = {first: CodedVideo(self.tokenizers[first], path)}
            self._path = Path(path)
            self.opened += 1

    def coded(self, name: str) -> CodedVideo:
        """The video under the tokenizer of this name."""
        if self._path is None:
            raise ValueError("there is no video yet: drop one first")
        with _WORKING:
            if name not in self._coded:
                self._coded[name] = CodedVideo(self.tokenizers[name], self._path)
            return self._coded[name]

    def samples(self, generator: Generator, name: str, label: str | None, **sampling: Any) -> NDArray[np.uint8]:
        """Videos (count, T, H, W, 3) of a class. `sampling`: arguments of `Generator.sample`."""
        with _WORKING:
            return np.asarray(generator.sample(self.tokenizers[name], label=label, **sampling))

    def continuations(
        self, generator: Generator, name: str, seconds: float, **sampling: Any
    ) -> tuple[NDArray[np.uint8], float]:
        """Videos (count, T, H, W, 3) that begin with the last frames before `seconds` and go on from there, and their
        frame rate."""
        coded = self.coded(name)
        needed = generator.model.prompt_frames(coded.spec)
        if coded.frames < needed:
            raise ValueError(f"this model continues {needed} frames, and the video has {coded.frames}")
        prompt = coded.frames_before(max(round(seconds * coded.fps), needed))[-needed:]
        with _WORKING:
            return np.asarray(generator.sample(coded.tokenizer, prompt=prompt, **sampling)), coded.fps
