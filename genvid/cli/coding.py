"""`genvid encode`, `decode` and `reconstruct`: videos through a tokenizer, at a token budget."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from genvid.allocation import Allocator, Budget
from genvid.allocation.budget import budget_groups
from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.data.clips import read_clips, to_uint8
from genvid.data.video import VideoInfo, probe, video_writer
from genvid.device import device
from genvid.files import readable, sha256
from genvid.pieces import Pieces
from genvid.tokenizer.budgets import token_budget
from genvid.tokens import BlockTokens, TokenizerSpec, VideoTokenizer
from genvid.tokens.blocks import clip_frames
from genvid.tokens.file import (
    KeptCodes,
    TokenizedVideo,
    read_tokens,
    token_file_info,
    write_tokens,
)

Videos = list[tuple[Path, VideoInfo]]
"""Files, with their probed properties."""


@dataclass(frozen=True)
class BudgetOptions:
    """Tokens that are kept of a video; by default all."""

    tokens: int | None = None
    """AdapTok: mean tokens of a clip of full length (needs --scorer). LIT: tokens of each clip, in `reconstruct` of the
    video."""
    scorer: str | None = None
    """Scorer of the AdapTok tokenizer: model folder or Hub id."""
    published: bool = False
    """Share --tokens among the blocks of a clip as the published evaluation of AdapTok does."""

    def __bool__(self) -> bool:
        return self != BudgetOptions()

    def build(self, tokenizer: VideoTokenizer) -> Budget | None:
        """The budget, checked against the tokenizer; None: all tokens are kept."""
        if not self:
            return None
        return token_budget(tokenizer, self.tokens, self.scorer, published=self.published)


@dataclass(frozen=True)
class EncodeOptions:
    """Options of `encode`."""

    videos: tuple[Path, ...]
    """Video files."""
    output: Path
    """New token file (.npz)."""
    _: KW_ONLY
    tokenizer: str
    """Model folder or Hub id."""
    budget: BudgetOptions = field(default_factory=BudgetOptions)


@dataclass(frozen=True)
class DecodeOptions:
    """Options of `decode`."""

    tokens: Path
    """Token file (.npz)."""
    output: Path
    """New video (.mp4), or new folder if the token file holds several videos."""
    _: KW_ONLY
    tokenizer: str
    """Model folder or Hub id of the tokenizer that encoded the videos."""


@dataclass(frozen=True)
class ReconstructOptions:
    """Options of `reconstruct`."""

    video: Path
    """Video file."""
    output: Path
    """New video (.mp4): the original on the left, the reconstruction on the right."""
    _: KW_ONLY
    tokenizer: str
    """Model folder or Hub id."""
    budget: BudgetOptions = field(default_factory=BudgetOptions)


def encode(options: EncodeOptions) -> None:
    """Encode videos into one token file.

    Finished groups of clips lie beside it until all are finished, so the same command resumes after an interruption.
    """
    output = new_output(options.output, ".npz")
    videos: Videos = [(path, probe(path)) for path in options.videos]
    tokenizer = open_tokenizer(options.tokenizer)
    budget = options.budget.build(tokenizer)
    if tokenizer.spec.codebook_size is None:
        raise ValueError(
            f"{options.tokenizer} is a continuous tokenizer, which has no codes to store: give a discrete one"
        )
    scorer, made_by = options.budget.scorer, fingerprint(resolve(options.tokenizer))
    about = {
        "tokenizer": made_by,
        "scorer": scorer and fingerprint(resolve(scorer)),
        "tokens": options.budget.tokens,
        "published": options.budget.published,
        "videos": {f"{number} {readable(path.name)}": sha256(path)[:16] for number, (path, _) in enumerate(videos)},
    }
    pieces = Pieces(f"{output}.unfinished", about)
    tokenized = _encode(tokenizer, budget, videos, pieces)
    write_tokens(output, tokenized, tokenizer=made_by, codebook_size=tokenizer.spec.codebook_size)
    pieces.remove()
    for (path, found), video in zip(videos, tokenized, strict=True):
        print(f"{readable(path)}: {found.frames} frames, {len(video.clips)} clips, {video.num_tokens} tokens")


def decode(options: DecodeOptions) -> None:
    """Decode a token file into a video, or into a folder of videos.

    The same command resumes a folder after an interruption: finished videos are not decoded again.
    """
    found = token_file_info(options.tokens)
    output = new_output(options.output, ".mp4" if found.videos == 1 else "")
    tokenizer, made_by = open_tokenizer(options.tokenizer), fingerprint(resolve(options.tokenizer))
    videos = read_tokens(options.tokens, tokenizer.spec, tokenizer=made_by)
    with tqdm(total=sum(len(video.clips) for video in videos), desc="decoding", unit="clip") as bar:
        if found.videos == 1:
            _print_restart(output)
            _decode(tokenizer, videos[0], output, bar)
            return
        pieces = Pieces(f"{output}.unfinished", {"tokenizer": made_by, "tokens": sha256(options.tokens)[:16]})
        for number, video in enumerate(videos):
            file = pieces.folder / f"{number:04d}-{Path(video.name).stem}.mp4"
            if file.exists():
                bar.update(len(video.clips))
            else:
                _decode(tokenizer, video, file, bar)
        pieces.become(output)


@torch.no_grad()
def reconstruct(options: ReconstructOptions) -> None:
    """Write a video beside its reconstruction."""
    output = new_output(options.output, ".mp4")
    path, found = options.video, probe(options.video)
    tokenizer = open_tokenizer(options.tokenizer)
    blocks = _clip_blocks([(path, found)], tokenizer.spec)
    budget = options.budget.build(tokenizer)
    allocators: list[tuple[int, Allocator | None]] = [(1, None)] * len(blocks)
    if budget is not None:
        allocators = [*budget.video_allocators(blocks)]
    if tokenizer.spec.max_blocks is None and len(blocks) > 1:
        parts = f"{len(blocks)} clips of at most {max(blocks)}, each by itself"
        print(f"{readable(path)}: {sum(blocks)} blocks, coded in {parts}")
    _print_restart(output)
    clips, left, number = read_clips(path, found, tokenizer.spec), found.frames, 0
    with video_writer(output, found.fps) as append, tqdm(total=len(blocks), desc="coding", unit="clip") as bar:
        for size, allocator in allocators:
            group = list(islice(clips, size))
            tokens = _cut([_encode_clip(tokenizer, clip, allocator) for clip in group], allocator)
            for row, clip in enumerate(group):
                both = torch.cat([to_uint8(clip), _pixels(tokenizer, tokens[row : row + 1])], 3)[:, :left]
                append(both)
                left -= both.shape[1]
                bar.write(f"clip {number}: {_described(tokens[row : row + 1])}", file=sys.stdout)
                number += 1
                bar.update()


def new_output(output: Path, suffix: str) -> Path:
    """The output, checked: a file of this suffix that does not exist, or without a suffix an empty or absent folder."""
    if output.suffix != suffix:
        wanted = f"a {suffix} file" if suffix else "a folder"
        raise ValueError(f"the output must be {wanted}, got {output}")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"cannot write {output}: {above} is not a folder that can be written to")
    if output.exists() and (suffix or not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists already; choose another output or remove it first")
    return output


def open_tokenizer(source: str) -> VideoTokenizer:
    """Load a tokenizer onto the device of this process."""
    tokenizer = load_model(source, VideoTokenizer)
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer.to(device())
    return tokenizer


def _clip_blocks(videos: Videos, spec: TokenizerSpec) -> list[int]:
    """Blocks of every clip of all videos, in order."""
    return [spec.num_blocks(spec.filled(n)) for _, found in videos for n in clip_frames(found.frames, spec)]


@torch.no_grad()
def _encode(tokenizer: VideoTokenizer, budget: Budget | None, videos: Videos, pieces: Pieces) -> list[TokenizedVideo]:
    """All videos. Memory holds the kept codes, and the complete clips of unfinished groups."""
    spec = tokenizer.spec
    blocks = _clip_blocks(videos, spec)
    groups = budget_groups(blocks)
    group_of = {clip: number for number, group in enumerate(groups) for clip in group}
    waiting = defaultdict[int, list[BlockTokens]](list)
    clips = (clip for path, found in videos for clip in read_clips(path, found, spec))
    for clip, video in enumerate(tqdm(clips, total=len(blocks), desc="encoding", unit="clip")):
        number = group_of[clip]
        if str(number) in pieces:
            continue
        allocator = None if budget is None else budget.allocator(blocks[clip])
        waiting[number].append(_encode_clip(tokenizer, video, allocator))
        if len(waiting[number]) == len(groups[number]):
            tokens = _cut(waiting.pop(number), allocator)
            assert tokens.codes is not None
            pieces.save(str(number), {"codes": tokens.codes[tokens.keep].int(), "lengths": tokens.lengths.int()})
    return list(_collect(videos, spec, groups, pieces))


def _collect(videos: Videos, spec: TokenizerSpec, groups: list[list[int]], pieces: Pieces) -> Iterator[TokenizedVideo]:
    """The videos, joined from the pieces of all groups."""
    stored = np.uint16 if (spec.codebook_size or 0) <= 2**16 else np.int32
    codes, lengths = dict[int, NDArray[Any]](), dict[int, NDArray[Any]]()
    for number, group in enumerate(groups):
        piece = pieces.load(str(number))
        kept = torch.split(piece["codes"], piece["lengths"].sum(1).tolist())
        codes |= zip(group, (part.numpy().astype(stored) for part in kept), strict=True)
        lengths |= zip(group, piece["lengths"].numpy(), strict=True)
    first = 0
    for path, found in videos:
        own = range(first, first + len(clip_frames(found.frames, spec)))
        its_codes = np.concatenate([codes.pop(clip) for clip in own])
        its_lengths = [lengths.pop(clip) for clip in own]
        blocks = [len(clip) for clip in its_lengths]
        kept_codes = KeptCodes(its_codes, np.concatenate(its_lengths), blocks, spec.block_capacity)
        yield TokenizedVideo(readable(path.name), found.frames, found.fps, kept_codes)
        first += len(own)


def _encode_clip(tokenizer: VideoTokenizer, clip: Tensor, allocator: Allocator | None) -> BlockTokens:
    """(3, T, H, W) on the CPU -> its tokens on the CPU, with the features that an allocator reads."""
    tokens = tokenizer.encode(clip[None].to(device()))
    return (tokens if allocator else replace(tokens, features=None)).to("cpu")


def _cut(clips: list[BlockTokens], allocator: Allocator | None) -> BlockTokens:
    """Join clips that share a budget, cut them and drop their features."""
    tokens = BlockTokens.concatenate(clips)
    return tokens if allocator is None else replace(allocator(tokens.to(device())).to("cpu"), features=None)


def _decode(tokenizer: VideoTokenizer, video: TokenizedVideo, file: Path, bar: tqdm[NoReturn]) -> None:
    """Write a video clip by clip."""
    left = video.frames
    with video_writer(file, video.fps) as append:
        for clip in video.clips:
            pixels = _pixels(tokenizer, clip)[:, :left]
            append(pixels)
            left -= pixels.shape[1]
            bar.update()


def _pixels(tokenizer: VideoTokenizer, tokens: BlockTokens) -> Tensor:
    """Tokens of a clip -> (3, T, H, W) uint8."""
    return to_uint8(tokenizer.decode(tokens.to(device()))[0]).cpu()


def _described(clip: BlockTokens) -> str:
    return f"{int(clip.keep.sum())} tokens in blocks of {clip.lengths[0].tolist()}"


def _print_restart(output: Path) -> None:
    print(f"{readable(output)} is written in one piece: after an interruption the same command starts again")
