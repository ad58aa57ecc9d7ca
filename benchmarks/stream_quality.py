"""PSNR of a tokenizer of rotary geometry on real videos: python benchmarks/stream_quality.py VIDEOS

Three tables, each from the videos of the folder that it can use, with equally many tokens in every block (`--tokens` of
a block at the trained size):

* length: the first `--frames` frames as one stream, beside clips of 16 frames coded one by one, and the change from one
  frame to the next across the former borders of clips, across those of blocks and inside blocks;
* sizes: the first 16 frames of videos that need not be enlarged, at sizes inside and outside the bounds of the
  tokenizer, with tokens in proportion to the area;
* pictures: the last frame of 16 as a picture, beside the same frame in its video.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from genvid.checkpoint import load_model
from genvid.data.clips import ClipConfig, to_float
from genvid.data.video import VideoError, VideoInfo, probe, read_clip
from genvid.device import device
from genvid.tokenizer.adaptok.config import RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokens import TokenizerSpec
from genvid.tokens.frame_blocks import repeat_last

CLIP = 16
"""Frames."""
SUFFIXES = {".mp4", ".avi", ".mkv", ".webm", ".mov"}
SIZES = (
    *((96, 96), (112, 112), (128, 128), (144, 144), (160, 160), (96, 128), (128, 96), (120, 160), (160, 120)),
    *((64, 64), (80, 80), (192, 192), (240, 240), (96, 160), (80, 160)),
)
Video = tuple[Path, VideoInfo]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("videos", type=Path, help="folder")
    parser.add_argument("--tokenizer", default="genvid-tiny")
    parser.add_argument("--tokens", type=int, default=128, help="of a block at the trained size")
    parser.add_argument("--frames", type=int, default=300, help="of the streams")
    parser.add_argument("--most", type=int, default=16, help="videos of a table")
    options = parser.parse_args()
    tokenizer = load_model(options.tokenizer, AdapTok).to(device())
    if tokenizer.window is None:
        raise SystemExit(f"{options.tokenizer} has absolute geometry: give a tokenizer of rotary geometry")
    found = [video for video in videos(options.videos) if video[1].frames >= CLIP]
    long = [video for video in found if video[1].frames >= options.frames]
    large = [video for video in found if min(video[1].height, video[1].width) >= max(map(max, SIZES))]
    if long:
        length(tokenizer, options.tokens, long[: options.most], options.frames)
    if large:
        sizes(tokenizer, options.tokens, large[: options.most])
    if found:
        pictures(tokenizer, options.tokens, found[: options.most])


def videos(folder: Path) -> list[Video]:
    """Those that can be read, in the order of their names."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
        try:
            found.append((path, probe(path)))
        except VideoError as error:
            print(error)
    return found


def clip(video: Video, frames: int, resolution: tuple[int, int]) -> Tensor:
    """(1, 3, T, H, W): the first frames."""
    path, info = video
    rule = ClipConfig(frames=frames, resolution=resolution)
    return to_float(rule.fit(torch.from_numpy(read_clip(path, 0, frames, info=info)), seed=0))[None].to(device())


def coded(tokenizer: AdapTok, video: Tensor, tokens: int) -> Tensor:
    """The reconstruction with so many tokens of every block, in [-1, 1]; the last frame fills the last block."""
    frames = video.shape[2]
    whole = tokenizer.encode(repeat_last(video, tokenizer.spec.filled(frames) - frames))
    return tokenizer.decode(whole.tail_drop(torch.full_like(whole.lengths, tokens)))[:, :, :frames].clamp(-1, 1)


def psnr(one: Tensor, other: Tensor, frames: int) -> Tensor:
    """(1, 3, T, H, W) -> (T / frames,) dB of each run of so many frames."""
    errors = ((one - other) / 2).square().mean((0, 1, 3, 4)).view(-1, frames).mean(1)
    return -10 * errors.log10()


