"""A folder of samples, written by several processes, which an interrupted run resumes.

about.json            everything that the samples depend on
00012.mp4             or .npz (frames: (T, H, W, 3) uint8), or a folder of PNG frames
tokens/00012.tok      a token file, which `genvid decode` reads
index.jsonl           a line for each sample, in order: number, file, seed, condition, budget, tokens of each block

Every file is written under a temporary name and renamed. A sample is complete once its line is in the index of its
process (index.0.jsonl, ...); an incomplete last line is ignored. `finish` joins the indices.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from genvid import config as configuration
from genvid.data.clips import to_uint8
from genvid.data.images import list_images, png, read_image
from genvid.data.video import frame_rate, probe, read_clip, video_writer
from genvid.files import write_atomically, write_json, write_text
from genvid.generation.engine.scheduler import Engine, RowEngine
from genvid.generation.frames import stream_frames
from genvid.generation.pipeline import Job, stream
from genvid.provenance import check_made_from
from genvid.tokens import BlockTokens, TokenizerSpec, VideoTokenizer
from genvid.tokens.entropy import UniformCodes
from genvid.tokens.file import VERSION, TokenWriter, read_token_file
from genvid.tokens.header import Header

Writer = Callable[[Path, Iterable[Tensor], float], None]
"""Path, consecutive parts (3, T, H, W) uint8, frames per second."""
Reader = Callable[[Path, int], NDArray[np.uint8]]
"""(path, most frames) -> the last frames (T, H, W, 3)."""


def _write_mp4(path: Path, parts: Iterable[Tensor], fps: float) -> None:
    with video_writer(path, fps) as append:
        for part in parts:
            append(part)


def _write_npz(path: Path, parts: Iterable[Tensor], fps: float) -> None:
    """The only format that holds a complete video in memory."""
    with write_atomically(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, frames=torch.cat(list(parts), 1).permute(1, 2, 3, 0).numpy(), fps=fps)


def _write_png(path: Path, parts: Iterable[Tensor], fps: float) -> None:
    with write_atomically(path) as folder:
        folder.mkdir()
        for number, frame in enumerate(frame for part in parts for frame in part.unbind(1)):
            (folder / _frame_name(number)).write_bytes(png(frame))


def _frame_name(number: int) -> str:
    return f"{number:04d}.png"


def _read_mp4(path: Path, most: int) -> NDArray[np.uint8]:
    info = probe(path)
    return read_clip(path, max(0, info.frames - most), min(most, info.frames), info=info)


def _read_npz(path: Path, most: int) -> NDArray[np.uint8]:
    with np.load(path) as file:
        frames: NDArray[np.uint8] = file["frames"]
        return frames[-most:]


def _read_png(path: Path, most: int) -> NDArray[np.uint8]:
    return np.stack([read_image(frame) for frame in list_images(path)[-most:]])


FORMATS: dict[str, tuple[str, Writer, Reader]] = {
    "mp4": (".mp4", _write_mp4, _read_mp4),
    "npz": (".npz", _write_npz, _read_npz),
    "png": ("", _write_png, _read_png),
}
"""Format -> (suffix of a video's file, writer, reader)."""


class SampleFolderError(ValueError):
    """A folder that cannot be used for samples, explained in one sentence."""


@dataclass(frozen=True)
class SampleWriter:
    """Writes samples as files of one format."""

    tokenizer: tuple[str, str]
    """Name and fingerprint of the tokenizer."""
    spec: TokenizerSpec
    fps: float
    format: str = "mp4"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"videos are written as {', '.join(FORMATS)}, not '{self.format}'")
        frame_rate(self.fps)  # an invalid rate raises here, before sampling

    def write_video(self, folder: Path, number: int, video: Tensor, before: Iterable[Tensor] = ()) -> str:
        """Write (3, T, H, W) in [-1, 1] after the parts (3, T, H, W) uint8 in `before`; the name of the file."""
        suffix, write, _ = FORMATS[self.format]
        name = f"{number:05d}{suffix}"
        write(folder / name, chain(before, [to_uint8(video)]), self.fps)
        return name

    def read_video(self, folder: Path, name: str, most: int) -> Tensor:
        """The last frames, at most `most`, of a file of `write_video`: (3, T, H, W) uint8."""
        return torch.from_numpy(FORMATS[self.format][2](folder / name, most)).permute(3, 0, 1, 2)

    def write(self, folder: Path, number: int, video: Tensor, tokens: BlockTokens) -> str:
        """Write a video and a file of its tokens; the name of the video's file."""
        name = self.write_video(folder, number, video)
        self.write_tokens(folder, number, video.shape[1], tokens)
        return name

    def write_frames(self, folder: Path, number: int, start: int, video: Tensor) -> str:
        """Write frames (3, T, H, W) in [-1, 1] of a video into its folder, from frame `start` on; the name of that."""
        name = f"{number:05d}{FORMATS['png'][0]}"
        for place, frame in enumerate(to_uint8(video).unbind(1), start):
            with write_atomically(folder / name / _frame_name(place)) as temporary:
                temporary.write_bytes(png(frame))
        return name

    def write_tokens(self, folder: Path, number: int, frames: int, tokens: BlockTokens) -> None:
        """Write the file of the tokens of a video of so many frames."""
        model = UniformCodes(self.spec)
        header = Header.of(self.spec, frames, frame_rate(self.fps), tokenizer=self.tokenizer, codes=model.record)
        with write_atomically(folder / "tokens" / f"{number:05d}.tok") as temporary, temporary.open("wb") as stream:
            TokenWriter(stream, header, model).append(tokens, frames)


