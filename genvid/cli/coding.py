"""`genvid encode`, `decode` and `reconstruct`: videos through a tokenizer, at a token budget."""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from genvid.allocation import Allocator, BudgetError, GroupAllocator, JointAllocator
from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.data.clips import read_clips, to_uint8
from genvid.data.video import VideoInfo, probe, video_writer
from genvid.device import device
from genvid.files import readable, sha256
from genvid.pieces import Pieces
from genvid.tokenizer.adaptok.loading import load_scorer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.published import published_budgets
from genvid.tokenizer.adaptok.scorer import ScorerPredictor
from genvid.tokenizer.lit.budget import BudgetAllocator, check_floor
from genvid.tokenizer.lit.model import LIT
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
"""Files, and what a probe found in them."""

Budget = Callable[[int], Allocator]
"""Blocks of a clip -> the rule that cuts clips of so many blocks."""

GROUP = 64
"""Clips that share a token budget: as many as in a batch of the published evaluation."""


def encode(arguments: argparse.Namespace) -> None:
    """Videos -> one token file. Groups of clips that were cut lie beside it until all are: the same command goes on."""
    output = new_output(arguments.output, ".npz")
    videos: Videos = [(Path(path), probe(path)) for path in arguments.videos]
    tokenizer = open_tokenizer(arguments.tokenizer)
    budget = open_budget(arguments, tokenizer)
    if tokenizer.spec.codebook_size is None:
        raise ValueError(f"{arguments.tokenizer} is a continuous tokenizer: it has no codes to store")
    about = {
        "tokenizer": fingerprint(resolve(arguments.tokenizer)),
        "scorer": arguments.scorer and fingerprint(resolve(arguments.scorer)),
        "tokens": arguments.tokens,
        "published": arguments.published,
        "videos": {f"{number} {readable(path.name)}": sha256(path)[:16] for number, (path, _) in enumerate(videos)},
    }
    pieces = Pieces(f"{output}.unfinished", about)
    tokenized = _encode(tokenizer, budget, videos, pieces)
    write_tokens(output, tokenized, tokenizer=about["tokenizer"], codebook_size=tokenizer.spec.codebook_size)
    pieces.remove()
    for (path, found), video in zip(videos, tokenized, strict=True):
        print(f"{readable(path)}: {found.frames} frames, {len(video.clips)} clips, {video.num_tokens} tokens")


def decode(arguments: argparse.Namespace) -> None:
    """Token file -> video, or a folder of videos, of which those that are whole are not decoded again."""
    found = token_file_info(arguments.tokens)
    output = new_output(arguments.output, ".mp4" if found.videos == 1 else "")
    tokenizer, made_by = open_tokenizer(arguments.tokenizer), fingerprint(resolve(arguments.tokenizer))
    videos = read_tokens(arguments.tokens, tokenizer.spec, tokenizer=made_by)
    with tqdm(total=sum(len(video.clips) for video in videos), desc="decoding", unit="clip") as bar:
        if found.videos == 1:
            _say_it_begins_anew(output)
            _decode(tokenizer, videos[0], output, bar)
            return
        pieces = Pieces(f"{output}.unfinished", {"tokenizer": made_by, "tokens": sha256(Path(arguments.tokens))[:16]})
        for number, video in enumerate(videos):
            file = pieces.folder / f"{number:04d}-{Path(video.name).stem}.mp4"
            if file.exists():
                bar.update(len(video.clips))
            else:
                _decode(tokenizer, video, file, bar)
        pieces.become(output)