def length(tokenizer: AdapTok, tokens: int, chosen: list[Video], frames: int) -> None:
    """Distortion by block, and changes between frames."""
    per_block = tokenizer.spec.frames_per_block
    blocks, by_block, changes = frames // per_block, list[Tensor](), list[Tensor]()
    for video in chosen:
        real = clip(video, blocks * per_block, tokenizer.resolution)
        alone = torch.cat([coded(tokenizer, part, tokens) for part in torch.split(real, CLIP, 2)], 2)
        made = coded(tokenizer, real, tokens), alone
        by_block.append(torch.stack([psnr(again, real, per_block) for again in made]))
        changes.append(torch.stack([change(again, tokenizer.spec) for again in (real, *made)]))
    print(f"\nPSNR in dB by {per_block} frames: {len(chosen)} videos of {frames} frames, {tokens} tokens a block")
    per_clip, index = CLIP // per_block, range(blocks)
    groups = {f"{i} of each clip": index[i::per_clip] for i in range(per_clip)}
    bounds = (0, per_clip, 4 * per_clip, max(4 * per_clip, blocks // 2), blocks)
    groups |= {f"{start} to {end - 1}": index[start:end] for start, end in pairwise(bounds) if index[start:end]}
    quality = torch.stack(by_block).mean(0)
    for name, group in (groups | {"all": index}).items():
        stream, clips = quality[:, list(group)].mean(1).tolist()
        print(f"blocks {name:16} stream {stream:6.2f}   clips of {CLIP} {clips:6.2f}")
    print("\nMean absolute change between frames, of 255: across borders of clips, of blocks, inside blocks")
    for name, row in zip(("real", "stream", f"clips of {CLIP}"), torch.stack(changes).mean(0).tolist(), strict=True):
        print(f"{name:16}" + "".join(f"{value:8.3f}" for value in row) + f"   clips / blocks {row[0] / row[1]:.3f}")


def change(video: Tensor, spec: TokenizerSpec) -> Tensor:
    """(3,): mean absolute change from one frame to the next, across borders of clips, of blocks alone, and inside."""
    steps = 127.5 * video.diff(dim=2).abs().mean((0, 1, 3, 4))
    after = torch.arange(1, video.shape[2], device=video.device)
    begins = [*accumulate(spec.block_frames(spec.covering(video.shape[2])))]
    clips, blocks = after % CLIP == 0, torch.isin(after, torch.tensor(begins, device=video.device))
    return torch.stack([steps[which].mean() for which in (clips, blocks & ~clips, ~(blocks | clips))])


def sizes(tokenizer: AdapTok, tokens: int, chosen: list[Video]) -> None:
    """Inside and outside the bounds."""
    assert isinstance(tokenizer.config.geometry, RotaryGeometry)
    unbound = copy.copy(tokenizer)
    geometry = replace(tokenizer.config.geometry, sides=(8, 512), aspect=(8, 1))
    unbound.config = replace(tokenizer.config, geometry=geometry)
    print(f"\nPSNR in dB by size: the first {CLIP} frames of {len(chosen)} videos")
    for size in SIZES:
        fitted = unbound.at(size)
        count = round(tokens * fitted.spec.block_capacity / tokenizer.spec.block_capacity)
        real = (clip(video, CLIP, size) for video in chosen)
        quality = mean([float(psnr(coded(fitted, video, count), video, CLIP)) for video in real])
        print(f"{size[0]:3} x {size[1]:3} {count:4} tokens a block {quality:6.2f}   {place(tokenizer, size)}")


def place(tokenizer: AdapTok, size: tuple[int, int]) -> str:
    try:
        tokenizer.at(size)
    except ValueError:
        return "outside the bounds, refused"
    return "inside"


def pictures(tokenizer: AdapTok, tokens: int, chosen: list[Video]) -> None:
    """A frame alone and in its video."""
    print(f"\nPSNR in dB of frame {CLIP - 1}, {len(chosen)} videos")
    for count in (tokens // 2, tokens, min(2 * tokens, tokenizer.spec.block_capacity)):
        alone, within = [], []
        for video in chosen:
            real = clip(video, CLIP, tokenizer.resolution)
            last = real[:, :, -1:]
            still = last.expand(-1, -1, tokenizer.spec.frames_of(0), -1, -1)
            alone.append(float(psnr(coded(tokenizer, still, count)[:, :, -1:], last, 1)))
            within.append(float(psnr(coded(tokenizer, real, count)[:, :, -1:], last, 1)))
        print(f"{count:4} tokens a block: as a picture {mean(alone):6.2f}, in its video {mean(within):6.2f}")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