class SampleFolder:
    """The folder. `part`: index of this process."""

    def __init__(self, path: str | Path, about: Mapping[str, Any], *, part: int = 0) -> None:
        """Check the folder; write nothing. SampleFolderError if it holds other files or samples with another `about`,
        ProvenanceError if the records in "made_from" differ."""
        self.path, self._about = Path(path), json.loads(json.dumps({**about, "token files": VERSION}))
        self._part, self._begun = self.path / f"index.{part}.jsonl", False
        file = self.path / "about.json"
        if self.path.exists() and (not self.path.is_dir() or (not file.exists() and _has_files(self.path))):
            raise SampleFolderError(f"{self.path} is not a folder of samples; choose another folder")
        if self._has_samples():
            held, wanted = configuration.read_json(file), dict(self._about)
            recorded, given = held.pop("made_from", {}), wanted.pop("made_from", {})
            difference = configuration.difference(held, wanted)
            if difference:
                raise SampleFolderError(
                    f"{self.path} already holds other samples ({difference}); choose another folder or delete that one"
                )
            check_made_from(self.path, recorded, given, "choose another folder or delete that one")

    def begin(self) -> None:
        """Write about.json, before the first sample."""
        if self._begun:
            return
        if not self._has_samples():
            write_json(self.path / "about.json", self._about)
        if self._part.exists():  # drops an incomplete last line
            _write_index(self._part, _read_index(self._part))
        self._begun = True

    def samples(self) -> dict[int, dict[str, Any]]:
        """Lines of the indices of all processes, by number."""
        lines = chain.from_iterable(_read_index(path) for path in sorted(self.path.glob("index*.jsonl")))
        found = {line["number"]: line for line in lines}
        return dict(sorted(found.items()))

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append samples to the index, after their files."""
        self.begin()
        with self._part.open("a") as stream:
            stream.write("".join(f"{json.dumps(line)}\n" for line in lines))
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self) -> None:
        """Join the indices of all processes, after all are done."""
        _write_index(self.path / "index.jsonl", list(self.samples().values()))
        for path in self.path.glob("index.*.jsonl"):
            path.unlink()

    def _has_samples(self) -> bool:
        return any(self.path.glob("index*.jsonl"))

    def tokens(self, number: int, spec: TokenizerSpec, *, tokenizer: str) -> BlockTokens:
        """Tokens of a sample."""
        with read_token_file(self.path / "tokens" / f"{number:05d}.tok") as file:
            file.check_tokenizer(spec, tokenizer)
            return next(tokens for _, tokens in file.tokens(UniformCodes(spec)))


def fill(
    folder: SampleFolder,
    writer: SampleWriter,
    engine: RowEngine,
    tokenizer: VideoTokenizer,
    job: Job,
    *,
    numbers: Sequence[int],
    conditions: Sequence[Mapping[str, Any]],
    batch_size: int,
    quiet: bool = False,
) -> None:
    """Sample a job into a folder: request i is sample numbers[i], with conditions[i] in its line of the index."""
    videos = stream(engine, tokenizer, job, batch_size=batch_size)
    folder.begin()
    with tqdm(total=len(numbers), desc="sampling", unit="video", disable=quiet) as bar:
        for chosen, made in videos:
            lines = []
            for row, request in enumerate(chosen):
                number, tokens = numbers[request], made.tokens[row : row + 1]
                name = writer.write(folder.path, number, made.videos[row], tokens)
                line = {"number": number, "file": name, "seed": job.requests[request].seed, **conditions[request]}
                lines.append(line | {"tokens": tokens.lengths[0].tolist()})
            folder.add(lines)
            bar.update(len(chosen))
            seconds = bar.format_dict["elapsed"]
            bar.set_postfix_str(f"{engine.tokens / max(seconds, 1e-9):,.0f} tokens/s")


def fill_by_frames(
    folder: SampleFolder,
    writer: SampleWriter,
    engine: Engine,
    tokenizer: VideoTokenizer,
    job: Job,
    *,
    numbers: Sequence[int],
    conditions: Sequence[Mapping[str, Any]],
) -> float:
    """Like `fill`, in PNG frames that are written as soon as the tokens of their block are complete; the seconds from
    the start to the first frames."""
    if writer.format != "png":
        raise ValueError(f"frames are written one by one as png, not as {writer.format}")
    parts, start, first = stream_frames(engine, tokenizer, job), time.perf_counter(), math.nan
    folder.begin()
    with tqdm(total=len(numbers), desc="sampling", unit="video") as bar:
        for part in parts:
            number = numbers[part.number]
            name = writer.write_frames(folder.path, number, part.start, part.video)
            first = time.perf_counter() - start if math.isnan(first) else first
            if part.last:
                writer.write_tokens(folder.path, number, part.start + part.video.shape[1], part.tokens)
                line = {"number": number, "file": name, "seed": job.requests[part.number].seed}
                lengths = part.tokens.lengths[0].tolist()
                folder.add([line | dict(conditions[part.number]) | {"tokens": lengths}])
                bar.update()
    return first


def contact_sheet(videos: Sequence[Tensor]) -> bytes:
    """Videos (3, T, H, W) uint8 -> a PNG with one row per video, of up to 8 evenly spaced frames."""
    rows = []
    for video in videos:
        chosen = torch.linspace(0, video.shape[1] - 1, min(8, video.shape[1])).round().long()
        frames = torch.nn.functional.pad(video[:, chosen], (0, 2, 0, 2), value=255)
        rows.append(frames.permute(0, 2, 1, 3).flatten(2))
    width = max(row.shape[2] for row in rows)
    return png(torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[2]), value=255) for row in rows], 1))


def _has_files(folder: Path) -> bool:
    """Whether there are files other than hidden ones, such as temporary files of a killed process."""
    return any(not path.name.startswith(".") for path in folder.iterdir())


def _read_index(path: Path) -> list[dict[str, Any]]:
    """Lines of an index without an incomplete last one; SampleFolderError if another line is damaged."""
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise SampleFolderError(f"{path} is damaged ({error}); delete it to sample its videos again") from None


def _write_index(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
