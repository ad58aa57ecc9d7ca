"""Batches of several lengths and sizes: of one bucket a step, of equal work, and a function of (seed, step) alone."""

import shutil
from dataclasses import replace
from itertools import islice

import pytest
import torch

from genvid.checkpoint import load_model
from genvid.data import ClipConfig, SyntheticConfig, step_batches
from genvid.data.buckets import BucketConfig, BucketedClips
from genvid.data.dataset import VideoData
from genvid.recipes.runs import AdapTokRun
from genvid.recipes.train import train
from genvid.tokenizer.adaptok.config import AdapTokConfig, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.tail_drop import TailDropConfig
from genvid.tokenizer.adaptok.tasks import ObjectiveConfig
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.losses import DistortionConfig, DistortionSpec
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens.frame_blocks import FrameBlocks
from genvid.train.config import TrainConfig

RULE = ClipConfig(frames=8, resolution=(16, 16))
BUCKETS = (
    BucketConfig(8, (16, 16), share=2),
    BucketConfig(16, (16, 16)),
    BucketConfig(4, (16, 32), still=True),
    BucketConfig(8, (24, 16)),
)


@pytest.fixture(scope="module")
def clips() -> BucketedClips:
    return BucketedClips(VideoData(SyntheticConfig(clips=6), RULE), BUCKETS, FrameBlocks(4))


def batches(clips, steps, **options):
    """The videos of each step, of all micro-batches."""
    loaded = islice(step_batches(clips, batch_size=8, seed=3, **options), steps)
    return [torch.cat([piece["video"] for piece in pieces]) for pieces in loaded]


def test_every_step_is_of_one_bucket_and_does_about_the_same_work(clips):
    assert clips.batch_sizes(8) == [8, 8, 8, 8]
    assert clips.batch_sizes(32) == [32, 16, 32, 24]
    assert clips.batch_sizes(12) == [12, 8, 12, 8]
    shapes = [(len(video), *video.shape[2:]) for video in batches(clips, 20)]
    for start in range(0, 20, 5):
        cycle = shapes[start : start + 5]
        assert sorted(cycle) == sorted([(8, 8, 16, 16)] * 2 + [(8, 16, 16, 16), (8, 4, 16, 32), (8, 8, 24, 16)])
    assert shapes[:5] != shapes[5:10] or shapes[5:10] != shapes[10:15]


def test_a_still_repeats_one_frame(clips):
    stills = [video for video in batches(clips, 5) if video.shape[2] == 4]
    assert stills[0].equal(stills[0][:, :, :1].expand_as(stills[0]))
    assert len(torch.unique(stills[0][:, :, 0], dim=0)) > 1


def test_resuming_splitting_and_workers_change_nothing(clips):
    whole = batches(clips, 12)
    for step in (1, 7):
        assert all(a.equal(b) for a, b in zip(whole[step:], batches(clips, 12 - step, start_step=step), strict=True))
    assert all(a.equal(b) for a, b in zip(whole, batches(clips, 12, micro_batches=2), strict=True))
    parts = [batches(clips, 12, rank=rank, world_size=2) for rank in range(2)]
    assert all(torch.cat(halves).equal(a) for a, *halves in zip(whole, *parts, strict=True))
    assert all(a.equal(b) for a, b in zip(whole, batches(clips, 12, workers=1), strict=True))


def run_of(folder, steps, buckets=BUCKETS, **objective) -> AdapTokRun:
    network = StackConfig(16, 1, 2)
    geometry = RotaryGeometry(sides=(16, 32), aspect=(2, 1))
    model = AdapTokConfig(8, (16, 16), (4, 8, 8), 8, network, network, VQConfig(32, 4), True, geometry)
    return AdapTokRun(
        task="adaptok",
        output_dir=str(folder),
        train=TrainConfig(steps=steps, batch_size=8, workers=0, save_every=3, log_every=3),
        data=VideoData(SyntheticConfig(clips=6), RULE),
        buckets=buckets,
        model=model,
        objective=replace(ObjectiveConfig(TailDropConfig(4, 2, 1, 8), prior=None), **objective),
        distortion=DistortionSpec(DistortionConfig(l1=1.0)),
    )


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole = load_model(train(run_of(tmp_path / "whole", 6)), AdapTok).state_dict()
    shutil.copytree(tmp_path / "whole", tmp_path / "parts", ignore=shutil.ignore_patterns("step_00000006", "export"))
    parts = load_model(train(run_of(tmp_path / "parts", 6)), AdapTok).state_dict()
    assert all(whole[name].equal(parts[name]) for name in whole)


def test_buckets_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="16 to 32 pixels a side up to 2:1"):
        run_of(tmp_path, 1, (BucketConfig(8, (40, 16)),))
    with pytest.raises(ValueError, match="clips of 6 frames"):
        run_of(tmp_path, 1, (BucketConfig(6, (16, 16)),))
    with pytest.raises(ValueError, match="set them to null"):
        run_of(tmp_path, 1, prior=ObjectiveConfig().prior)
    run = run_of(tmp_path, 1, None)
    replace(run, data=replace(run.data, clip=replace(RULE, frames=64)))
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        BucketConfig(8, (16, 16), share=0)


def test_a_run_of_before_buckets_goes_on(tmp_path):
    train(run_of(tmp_path / "run", 3, None))
    config = tmp_path / "run" / "config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("buckets")))
    train(run_of(tmp_path / "run", 3, None))
