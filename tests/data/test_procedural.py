"""Drawn video: a pure function of item and seed, of any size, without end, and with the statistics of natural video."""

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from genvid.data import ClipConfig, ClipDataset, ProceduralConfig, step_batches, to_float

SMALL = ClipConfig(frames=5, resolution=(24, 40))


def test_a_clip_is_a_function_of_item_and_seeds() -> None:
    one, same = (ClipDataset(ProceduralConfig(clips, seed=3), SMALL) for clips in (8, 9))
    other = ClipDataset(ProceduralConfig(8, seed=4), SMALL)
    assert torch.equal(one[7, 1]["video"], same[7, 1]["video"])
    assert not torch.equal(one[7, 1]["video"], one[7, 2]["video"])
    assert not torch.equal(one[7, 1]["video"], one[6, 1]["video"])
    assert not torch.equal(one[7, 1]["video"], other[7, 1]["video"])
    assert one.fingerprint() != other.fingerprint()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ProceduralConfig(0)


def test_another_process_draws_the_same() -> None:
    dataset = ClipDataset(ProceduralConfig(8), SMALL)
    program = (
        "from genvid.data import *; import hashlib;"
        "d = ClipDataset(ProceduralConfig(8), ClipConfig(frames=5, resolution=(24, 40)));"
        "d[3, 3]; print(hashlib.sha256(d[7, 1]['video'].numpy().tobytes()).hexdigest())"
    )
    here = hashlib.sha256(dataset[7, 1]["video"].numpy().tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert there.strip() == here


def test_data_workers_draw_the_same() -> None:
    dataset = ClipDataset(ProceduralConfig(6), SMALL)
    ((alone,),) = itertools.islice(step_batches(dataset, batch_size=4, seed=1), 1)
    ((helped,),) = itertools.islice(step_batches(dataset, batch_size=4, seed=1, workers=1), 1)
    assert torch.equal(alone["video"], helped["video"])


@pytest.mark.parametrize(
    ("frames", "resolution"), [(1, (16, 16)), (2, (8, 8)), (3, (64, 256)), (200, (16, 24)), (4, (300, 300))]
)
def test_clips_have_any_size_and_length(frames: int, resolution: tuple[int, int]) -> None:
    dataset = ClipDataset(ProceduralConfig(6), ClipConfig(frames=frames, resolution=resolution))
    for index in range(6):
        video = dataset[index]["video"]
        assert (video.shape, video.dtype) == ((3, frames, *resolution), torch.uint8)


def test_the_clip_rule_applies() -> None:
    """To a video that is as long as a clip."""
    plain = ClipDataset(ProceduralConfig(20), SMALL)
    flipped = ClipDataset(ProceduralConfig(20), ClipConfig(frames=5, resolution=(24, 40), flip=True))
    mirrored = [torch.equal(plain[i]["video"].flip(-1), flipped[i]["video"]) for i in range(20)]
    assert {torch.equal(plain[i]["video"], flipped[i]["video"]) or mirrored[i] for i in range(20)} == {True}
    assert 3 < sum(mirrored) < 17
    unrounded = ClipDataset(ProceduralConfig(20), ClipConfig(frames=5, resolution=(24, 40), rounded=False))
    assert torch.equal(unrounded[3]["video"], to_float(plain[3]["video"]))


def test_a_stride_makes_things_move_faster() -> None:
    changes = []
    for stride in (1, 4):
        dataset = ClipDataset(ProceduralConfig(40), ClipConfig(frames=4, stride=stride, resolution=(32, 32)))
        videos = torch.stack([dataset[i]["video"] for i in range(40)]).float()
        changes.append(videos.diff(dim=2).abs().mean((1, 2, 3, 4)).median())
    assert changes[1] > 1.5 * changes[0]


@pytest.fixture(scope="module")
def luminance() -> np.ndarray:
    """(N, T, H, W) in 0..255."""
    dataset = ClipDataset(ProceduralConfig(120), ClipConfig(frames=8, resolution=(64, 64)))
    return np.stack([dataset[i]["video"].float().mean(0).numpy() for i in range(120)])


def test_the_power_spectrum_falls_as_in_natural_pictures(luminance: np.ndarray) -> None:
    """The power of natural pictures falls about as frequency ** -2.5 to -3.5."""
    window = np.hanning(64)[:, None] * np.hanning(64)
    frames = luminance[:, 4] - luminance[:, 4].mean((1, 2), keepdims=True)
    power = np.median(np.abs(np.fft.fft2(frames * window)) ** 2, 0)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    edges = np.geomspace(2 / 64, 0.5, 6)
    bands = [power[(frequency >= low) & (frequency < high)].mean() for low, high in itertools.pairwise(edges)]
    slope = np.polyfit(np.log(edges[:-1]), np.log(bands), 1)[0]
    assert -3.7 < slope < -2.3


def test_clips_are_from_still_to_busy(luminance: np.ndarray) -> None:
    change = np.abs(np.diff(luminance, axis=1)).mean((1, 2, 3))
    edges = np.abs(np.diff(luminance, axis=3)).mean((1, 2, 3))
    for activity in (change, edges):
        low, middle, high = np.percentile(activity, [8, 50, 92])
        assert low < 0.5 * middle < 0.9 * high
    # Most of a picture stands still or is smooth, and little of it changes much: heavy tails.
    assert np.percentile(np.abs(np.diff(luminance, axis=1)), 50) < 4
    assert np.percentile(np.abs(np.diff(luminance, axis=1)), 99) > 30


def test_some_clips_are_cut() -> None:
    dataset = ClipDataset(ProceduralConfig(60), ClipConfig(frames=16, resolution=(32, 32)))
    videos = torch.stack([dataset[i]["video"] for i in range(60)]).float()
    jumps = videos.diff(dim=2).abs().mean((1, 3, 4))
    cut = (jumps.max(1).values > 40) & (jumps.max(1).values > 4 * jumps.median(1).values)
    assert 2 <= int(cut.sum()) <= 15


def test_colours_are_correlated_as_in_natural_pictures() -> None:
    dataset = ClipDataset(ProceduralConfig(60), ClipConfig(frames=1, resolution=(64, 64)))
    pixels = torch.stack([dataset[i]["video"][:, 0].flatten(1) for i in range(60)]).float()
    within = (pixels - pixels.mean(2, keepdim=True)).transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(within)
    assert 0.85 < float(correlation[0, 1]) < 0.99
    assert 0.65 < float(correlation[0, 2]) < float(correlation[0, 1])