@torch.no_grad()
def reconstruct(arguments: argparse.Namespace) -> None:
    """Video -> the video beside its reconstruction."""
    output = new_output(arguments.output, ".mp4")
    path, found = Path(arguments.video), probe(arguments.video)
    tokenizer = open_tokenizer(arguments.tokenizer)
    blocks = _clip_blocks([(path, found)], tokenizer.spec)
    rules = _rules(arguments, tokenizer, blocks)
    if tokenizer.spec.max_blocks is None and len(blocks) > 1:
        parts = f"{len(blocks)} clips of at most {max(blocks)}, each by itself"
        print(f"{readable(path)}: {sum(blocks)} blocks, coded in {parts}")
    _say_it_begins_anew(output)
    clips, left, number = read_clips(path, found, tokenizer.spec), found.frames, 0
    with video_writer(output, found.fps) as append, tqdm(total=len(blocks), desc="coding", unit="clip") as bar:
        for size, rule in rules:
            group = list(islice(clips, size))
            tokens = _cut([_encode_clip(tokenizer, clip, rule) for clip in group], rule)
            for row, clip in enumerate(group):
                both = torch.cat([to_uint8(clip), _pixels(tokenizer, tokens[row : row + 1])], 3)[:, :left]
                append(both)
                left -= both.shape[1]
                bar.write(f"clip {number}: {_described(tokens[row : row + 1])}", file=sys.stdout)
                number += 1
                bar.update()


