"""Samples of other programs as models under evaluation: video files, or pixels in .npz files."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genvid.batch import Batch
from genvid.data.clips import ClipConfig
from genvid.data.dataset import ClipDataset
from genvid.data.sources.files import FolderConfig
from genvid.data.sources.listing import EXTENSIONS
from genvid.eval.evaluation import Output
from genvid.eval.protocols import EvaluationProtocol
from genvid.files import sha256
from genvid.tokens import TokenizerSpec

_THREADS = min(16, os.cpu_count() or 1)


def open_samples(path: Path, protocol: EvaluationProtocol) -> VideoFiles | PixelFiles:
    """A folder of videos or of .npz files, or one .npz file; ValueError when it holds fewer than are compared.

    Of more, as many as are compared are drawn, as real clips are: the first ones would be of a few classes.
    """
    rule = replace(protocol.clip_rule(), window="first")
    arrays = [path] if path.suffix == ".npz" else sorted(path.glob("*.npz"))
    if path.is_dir() and arrays and any(file.suffix.lower() in EXTENSIONS for file in path.iterdir()):
        raise ValueError(f"{path} mixes .npz and video files; give a folder of one kind")
    samples: VideoFiles | PixelFiles = PixelFiles(arrays, rule) if arrays else VideoFiles(path, rule)
    held = len(samples)
    if protocol.count is not None and held < protocol.count:
        raise ValueError(f"{path} holds {held} videos, {protocol.name} compares {protocol.count:,}")
    samples.drawn = sorted(protocol.draw(held))  # in rising order: see PixelFile
    if len(samples.drawn) < held:
        samples.about["videos there"] = held
    return samples


class VideoFiles:
    """The first frames of video files."""

    spec: TokenizerSpec | None = None

    def __init__(self, path: Path, rule: ClipConfig) -> None:
        self.dataset = ClipDataset(FolderConfig(str(path)), rule, strict=True)
        self.about: dict[str, Any] = {"videos": self.dataset.fingerprint()}
        self.drawn: Sequence[int] = range(len(self))
        """Number of the file that is the sample at each position."""

    def __len__(self) -> int:
        return len(self.dataset)

    def describe(self) -> Mapping[str, Any]:
        return self.about

    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        with ThreadPoolExecutor(_THREADS) as pool:
            return Output(torch.stack(list(pool.map(self._clip, conditioning["position"].tolist()))))

    def _clip(self, position: int) -> Tensor:
        return self.dataset[self.drawn[position]]["video"]


class PixelFiles:
    """The first frames of the clips in .npz files."""

    spec: TokenizerSpec | None = None

    def __init__(self, paths: list[Path], rule: ClipConfig) -> None:
        self.rule, self.files = rule, [PixelFile(path) for path in paths]
        for file in self.files:
            if file.frames < rule.frames:
                raise ValueError(f"{file.path} has clips of {file.frames} frames, but {rule.frames} are compared")
        self.ends = list(itertools.accumulate(map(len, self.files)))
        self.about: dict[str, Any] = {"videos": hashlib.sha256(" ".join(map(sha256, paths)).encode()).hexdigest()[:16]}
        self.drawn: Sequence[int] = range(len(self))
        """Number of the clip that is the sample at each position."""

    def __len__(self) -> int:
        return self.ends[-1]

    def describe(self) -> Mapping[str, Any]:
        return self.about

    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        """Files are read side by side, clips of one file one after the other."""
        numbers = [self.drawn[position] for position in conditioning["position"].tolist()]
        groups = itertools.groupby(numbers, lambda number: bisect.bisect(self.ends, number))
        parts = [(file, list(clips)) for file, clips in groups]
        with ThreadPoolExecutor(_THREADS) as pool:
            read = pool.map(lambda group: self._clips(*group), parts)
            return Output(torch.stack(list(itertools.chain.from_iterable(read))))

    def _clips(self, number: int, clips: list[int]) -> list[Tensor]:
        file = self.files[number]
        start = self.ends[number] - len(file)
        return [self.rule.fit(file.read(clip - start)[: self.rule.frames], 0) for clip in clips]


class PixelFile:
    """Clips (N, T, H, W, 3) uint8, or one (T, H, W, 3), in an .npz file, which is never in memory as a whole.

    A compressed array can only be read from its beginning: asking for clips in rising order reads it once.
    """

    def __init__(self, path: Path) -> None:
        """ValueError unless exactly one array of the file can hold clips; others (labels, a frame rate) are
        ignored."""
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                arrays = [_describe(archive, name) for name in archive.namelist() if name.endswith(".npy")]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not an .npz file that can be read ({error})") from None
        videos = [array for array in arrays if array.holds_clips]
        if len(videos) != 1:
            raise ValueError(
                f"{path} must hold one array of clips, uint8 (N, T, H, W, 3) or (T, H, W, 3), in C order; "
                f"it holds {', '.join(map(str, arrays)) or 'none'}"
            )
        self._array, self._clip = videos[0], videos[0].shape[-4:]
        self._stream: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._array.shape[0] if len(self._array.shape) == 5 else 1

    @property
    def frames(self) -> int:
        return self._clip[0]

    def read(self, row: int) -> Tensor:
        """A clip (T, H, W, 3), uint8; ValueError where the file is damaged."""
        size = math.prod(self._clip)
        try:
            start = self._array.start + row * size
            if self._stream is None or self._stream.tell() > start:
                with zipfile.ZipFile(self.path) as archive:  # its file stays open for the stream
                    self._stream = archive.open(self._array.name)
            while ahead := start - self._stream.tell():  # read, not sought: after a seek the checksum is not compared
                self._stream.read(min(ahead, 1 << 20))
            pixels = bytearray(self._stream.read(size))
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.path} is damaged ({error})") from None
        if row == len(self) - 1:
            self._stream.close()
            self._stream = None
        return torch.frombuffer(pixels, dtype=torch.uint8).view(self._clip)


class _Array(NamedTuple):
    """Header of an array, and the offset of its numbers in their member of the archive."""

    name: str
    shape: tuple[int, ...]
    transposed: bool
    dtype: np.dtype[Any]
    start: int

    def __str__(self) -> str:
        return f"{self.name[:-4]} {self.dtype} {self.shape}"

    @property
    def holds_clips(self) -> bool:
        return self.dtype == np.uint8 and not self.transposed and len(self.shape) in (4, 5) and self.shape[-1] == 3


def _describe(archive: zipfile.ZipFile, name: str) -> _Array:
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, transposed, dtype = read(stream)
        return _Array(name, shape, transposed, dtype, stream.tell())
