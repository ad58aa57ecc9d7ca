"""`genvid encode`, `decode` and `reconstruct`: videos through a tokenizer, at a token budget."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from genvid.allocation import Allocator, BudgetError, GroupAllocator, JointAllocator
from genvid.checkpoint import fingerprint, resolve
from genvid.data.clips import to_uint8
from genvid.data.token_file import (
    TokenizedVideo,
    clip_frames,
    read_clips,
    read_tokens,
    token_file_info,
    write_tokens,
)
from genvid.data.video import VideoInfo, probe, write_video
from genvid.files import write_atomically
from genvid.recipes.loading import device, load_scorer
from genvid.tokenizer import load_tokenizer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.published import published_budgets
from genvid.tokenizer.adaptok.scorer import ScorerPredictor
from genvid.tokenizer.lit.budget import BudgetedRedundancy, check_floor
from genvid.tokenizer.lit.model import LIT
from genvid.tokens import BlockTokens, VideoTokenizer

Videos = list[tuple[Path, VideoInfo]]
"""Files, and what a probe found in them."""

Budget = Callable[[int], Allocator]
"""Blocks of a clip -> the rule that cuts clips of so many blocks."""

GROUP = 64
"""Clips that share a token budget: as many as in a batch of the published evaluation."""


def encode(arguments: argparse.Namespace) -> None:
    """Videos -> one token file."""
    output = new_output(arguments.output, ".npz")
    videos: Videos = [(Path(path), probe(path)) for path in arguments.videos]
    tokenizer = open_tokenizer(arguments.tokenizer)
    allocator = open_budget(arguments, tokenizer)
    if tokenizer.spec.codebook_size is None:
        raise ValueError(f"{arguments.tokenizer} is a continuous tokenizer: it has no codes to store")
    clips = _encode(tokenizer, allocator, videos)
    tokenized = []
    for path, about in videos:
        count = len(clip_frames(about.frames, tokenizer.spec))
        tokenized.append(TokenizedVideo(path.name, about.frames, about.fps, clips[:count]))
        del clips[:count]
        print(f"{path}: {about.frames} frames, {count} clips, {tokenized[-1].num_tokens} tokens")
    write_tokens(
        output,
        tokenized,
        tokenizer=fingerprint(resolve(arguments.tokenizer)),
        codebook_size=tokenizer.spec.codebook_size,
    )


def decode(arguments: argparse.Namespace) -> None:
    """Token file -> video, or a folder of videos."""
    about = token_file_info(arguments.tokens)
    output = new_output(arguments.output, ".mp4" if about.videos == 1 else "")
    tokenizer = open_tokenizer(arguments.tokenizer)
    videos = read_tokens(arguments.tokens, tokenizer.spec, tokenizer=fingerprint(resolve(arguments.tokenizer)))
    if about.videos == 1:
        write_video(output, _decode(tokenizer, videos[0].clips)[:, : videos[0].frames], videos[0].fps)
        return
    with write_atomically(output) as folder:
        folder.mkdir()
        for number, video in enumerate(tqdm(videos, desc="decoding", unit="video")):
            pixels = _decode(tokenizer, video.clips)[:, : video.frames]
            write_video(folder / f"{number:04d}-{Path(video.name).stem}.mp4", pixels, video.fps)


def reconstruct(arguments: argparse.Namespace) -> None:
    """Video -> the video beside its reconstruction."""
    output = new_output(arguments.output, ".mp4")
    path, about = Path(arguments.video), probe(arguments.video)
    tokenizer = open_tokenizer(arguments.tokenizer)
    clips = _encode(tokenizer, open_budget(arguments, tokenizer), [(path, about)])
    original = torch.cat([to_uint8(clip) for clip in read_clips(path, about, tokenizer.spec)], 1)
    both = torch.cat([original, _decode(tokenizer, clips)], 3)
    write_video(output, both[:, : about.frames], about.fps)
    for number, clip in enumerate(clips):
        print(f"clip {number}: {int(clip.keep.sum())} tokens in blocks of {clip.lengths[0].tolist()}")


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
    tokenizer = load_tokenizer(source)
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
    return lambda _: BudgetedRedundancy(arguments.tokens, lit.metric)


@torch.no_grad()
def _encode(tokenizer: VideoTokenizer, allocator: Budget | None, videos: Videos) -> list[BlockTokens]:
    """The clips of all videos, in order, on the CPU. Clips of as many blocks share a budget in groups."""
    total = sum(len(clip_frames(about.frames, tokenizer.spec)) for _, about in videos)
    clips: list[BlockTokens] = []
    with tqdm(total=total, desc="encoding", unit="clip") as bar:
        for path, about in videos:
            for clip in read_clips(path, about, tokenizer.spec):
                tokens = tokenizer.encode(clip[None].to(device()))
                clips.append((tokens if allocator else replace(tokens, features=None)).to("cpu"))
                bar.update()
    return clips if allocator is None else _cut(clips, allocator)


def _cut(clips: list[BlockTokens], allocator: Budget) -> list[BlockTokens]:
    """Spend the budget: groups of GROUP clips of the same number of blocks, in order."""
    cut = list(clips)
    for blocks in sorted({clip.keep.shape[1] for clip in clips}):
        alike = [i for i, clip in enumerate(clips) if clip.keep.shape[1] == blocks]
        for start in range(0, len(alike), GROUP):
            group = alike[start : start + GROUP]
            tokens = allocator(blocks)(BlockTokens.concatenate([clips[i] for i in group]).to(device())).to("cpu")
            for row, i in enumerate(group):
                cut[i] = replace(tokens[row : row + 1], features=None)
    return cut


def _decode(tokenizer: VideoTokenizer, clips: list[BlockTokens]) -> Tensor:
    """Consecutive clips -> (3, T, H, W) uint8."""
    return torch.cat([to_uint8(tokenizer.decode(clip.to(device()))[0]).cpu() for clip in clips], 1)