def new_output(path: str, suffix: str) -> Path:
    """An output that is not there yet; without a suffix, a folder that may be there but must be empty."""
    output = Path(path)
    if output.suffix != suffix:
        wanted = f"a {suffix} file" if suffix else "a folder"
        raise ValueError(f"the output is {wanted}, not {output}")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"cannot write {output}: {above} is not a folder that can be written to")
    if output.exists() and (suffix or not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists already; choose another output or remove it first")
    return output


def open_tokenizer(source: str) -> VideoTokenizer:
    tokenizer = load_model(source, VideoTokenizer)
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer.to(device())
    return tokenizer


def open_budget(arguments: argparse.Namespace, tokenizer: VideoTokenizer) -> Budget | None:
    """The rule that cuts clips of so many blocks, if a budget is asked for."""
    if arguments.scorer is None and arguments.tokens is None and not arguments.published:
        return None
    if isinstance(tokenizer, LIT):
        return _redundancy(arguments, tokenizer)
    if arguments.scorer is None or arguments.tokens is None:
        raise ValueError("a token budget needs both --scorer and --tokens")
    if not isinstance(tokenizer, AdapTok):
        raise ValueError(f"{arguments.tokenizer} has no scorer: only AdapTok tokenizers have one")
    predictor = ScorerPredictor(tokenizer, load_scorer(arguments.scorer, tokenizer).to(device()))
    most, tokens = tokenizer.config.grid[0], arguments.tokens
    if arguments.published:
        budgets = published_budgets(tokenizer.spec.block_capacity, tokens)
        if len(budgets) != most:
            raise ValueError(f"the published budgets are for {len(budgets)} blocks, this tokenizer has {most}")
        return lambda blocks: GroupAllocator(predictor, budgets[:blocks], GROUP, exact=True)
    least = most * int(predictor.sizes[0])
    if tokens < least:  # said now, not after encoding
        raise BudgetError(f"{tokens} tokens are too few for a clip of {most} blocks, which take at least {least}")
    return lambda blocks: JointAllocator(predictor, tokens * blocks / most, GROUP)


def _redundancy(arguments: argparse.Namespace, lit: LIT) -> Budget:
    if arguments.scorer is not None or arguments.published:
        raise ValueError(f"{arguments.tokenizer} is LIT, which needs no scorer: give --tokens alone")
    check_floor(arguments.tokens, lit.spec.block_capacity)
    return lambda _: BudgetAllocator(arguments.tokens, lit.metric)


def _rules(
    arguments: argparse.Namespace, tokenizer: VideoTokenizer, blocks: list[int]
) -> list[tuple[int, Allocator | None]]:
    """How many consecutive clips of a video, with so many `blocks` each, are cut at once, and the rule that does it."""
    budget = open_budget(arguments, tokenizer)
    if budget is None:
        return [(1, None)] * len(blocks)
    if isinstance(tokenizer, LIT):
        shares = clip_budgets(arguments.tokens, blocks, tokenizer.spec.block_capacity)
        return [(1, BudgetAllocator(share, tokenizer.metric)) for share in shares]
    return [(len(group), budget(blocks[group[0]])) for group in _groups(blocks)]


def clip_budgets(tokens: int, blocks: list[int], floor: int) -> list[int]:
    """Tokens of a video -> of each of its clips, which takes at least `floor`: the rest in proportion to its blocks."""
    rest, ends = tokens - floor * len(blocks), [0, *accumulate(blocks)]
    if rest < 0:
        raise BudgetError(
            f"{tokens} tokens are too few for a video of {len(blocks)} clips, which take at least "
            f"{floor * len(blocks)}: the first block of each is kept whole"
        )
    return [floor + rest * end // ends[-1] - rest * start // ends[-1] for start, end in pairwise(ends)]


def _clip_blocks(videos: Videos, spec: TokenizerSpec) -> list[int]:
    """Blocks of every clip of all videos, in order."""
    return [spec.num_blocks(spec.filled(n)) for _, found in videos for n in clip_frames(found.frames, spec)]


def _groups(blocks: list[int]) -> list[list[int]]:
    """Clips that share a budget: GROUP of the same number of `blocks`, in order."""
    alike = defaultdict[int, list[int]](list)
    for clip, count in enumerate(blocks):
        alike[count].append(clip)
    return [clips[start : start + GROUP] for clips in alike.values() for start in range(0, len(clips), GROUP)]


@torch.no_grad()
def _encode(tokenizer: VideoTokenizer, budget: Budget | None, videos: Videos, pieces: Pieces) -> list[TokenizedVideo]:
    """All videos; in memory are the kept codes, and whole clips of groups that are not complete."""
    spec = tokenizer.spec
    blocks = _clip_blocks(videos, spec)
    groups = _groups(blocks)
    group_of = {clip: number for number, group in enumerate(groups) for clip in group}
    waiting = defaultdict[int, list[BlockTokens]](list)
    clips = (clip for path, found in videos for clip in read_clips(path, found, spec))
    for clip, video in enumerate(tqdm(clips, total=len(blocks), desc="encoding", unit="clip")):
        number = group_of[clip]
        if str(number) in pieces:
            continue
        rule = budget and budget(blocks[clip])
        waiting[number].append(_encode_clip(tokenizer, video, rule))
        if len(waiting[number]) == len(groups[number]):
            tokens = _cut(waiting.pop(number), rule)
            assert tokens.codes is not None
            pieces.save(str(number), {"codes": tokens.codes[tokens.keep].int(), "lengths": tokens.lengths.int()})
    return list(_collect(videos, spec, groups, pieces))


def _collect(videos: Videos, spec: TokenizerSpec, groups: list[list[int]], pieces: Pieces) -> Iterator[TokenizedVideo]:
    """The videos, of the pieces of all groups."""
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


def _encode_clip(tokenizer: VideoTokenizer, clip: Tensor, rule: Allocator | None) -> BlockTokens:
    """A clip (3, T, H, W) on the CPU; with its features where a rule is to cut it."""
    tokens = tokenizer.encode(clip[None].to(device()))
    return (tokens if rule else replace(tokens, features=None)).to("cpu")


def _cut(clips: list[BlockTokens], rule: Allocator | None) -> BlockTokens:
    """Clips that share a budget, cut and without their features."""
    tokens = BlockTokens.concatenate(clips)
    return tokens if rule is None else replace(rule(tokens.to(device())).to("cpu"), features=None)


def _decode(tokenizer: VideoTokenizer, video: TokenizedVideo, file: Path, bar: tqdm[NoReturn]) -> None:
    """Write a video, clip by clip."""
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


def _say_it_begins_anew(output: Path) -> None:
    print(f"{readable(output)} is written in one piece: after an interruption the same command begins anew")
