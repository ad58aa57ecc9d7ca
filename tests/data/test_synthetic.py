"""Drawn clips: seeded, balanced, and of the motion and complexity that they claim."""

import numpy as np
import pytest
import torch

from genvid.data import ClipConfig, ClipDataset, SyntheticConfig, video_bytes
from genvid.data.sources.synthetic import COMPLEXITIES, MOTIONS, render


def clips(motion: str, complexity: str, count: int = 6) -> torch.Tensor:
    """(N, 3, T, H, W) float."""
    seeds = torch.arange(count) * 7919
    made = [render(s[None], motion, complexity, frames=16, resolution=(32, 32)) for s in seeds]
    return torch.stack(made).float()


def shape_mask(video: torch.Tensor) -> torch.Tensor:
    """(3, T, H, W) of a plain clip -> (T, H, W): where it is not the ground, read off the commonest colour."""
    code = (video * torch.tensor([1.0, 256.0, 65536.0])[:, None, None, None]).sum(0)
    ground = video[:, code == code.flatten().mode().values][:, 0]
    return ((video - ground[:, None, None, None]).abs().sum(0) > 20).float()


def test_a_clip_is_a_function_of_seed_and_index() -> None:
    clip = ClipConfig(frames=5, resolution=(24, 40))
    one, same = ClipDataset(SyntheticConfig(64, seed=3), clip), ClipDataset(SyntheticConfig(80, seed=3), clip)
    other = ClipDataset(SyntheticConfig(64, seed=4), clip)
    assert one[7]["video"].shape == (3, 5, 24, 40)
    assert one[7]["video"].dtype == torch.uint8
    assert torch.equal(one[7, 1]["video"], same[7, 2]["video"])
    assert not torch.equal(one[7]["video"], other[7]["video"])
    assert len({one[i]["video"].numpy().tobytes() for i in range(64)}) == 64
    assert one.fingerprint() != other.fingerprint()
    with pytest.raises(ValueError, match="at least 1"):
        SyntheticConfig(0)


def test_complexities_are_chosen() -> None:
    clip = ClipConfig(resolution=(8, 8))
    chosen, every = ClipDataset(SyntheticConfig(64, complexities=("cut", "plain")), clip), SyntheticConfig(64)
    assert [chosen.source.attributes(i)["complexity"] for i in (0, 8, 16, 24)] == [0, 1, 0, 1]
    assert torch.equal(
        chosen[8]["video"], render(chosen.source._seeds[8:9], "still", "plain", frames=16, resolution=(8, 8))
    )
    assert chosen.fingerprint() != ClipDataset(every, clip).fingerprint()
    with pytest.raises(ValueError, match=r"one or more of plain, slow, busy, cut, got \['calm'\]"):
        SyntheticConfig(complexities=("calm",))


def test_shapes_are_chosen() -> None:
    clip = ClipConfig(resolution=(8, 8))
    rings, every = ClipDataset(SyntheticConfig(8, shapes=("ring",)), clip), ClipDataset(SyntheticConfig(8), clip)
    seed = every.source._seeds[:1]
    ring = render(seed, "still", "plain", frames=16, resolution=(8, 8), shapes=("ring",))
    assert torch.equal(rings[0]["video"], ring)
    assert any(not torch.equal(rings[i]["video"], every[i]["video"]) for i in range(8))
    assert rings.fingerprint() != every.fingerprint()
    with pytest.raises(ValueError, match=r"shapes are one or more of disc, .*, got \['star'\]"):
        SyntheticConfig(shapes=("star",))


def test_classes_and_complexities_are_balanced() -> None:
    dataset = ClipDataset(SyntheticConfig(64), ClipConfig(resolution=(8, 8)))
    pairs = [(int(dataset[i]["label"]), int(dataset[i]["complexity"])) for i in range(64)]
    assert dataset.num_classes == len(MOTIONS) == 8
    assert sorted(pairs) == sorted(2 * [(m, c) for m in range(8) for c in range(4)])


@pytest.mark.parametrize("complexity", ["plain", "slow"])
def test_motion_is_what_the_class_says(complexity: str) -> None:
    least = 2.5 if complexity == "slow" else 8.0
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    for motion in MOTIONS:
        for video in clips(motion, complexity):
            mask = shape_mask(video)
            area = mask.sum((1, 2))
            dx = ((mask * x).sum((1, 2)) / area).diff()
            dy = ((mask * y).sum((1, 2)) / area).diff()
            growth = (area[-1] / area[0]).log()
            match motion:
                case "still":
                    assert (video == video[:, :1]).all()
                case "right" | "left":
                    assert dx.sum() * (1 if motion == "right" else -1) > least
                    assert dy.sum().abs() < 1
                case "down" | "up":
                    assert dy.sum() * (1 if motion == "down" else -1) > least
                    assert dx.sum().abs() < 1
                case "circle":
                    turn = dx[:-1] * dy[1:] - dy[:-1] * dx[1:]
                    assert turn.sum() > 0, "clockwise, as seen"
                case "grow" | "shrink":
                    assert growth * (1 if motion == "grow" else -1) > (0.3 if complexity == "slow" else 1)


def test_complexity_is_what_compression_finds() -> None:
    """Bytes of H.264 at one quality: an outside opinion of how much a clip contains."""
    size = {}
    container = len(video_bytes(torch.zeros(3, 16, 32, 32, dtype=torch.uint8), 8))
    for complexity in COMPLEXITIES:
        videos = [clips(motion, complexity, 12) for motion in MOTIONS]
        size[complexity] = np.mean([len(video_bytes(v.to(torch.uint8), 8)) - container for v in torch.cat(videos)])
    assert size["slow"] < size["plain"] < size["cut"] < size["busy"]
    assert size["busy"] > 1.5 * size["plain"]


def test_cuts_change_the_scene_once_or_twice_and_no_other_clip_has_one() -> None:
    for complexity in COMPLEXITIES:
        jumps = (clips("still", complexity).diff(dim=2).abs().mean((1, 3, 4)) > 5).sum(1)
        assert set(jumps.tolist()) == ({1, 2} if complexity == "cut" else {0})
