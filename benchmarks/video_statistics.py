"""Statistics of drawn clips beside those of real ones, and how well a code learned on each fits other real clips.

python benchmarks/video_statistics.py VIDEOS [--manifest FILE] [--clips 248] [--output results.json]

VIDEOS is a folder whose subfolders are drawn equally often. The codes (principal components, and 512 vectors by
k-means, of cells of 4x8x8 pixels) are fitted to its training clips, to procedural and to synthetic ones, and measured
on its held-out clips: the splits `train` and `val` of a manifest, or else the last eighth of every class.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genvid.data import (
    BalancedConfig,
    ClipConfig,
    ClipDataset,
    FolderConfig,
    ProceduralConfig,
    SourceConfig,
    StepSampler,
    SyntheticConfig,
)

Array = NDArray[Any]
CLIP = ClipConfig(frames=16, resolution=(128, 128))
CELL = (4, 8, 8)
COMPONENTS = (16, 64, 160)
VECTORS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("videos", help="a folder of video files in subfolders")
    parser.add_argument("--manifest", help="of the splits train and val")
    parser.add_argument("--clips", type=int, default=248, help="of each kind")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    if options.manifest:
        real, other = (FolderConfig(options.videos, options.manifest, split=split) for split in ("train", "val"))
    else:
        real, other = (FolderConfig(options.videos, held_out=held_out) for held_out in (False, True))
    sources: dict[str, SourceConfig] = {
        "real": BalancedConfig(real),
        "procedural": ProceduralConfig(),
        "synthetic": SyntheticConfig(),
    }
    test = cells(read(BalancedConfig(other), options.clips))
    results = {}
    for name, source in sources.items():
        clips = read(source, options.clips)
        results[name] = statistics(clips) | fit(cells(clips), test)
        print(json.dumps({name: results[name]}, indent=2), flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


def read(source: SourceConfig, count: int) -> Array:
    """(N, 3, T, H, W) float32 in 0..255, drawn as training draws."""
    dataset = ClipDataset(source, CLIP)
    drawn = StepSampler(len(dataset), count, 0, weights=dataset.weights).batch(0)
    return np.stack([dataset[item]["video"].numpy() for item in drawn]).astype(np.float32)


def statistics(clips: Array) -> dict[str, list[float]]:
    luminance = clips.mean(1)
    frames = luminance[:, CLIP.frames // 2]
    edges, changes = np.abs(np.diff(frames, axis=2)), np.abs(np.diff(luminance, axis=1))
    pixels = clips[:, :, CLIP.frames // 2].reshape(len(clips), 3, -1)
    correlation = np.corrcoef((pixels - pixels.mean(2, keepdims=True)).swapaxes(0, 1).reshape(3, -1))
    return {
        "slope of the power spectrum, 10/50/90 % of clips": rounded(np.percentile(slopes(frames), [10, 50, 90])),
        "neighbouring pixels, 50/90/99 %": rounded(np.percentile(edges, [50, 90, 99])),
        "consecutive frames, 50/90/99 %": rounded(np.percentile(changes, [50, 90, 99])),
        "mean change, 5/50/95 % of clips": rounded(np.percentile(changes.mean((1, 2, 3)), [5, 50, 95])),
        "luminance deviation, 10/50/90 % of clips": rounded(np.percentile(frames.std((1, 2)) / 255, [10, 50, 90])),
        "correlation of RG, RB, GB": rounded(correlation[[0, 0, 1], [1, 2, 2]]),
    }


def slopes(frames: Array) -> Array:
    """(N, H, H) -> (N,) slopes of log power over log frequency, in eight bands."""
    side = frames.shape[-1]
    window = np.hanning(side)[:, None] * np.hanning(side)
    centred = frames - (frames * window).sum((1, 2), keepdims=True) / window.sum()
    power = np.abs(np.fft.fft2(centred * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    limits = np.geomspace(2 / side, 0.5, 9)
    bands = np.stack([power[:, (frequency >= low) & (frequency < high)].mean(1) for low, high in pairwise(limits)])
    return np.polyfit(np.log(np.sqrt(limits[1:] * limits[:-1])), np.log(bands + 1e-4), 1)[0]


def cells(clips: Array, each: int = 150) -> Array:
    """(N * each, 3 * 4 * 8 * 8) in [-1, 1] from random places."""
    rng, found = np.random.default_rng(0), []
    for clip in clips:
        for corner in rng.integers(0, np.array(clip.shape[1:]) - CELL + 1, (each, 3)).tolist():
            t, y, x = (slice(start, start + side) for start, side in zip(corner, CELL, strict=True))
            found.append(clip[:, t, y, x].ravel() / 127.5 - 1)
    return np.stack(found)


def fit(training: Array, test: Array) -> dict[str, float]:
    """PSNR in dB of test cells under the codes that fit the training cells."""
    mean = training.mean(0)
    axes = np.linalg.eigh(np.cov(training, rowvar=False))[1][:, ::-1].astype(np.float32)
    lengths, own = torch.from_numpy((test - mean) @ axes), torch.from_numpy((training - mean) @ axes)
    found = {f"{count} components": psnr(lengths[:, count:].square().sum(1)) for count in COMPONENTS}
    vectors = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))[:VECTORS]].clone()
    for _ in range(8):
        nearest = torch.cdist(own, vectors).argmin(1)
        counts = torch.bincount(nearest, minlength=VECTORS)[:, None]
        means = torch.zeros_like(vectors).index_add_(0, nearest, own) / counts.clamp(min=1)
        vectors = torch.where(counts > 0, means, vectors)
    return found | {f"{VECTORS} vectors": psnr(torch.cdist(lengths, vectors).min(1).values.square())}


def psnr(errors: torch.Tensor) -> float:
    """Of summed squared errors of cells in [-1, 1]."""
    return round(float(10 * torch.log10(4 * 3 * np.prod(CELL) / errors.mean())), 2)


def rounded(values: Array) -> list[float]:
    return [round(float(value), 2) for value in values]


if __name__ == "__main__":
    main()
