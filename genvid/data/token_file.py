"""Token files: whole videos as the kept codes of their clips, in one .npz, for the tokenizer that made them.

A video is cut into consecutive clips of as many blocks as the tokenizer holds. Where it ends within a block, its last
frame was repeated to fill the block, and decoding leaves those frames out.

codes      kept codes of all blocks of all videos, one after another: uint16, or int32 for large codebooks
lengths    kept codes of each block
names, frames, fps      of each video
tokenizer  fingerprint of the tokenizer's model folder
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genvid.data.clips import ClipConfig, to_float
from genvid.data.video import VideoInfo, read_clip
from genvid.files import write_atomically
from genvid.provenance import check_made_from
from genvid.tokens import BlockTokens, TokenizerSpec


class TokenFileError(ValueError):
    """A token file that cannot be read or written, said in one sentence."""


@dataclass(frozen=True)
class TokenizedVideo:
    """A video as tokens."""

    name: str
    frames: int
    fps: float
    clips: list[BlockTokens]
    """Consecutive clips, each a BlockTokens of one video."""

    @property
    def num_tokens(self) -> int:
        """Kept tokens of all clips."""
        return sum(int(clip.keep.sum()) for clip in self.clips)


@dataclass(frozen=True)
class TokenFileInfo:
    """What stands in a token file, without the tokenizer that could decode it."""

    tokenizer: str
    videos: int
    frames: int
    blocks: int
    tokens: int


def clip_frames(frames: int, spec: TokenizerSpec) -> list[int]:
    """Frames of each of the consecutive clips that a video is cut into."""
    longest = frames if spec.max_blocks is None else spec.max_blocks * spec.frames_per_block
    return [min(longest, frames - start) for start in range(0, frames, longest)]


def read_clips(path: str | Path, info: VideoInfo, spec: TokenizerSpec) -> Iterator[Tensor]:
    """The consecutive clips (3, T, H, W) of a video file, in [-1, 1], resized and centre-cropped for the tokenizer."""
    start = 0
    for frames in clip_frames(info.frames, spec):
        whole = ClipConfig(frames=frames, resolution=spec.resolution)
        clip = whole.fit(torch.from_numpy(read_clip(path, start, frames, info=info)), seed=0)
        repeats = spec.filled(frames) - frames
        yield to_float(torch.cat([clip, clip[:, -1:].expand(-1, repeats, -1, -1)], 1))
        start += frames


def write_tokens(path: str | Path, videos: Sequence[TokenizedVideo], *, tokenizer: str, codebook_size: int) -> None:
    """Write a token file. `tokenizer` is the fingerprint of its model folder."""
    clips = [clip for video in videos for clip in video.clips]
    kept = [clip.codes[clip.keep] for clip in clips if clip.codes is not None]
    if len(kept) < len(clips):
        raise TokenFileError("a token file holds codes; a continuous tokenizer has none")
    with write_atomically(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            codes=torch.cat(kept).cpu().numpy().astype(np.uint16 if codebook_size <= 2**16 else np.int32),
            lengths=torch.cat([clip.lengths.flatten() for clip in clips]).cpu().numpy().astype(np.int32),
            names=np.array([video.name for video in videos]),
            frames=np.array([video.frames for video in videos]),
            fps=np.array([video.fps for video in videos]),
            tokenizer=np.array(tokenizer),
        )


def read_tokens(path: str | Path, spec: TokenizerSpec, *, tokenizer: str) -> list[TokenizedVideo]:
    """Read a token file that the tokenizer of this spec and fingerprint made; ProvenanceError for any other."""
    data = _load(path)
    way_out = "decode with the tokenizer that it was encoded with"
    check_made_from(path, {"tokenizer": str(data["tokenizer"])}, {"tokenizer": tokenizer}, way_out)
    blocks = [
        [-(-frames // spec.frames_per_block) for frames in clip_frames(int(total), spec)] for total in data["frames"]
    ]
    lengths = torch.from_numpy(data["lengths"].astype(np.int64))
    codes = torch.from_numpy(data["codes"].astype(np.int64))
    if sum(map(sum, blocks)) != len(lengths) or int(lengths.sum()) != len(codes):
        raise TokenFileError(f"{path} contradicts itself on its number of blocks or codes; make it again")
    parts = iter(torch.split(lengths, [count for clips in blocks for count in clips]))
    rest = iter(torch.split(codes, lengths.tolist()))
    return [
        TokenizedVideo(
            str(name), int(frames), float(fps), [_clip(next(parts), rest, spec.block_capacity) for _ in clips]
        )
        for name, frames, fps, clips in zip(data["names"], data["frames"], data["fps"], blocks, strict=True)
    ]


def token_file_info(path: str | Path) -> TokenFileInfo:
    """What stands in a token file."""
    data = _load(path)
    return TokenFileInfo(
        str(data["tokenizer"]), len(data["names"]), int(data["frames"].sum()), len(data["lengths"]), len(data["codes"])
    )


def _clip(lengths: Tensor, codes: Iterator[Tensor], capacity: int) -> BlockTokens:
    """(G,) lengths, and the codes of block after block -> tokens of one clip."""
    if int(lengths.max()) > capacity:
        raise TokenFileError(f"a block of {int(lengths.max())} tokens exceeds the tokenizer's {capacity}")
    padded = torch.zeros(1, len(lengths), capacity, dtype=torch.int64)
    for block, length in enumerate(lengths.tolist()):
        padded[0, block, :length] = next(codes)
    return BlockTokens(keep=torch.arange(capacity) < lengths[None, :, None], codes=padded)


def _load(path: str | Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            data = {name: stored[name] for name in stored}
    except FileNotFoundError:
        raise TokenFileError(f"no token file {path}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise TokenFileError(f"{path} is not a token file, or is damaged ({error})") from None
    missing = {"codes", "lengths", "names", "frames", "fps", "tokenizer"} - data.keys()
    if missing:
        raise TokenFileError(f"{path} is not a token file: it lacks {', '.join(sorted(missing))}")
    return data
