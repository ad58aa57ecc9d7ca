"""Items that are drawn by weight: shares of sources and of groups, the same on every process and after a resume."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from numbered_video import make_video

from genvid import config
from genvid.data import (
    BalancedConfig,
    ClipConfig,
    ClipDataset,
    FolderConfig,
    JoinedConfig,
    ProceduralConfig,
    SourceConfig,
    StepSampler,
    SyntheticConfig,
    step_batches,
)

CLIP = ClipConfig(frames=4, resolution=(16, 16))


def drawn(weights: torch.Tensor, batch: int, steps: int, **options: int) -> list[tuple[int, int]]:
    sampler = StepSampler(len(weights), batch, 5, weights=weights, **options)
    return [clip for piece in itertools.islice(sampler, steps) for clip in piece]


def test_items_are_drawn_as_often_as_their_weights_say() -> None:
    weights = torch.tensor([1.0, 2.0, 4.0, 0.5, 0.5])
    counts = Counter(index for index, _ in drawn(weights, 16, 500))
    shares = torch.tensor([counts[i] / 8000 for i in range(5)])
    assert torch.allclose(shares, weights / 8, atol=0.004)


def test_every_batch_has_the_shares_of_the_weights() -> None:
    weights = torch.cat([torch.full((1000,), 1 / 1000), torch.full((3,), 1.0)])
    sampler = StepSampler(1003, 32, 0, weights=weights)
    batches = [[index for index, _ in sampler.batch(step)] for step in range(50)]
    assert {sum(index < 1000 for index in batch) for batch in batches} == {8}
    assert len({index for batch in batches for index in batch if index < 1000}) > 300
    assert len({tuple(index < 1000 for index in batch) for batch in batches}) == 50, "every batch in the same order"


def test_weighted_batches_depend_on_seed_and_step_alone() -> None:
    weights = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.1
    straight = drawn(weights, 12, 6)
    assert drawn(weights, 12, 3, start_step=3) == straight[36:]
    parts = [drawn(weights, 12, 12, rank=rank, world_size=2, micro_batches=2) for rank in range(2)]
    assert [clip for s in range(6) for part in parts for clip in part[6 * s : 6 * s + 6]] == straight
    assert len({seed for _, seed in straight}) == 72
    with pytest.raises(ValueError, match="3 items have 50 weights"):
        StepSampler(3, 1, 0, weights=weights)


def joined(weights: list[float] | None) -> JoinedConfig:
    return JoinedConfig([SyntheticConfig(10), SyntheticConfig(1000, seed=1)], weights)


def test_joined_sources_share_batches_by_weight() -> None:
    dataset = ClipDataset(joined([3, 1]), CLIP)
    batches = itertools.islice(step_batches(dataset, batch_size=16, seed=2, micro_batches=2), 4)
    for micro in batches:
        assert sum(int((batch["index"] < 10).sum()) for batch in micro) == 12
    assert ClipDataset(joined(None), CLIP).weights is None
    with pytest.raises(ValueError, match=r"2 `sources` has 1 `weights`"):
        joined([1])
    with pytest.raises(ValueError, match=r"above 0, got \[1, 0\]"):
        joined([1, 0])


def test_a_batch_of_joined_sources_has_the_attributes_that_all_of_them_have() -> None:
    mixed = ClipDataset(JoinedConfig([SyntheticConfig(8), ProceduralConfig(8)], [1, 1]), CLIP)
    ((batch,),) = itertools.islice(step_batches(mixed, batch_size=8, seed=2), 1)
    assert sorted((batch["index"] < 8).tolist()) == [False] * 4 + [True] * 4
    assert batch.keys() == {"video", "label", "index", "seed"}
    ((batch,),) = itertools.islice(step_batches(ClipDataset(joined(None), CLIP), batch_size=8, seed=2), 1)
    assert "complexity" in batch


def test_workers_and_a_resume_change_nothing_of_weighted_batches() -> None:
    dataset = ClipDataset(joined([1, 1]), CLIP)
    straight = list(itertools.islice(step_batches(dataset, batch_size=4, seed=3), 4))
    helped = list(itertools.islice(step_batches(dataset, batch_size=4, seed=3, start_step=2, workers=2), 2))
    for (one,), (other,) in zip(straight[2:], helped, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_folders_are_drawn_as_often_as_each_other_whatever_they_hold(tmp_path: Path) -> None:
    for folder, count in (("few", 1), ("many", 9)):
        for number in range(count):
            make_video(tmp_path / folder / f"{number}.mp4", 8)
    source = {"type": "balanced", "source": {"type": "folder", "path": str(tmp_path)}}
    dataset = ClipDataset(config.decode(SourceConfig, source), CLIP)
    counts = Counter(
        dataset.name(index).split("/")[0] for index, _ in StepSampler(10, 8, 0, weights=dataset.weights).batch(0)
    )
    assert counts == {"few": 4, "many": 4}
    # Within a joined source groups share what the source has of a batch.
    config_of_all = JoinedConfig([BalancedConfig(FolderConfig(str(tmp_path))), SyntheticConfig(100)], [1, 3])
    both = ClipDataset(config_of_all, CLIP)
    assert both.weights is not None
    assert both.weights[0] == pytest.approx(0.5)
    assert both.weights[1:10].sum() == pytest.approx(0.5)
    assert both.weights[10:].sum() == pytest.approx(3)
    # Beside a source without weights it counts as many clips as it has.
    beside = ClipDataset(JoinedConfig([BalancedConfig(FolderConfig(str(tmp_path))), SyntheticConfig(100)]), CLIP)
    assert beside.weights is not None
    assert beside.weights[:10].sum() == pytest.approx(10)
    assert torch.equal(beside.weights[10:], torch.ones(100, dtype=torch.float64))


def test_folders_of_joined_sources_are_drawn_as_often_as_each_other(tmp_path: Path) -> None:
    for name in ("one/few/0", "one/many/0", "one/many/1", "one/many/2", "two/few/0", "two/few/1"):
        make_video(tmp_path / f"{name}.mp4", 8)
    folders: list[SourceConfig] = [FolderConfig(str(tmp_path / name)) for name in ("one", "two")]
    weights = ClipDataset(BalancedConfig(JoinedConfig(folders)), CLIP).weights
    assert weights is not None
    assert weights.tolist() == pytest.approx([1, *[1 / 3] * 3, *[1 / 2] * 2])
    with pytest.raises(ValueError, match="whatever `weights` its joined source has"):
        BalancedConfig(JoinedConfig(folders, [1, 3]))


def test_the_split_is_that_of_the_sources(tmp_path: Path) -> None:
    make_video(tmp_path / "some" / "0.mp4", 8)
    balanced = BalancedConfig(FolderConfig(str(tmp_path)))
    assert balanced.split_name() == balanced.open(CLIP).split == "all"
    mixed = JoinedConfig([ProceduralConfig(4, seed=2), balanced], [1, 1])
    assert mixed.split_name() == mixed.open(CLIP).split == "seed 2 + all"


def test_classes_are_drawn_as_often_as_each_other() -> None:
    dataset = ClipDataset(BalancedConfig(SyntheticConfig(9), by="class"), CLIP)  # `still` twice
    assert dataset.weights is not None
    assert dataset.weights.tolist() == [0.5, *[1.0] * 7, 0.5]
