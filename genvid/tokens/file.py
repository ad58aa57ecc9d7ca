"""Token files: whole videos as the kept codes of their clips, in one .npz, for the tokenizer that made them.

A video is cut into consecutive clips of `TokenizerSpec.max_blocks` blocks, or of `LONGEST_CLIP` for a tokenizer without
a limit. Where it ends within a block, its last frame is repeated to fill the block, and decoding leaves these frames
out. Reading and writing hold the kept codes in memory and nothing else.

codes      kept codes of all blocks of all videos, one after another: uint16, or int32 for large codebooks
lengths    kept codes of each block
names, frames, fps      of each video
tokenizer  fingerprint of the tokenizer's model folder
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genvid.files import write_atomically
from genvid.provenance import check_made_from
from genvid.tokens.blocks import BlockTokens, TokenizerSpec, clip_frames


class TokenFileError(ValueError):
    """A token file that cannot be read or written."""


@dataclass(frozen=True)
class TokenizedVideo:
    """A video as tokens."""

    name: str
    frames: int
    fps: float
    clips: Sequence[BlockTokens]
    """Consecutive clips, each a BlockTokens of one video."""

    @property
    def num_tokens(self) -> int:
        """Kept tokens of all clips."""
        return sum(int(clip.keep.sum()) for clip in self.clips)


@dataclass(frozen=True)
class TokenFileInfo:
    """Contents of a token file, counted without its tokenizer."""

    tokenizer: str
    videos: int
    frames: int
    blocks: int
    tokens: int


class KeptCodes(Sequence[BlockTokens]):
    """Consecutive clips by the codes that they keep: two to four bytes a token, where whole blocks take nine a slot."""

    def __init__(self, codes: NDArray[Any], lengths: NDArray[Any], blocks: Sequence[int], capacity: int) -> None:
        """Kept codes (N,) and their number in each block, one block after another; `blocks` of each clip."""
        self._codes, self._lengths, self._capacity = codes, lengths, capacity
        self._blocks = [0, *accumulate(blocks)]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self._blocks) - 1

    def __getitem__(self, clip: int) -> BlockTokens:  # type: ignore[override]
        first, end = self._blocks[clip], self._blocks[clip + 1]  # IndexError ends an iteration
        lengths = torch.from_numpy(self._lengths[first:end].astype(np.int64))
        keep = torch.arange(self._capacity) < lengths[None, :, None]
        codes = torch.zeros(keep.shape, dtype=torch.int64)
        codes[keep] = torch.from_numpy(self._codes[self._starts[first] : self._starts[end]].astype(np.int64))
        return BlockTokens(keep=keep, codes=codes)


def write_tokens(path: str | Path, videos: Sequence[TokenizedVideo], *, tokenizer: str, codebook_size: int) -> None:
    """Write a token file. `tokenizer` is the fingerprint of the tokenizer's model folder."""
    stored = np.uint16 if codebook_size <= 2**16 else np.int32
    codes, lengths = [], []
    for clip in (clip for video in videos for clip in video.clips):
        if clip.codes is None:
            raise TokenFileError("a token file holds codes; a continuous tokenizer has none")
        codes.append(clip.codes[clip.keep].cpu().numpy().astype(stored))
        lengths.append(clip.lengths.flatten().cpu().numpy().astype(np.int32))
    with write_atomically(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            codes=np.concatenate(codes),
            lengths=np.concatenate(lengths),
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
    lengths, codes = data["lengths"], data["codes"]
    blocks = [
        [-(-frames // spec.frames_per_block) for frames in clip_frames(int(total), spec)] for total in data["frames"]
    ]
    if sum(map(sum, blocks)) != len(lengths) or int(lengths.sum()) != len(codes):
        raise TokenFileError(f"{path} contradicts itself on its number of blocks or codes; make it again")
    if int(lengths.max()) > spec.block_capacity:
        raise TokenFileError(f"a block of {int(lengths.max())} tokens exceeds the tokenizer's {spec.block_capacity}")
    videos = []
    for name, frames, fps, own in zip(data["names"], data["frames"], data["fps"], blocks, strict=True):
        its_lengths, lengths = np.split(lengths, [sum(own)])
        its_codes, codes = np.split(codes, [int(its_lengths.sum())])
        clips = KeptCodes(its_codes, its_lengths, own, spec.block_capacity)
        videos.append(TokenizedVideo(str(name), int(frames), float(fps), clips))
    return videos


def token_file_info(path: str | Path) -> TokenFileInfo:
    """Counts of a token file, and the fingerprint of its tokenizer."""
    data = _load(path)
    return TokenFileInfo(
        str(data["tokenizer"]), len(data["names"]), int(data["frames"].sum()), len(data["lengths"]), len(data["codes"])
    )


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
