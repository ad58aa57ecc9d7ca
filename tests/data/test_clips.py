"""A clip is a pure function of its config and seed, and pixels survive the trip through floats."""

from itertools import permutations, product

import pytest
import torch

from genvid.data import ClipConfig, to_float, to_uint8


def test_to_uint8_inverts_to_float() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_float(every).min() == -1
    assert to_float(every).max() == 1
    assert to_uint8(torch.tensor([-3.0, 0.0, 7.0])).tolist() == [0, 128, 255]


def test_starts_reach_both_ends_and_nothing_beyond() -> None:
    clip = ClipConfig(frames=4, stride=3)
    starts = {clip.start(13, seed) for seed in range(200)}
    assert clip.span == 10
    assert starts == {0, 1, 2, 3}
    assert {clip.start(10, seed) for seed in range(20)} == {0}


def test_center_crop_of_the_resized_short_side() -> None:
    video = torch.zeros(2, 60, 120, 3, dtype=torch.uint8)
    video[:, :, 30:90] = 200  # the central square
    out = ClipConfig(resolution=(30, 30)).fit(video, seed=0)
    assert out.shape == (3, 2, 30, 30)
    assert (out[..., 2:-2] == 200).all()
    assert ClipConfig(resolution=(60, 90)).fit(video, seed=0).shape == (3, 2, 60, 90)
    assert ClipConfig(resolution=(90, 90)).fit(video, seed=0).shape == (3, 2, 90, 90)


def test_an_exact_fit_is_not_resampled() -> None:
    video = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(ClipConfig(resolution=(32, 32)).fit(video, 0), video.permute(3, 0, 1, 2))


def test_random_crop_and_flip_depend_on_the_seed_alone() -> None:
    clip = ClipConfig(resolution=(16, 16), crop="random", flip=True)
    across = torch.arange(40, dtype=torch.uint8)[None, None, :, None].expand(2, 16, 40, 3)
    rows = [clip.fit(across, seed)[0, 0, 0].tolist() for seed in range(300)]
    assert rows == [clip.fit(across, seed)[0, 0, 0].tolist() for seed in range(300)]
    assert {min(row) for row in rows} == set(range(25))
    mirrored = sum(row[0] > row[-1] for row in rows)
    assert 110 < mirrored < 190


def test_zoom_enlarges_evenly_in_its_logarithm_up_to_its_limit() -> None:
    clip = ClipConfig(resolution=(16, 16), crop="random", zoom=4.0, rounded=False)
    across = (4 * torch.arange(32, dtype=torch.uint8))[None, None, :, None].expand(1, 32, 32, 3)  # 8 a pixel unzoomed
    steps = [127.5 * clip.fit(across, seed)[0, 0, 0].diff().median().item() for seed in range(400)]
    assert 1.99 < min(steps) < 2.1
    assert 7.7 < max(steps) <= 8.01
    assert 160 < sum(step < 4 for step in steps) < 240
    assert torch.equal(clip.fit(across, 3), clip.fit(across, 3))


def test_one_clip_becomes_96_that_hold_the_same() -> None:
    video = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip = ClipConfig(frames=3, resolution=(8, 8), turn=True, reverse=True, recolour=True)
    made = [clip.fit(video, seed) for seed in range(1500)]
    assert torch.equal(made[7], clip.fit(video, 7))
    assert len({bytes(video.flatten().tolist()) for video in made}) == 96
    plain = ClipConfig(frames=3, resolution=(8, 8)).fit(video, 0)
    for turns, reverse, order, negative in product(range(4), (False, True), permutations(range(3)), (False, True)):
        wanted = plain[list(order)].rot90(turns, (2, 3))
        wanted = wanted.flip(1) if reverse else wanted
        wanted = 255 - wanted if negative else wanted
        assert 2 <= sum(torch.equal(wanted, video) for video in made) <= 40


def test_negatives_are_those_of_bytes_where_pixels_are_not_rounded() -> None:
    video = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    for seed in range(8):
        rounded, exact = (ClipConfig(frames=3, resolution=(8, 8), recolour=True, rounded=r) for r in (True, False))
        torch.testing.assert_close(exact.fit(video, seed), to_float(rounded.fit(video, seed)))


def test_frames_that_are_not_square_are_cropped_to_what_they_are_turned_to() -> None:
    video = torch.arange(16 * 8, dtype=torch.uint8).view(1, 16, 8, 1).expand(1, 16, 8, 3)
    made = [ClipConfig(resolution=(8, 16), turn=True).fit(video, seed) for seed in range(20)]
    assert {tuple(clip.shape) for clip in made} == {(3, 1, 8, 16)}
    for quarters in (1, 3):
        whole = video.permute(3, 0, 1, 2).rot90(quarters, (2, 3))
        assert any(torch.equal(whole, clip) for clip in made)


@pytest.mark.parametrize("bad", [{"frames": 0}, {"stride": 0}, {"resolution": (0, 8)}, {"zoom": 0.5}])
def test_impossible_clips_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"needs frames|resolution is|zoom is"):
        ClipConfig(**bad)
