"""Batches depend on (seed, step) alone."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from numbered_video import make_video
from torch import Tensor

from genvid import noise
from genvid.data import (
    ClipConfig,
    ClipDataset,
    FolderConfig,
    StepSampler,
    SyntheticConfig,
    one_pass,
    step_batches,
    to_float,
)
from genvid.data.loader import DataError, numbered_batches


def sampler(items: int = 10, batch: int = 4, seed: int = 1, **options: int) -> StepSampler:
    return StepSampler(items, batch, seed, **options)


def take(source: StepSampler, count: int) -> list:
    return list(itertools.islice(source, count))


def test_every_epoch_holds_every_item_once_in_another_order() -> None:
    stream = [index for batch in take(sampler(), 15) for index, _ in batch]
    epochs = [stream[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert take(sampler(), 5) == take(sampler(), 5) != take(sampler(seed=2), 5)


def test_clip_seeds_never_repeat() -> None:
    seeds = [seed for batch in take(sampler(), 500) for _, seed in batch]
    assert len(set(seeds)) == 2000


def test_clips_of_a_step_have_consecutive_seeds() -> None:
    """So that `noise.stratified` spreads the numbers of a batch."""
    for batch in take(sampler(batch=12), 50):
        first = batch[0][1]
        assert first % noise.STRATA == 0
        assert [seed for _, seed in batch] == list(range(first, first + 12))


def test_resuming_continues_the_stream() -> None:
    assert take(sampler(start_step=7), 5) == take(sampler(), 12)[7:]
    assert sampler().batch(7) == take(sampler(), 8)[7]


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 3), (2, 1), (2, 3), (4, 3)])
def test_splitting_changes_nothing(world_size: int, micro_batches: int) -> None:
    whole = take(sampler(batch=12), 5)
    parts = [
        take(sampler(batch=12, rank=rank, world_size=world_size, micro_batches=micro_batches), 5 * micro_batches)
        for rank in range(world_size)
    ]
    for step in range(5):
        mine = [p[step * micro_batches : (step + 1) * micro_batches] for p in parts]
        assert [clip for rank in mine for piece in rank for clip in piece] == whole[step]


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 2), (2, 2), (4, 1)])
def test_work_is_dealt_evenly(world_size: int, micro_batches: int) -> None:
    sizes = (500 * (0.6 * torch.randn(1000, generator=torch.Generator().manual_seed(0))).exp()).int()
    pieces = [
        take(
            StepSampler(1000, 64, 1, rank=rank, world_size=world_size, micro_batches=micro_batches, sizes=sizes),
            3 * micro_batches,
        )
        for rank in range(world_size)
    ]
    for step in range(3):
        mine = [piece for p in pieces for piece in p[step * micro_batches : (step + 1) * micro_batches]]
        assert sorted(clip for piece in mine for clip in piece) == sorted(StepSampler(1000, 64, 1).batch(step))
        assert {len(piece) for piece in mine} == {64 // (world_size * micro_batches)}
        work = torch.tensor([sum(int(sizes[index]) for index, _ in piece) for piece in mine])
        assert work.max() < 1.03 * work.double().mean()


def test_uneven_batches_and_empty_data_are_refused() -> None:
    with pytest.raises(ValueError, match="a seed is a whole number from"):
        StepSampler(10, 2, 2**70)
    with pytest.raises(ValueError, match=r"10 clips cannot be split evenly over 2 processes with 2 .* multiple of 4"):
        sampler(batch=10, world_size=2, micro_batches=2)
    with pytest.raises(ValueError, match="empty"):
        sampler(items=0)


@pytest.fixture
def dataset() -> ClipDataset:
    return ClipDataset(SyntheticConfig(clips=22), ClipConfig(frames=4, resolution=(16, 16)))


def test_step_batches_are_the_sampled_clips_as_floats(dataset: ClipDataset) -> None:
    steps = list(itertools.islice(step_batches(dataset, batch_size=8, seed=3, start_step=2, micro_batches=2), 3))
    for step, micro in enumerate(steps, start=2):
        clips = StepSampler(22, 8, 3).batch(step)
        assert [len(batch["seed"]) for batch in micro] == [4, 4]
        assert torch.cat([batch["index"] for batch in micro]).tolist() == [index for index, _ in clips]
        assert torch.cat([batch["seed"] for batch in micro]).tolist() == [seed for _, seed in clips]
        expected = torch.stack([to_float(dataset[index]["video"]) for index, _ in clips[:4]])
        assert torch.equal(micro[0]["video"], expected)


def test_workers_change_nothing(dataset: ClipDataset) -> None:
    alone = itertools.islice(step_batches(dataset, batch_size=4, seed=3), 4)
    helped = itertools.islice(step_batches(dataset, batch_size=4, seed=3, workers=2), 4)
    for (one,), (other,) in zip(alone, helped, strict=True):
        assert one.keys() == other.keys() == {"video", "label", "index", "seed", "complexity"}
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("step", "workers"), [(2, 1), (3, 0)])
def test_a_resumed_run_goes_on_with_the_next_batch_on_another_number_of_processes(
    dataset: ClipDataset, step: int, workers: int
) -> None:
    """Across the end of the first epoch of 22 clips, and after it."""
    *_, straight = itertools.islice(step_batches(dataset, batch_size=8, seed=3, micro_batches=2), step + 1)
    halves = [
        next(step_batches(dataset, batch_size=8, seed=3, rank=rank, world_size=2, start_step=step, workers=workers))
        for rank in range(2)
    ]
    for name in ("video", "index", "seed", "label"):
        expected = torch.cat([batch[name] for batch in straight])
        assert torch.equal(torch.cat([batch[name] for half in halves for batch in half]), expected)


def test_one_pass_over_some_items_gives_them_the_seeds_they_have_among_all(dataset: ClipDataset) -> None:
    chosen = [5, 0, 3]
    seen = [(b["index"].tolist(), b["seed"].tolist()) for b in one_pass(dataset, batch_size=2, items=chosen, passes=2)]
    count = len(dataset)
    assert [index for indices, _ in seen for index in indices] == chosen * 2
    assert [seed for _, seeds in seen for seed in seeds] == [*chosen, *(index + count for index in chosen)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_one_pass_visits_all_in_whole_batches(dataset: ClipDataset, world_size: int) -> None:
    seen = []
    for rank in range(world_size):
        for batch in one_pass(dataset, batch_size=4, rank=rank, world_size=world_size):
            assert torch.equal(batch["seed"], batch["index"])
            seen.append(batch["index"].tolist())
    assert sorted(seen) == [list(range(i, min(i + 4, 22))) for i in range(0, 22, 4)]


def test_the_batches_that_an_interrupted_pass_lacks(dataset: ClipDataset) -> None:
    whole = list(one_pass(dataset, batch_size=4, passes=2))
    for number, batch in zip([10, 1, 5], numbered_batches(dataset, [10, 1, 5], batch_size=4, passes=2), strict=True):
        assert all(torch.equal(value, whole[number][name]) for name, value in batch.items())


def test_a_file_that_fails_in_a_worker_is_known_here(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / name, 20)
    dataset = ClipDataset(FolderConfig(str(tmp_path)), ClipConfig(frames=4, resolution=(16, 16)))
    (tmp_path / "b.mp4").write_bytes(b"gone")
    ((batch,),) = itertools.islice(step_batches(dataset, batch_size=8, seed=3, workers=1), 1)
    assert batch["index"].tolist() == [0] * 8
    assert dataset.failed == ["b.mp4"]


class Deadly:
    """A dataset whose worker is killed."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        os._exit(3)


def test_a_worker_that_dies_is_an_error_in_words() -> None:
    with pytest.raises(RuntimeError, match=r"a data worker died.*fewer workers"):
        next(step_batches(Deadly(), batch_size=2, seed=0, workers=1))


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, torch\n"
        "from genvid.data import step_batches\n"
        "class Workers:\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, item): return {'pid': torch.tensor(os.getpid())}\n"
        "if __name__ == '__main__':\n"
        "    batches = step_batches(Workers(), batch_size=1, seed=0, workers=2)\n"
        "    print(*{int(next(batches)[0]['pid']) for _ in range(4)}, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    # Workers hold the output open: without their end it would time out.
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert len(ended.stdout.split()) == 2, ended.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_clips_of_several_lengths_make_no_batch(tmp_path: Path, workers: int) -> None:
    for frames in (8, 9):
        make_video(tmp_path / f"{frames}.mp4", frames)
    whole = ClipDataset(FolderConfig(str(tmp_path)), ClipConfig(frames=4, resolution=(16, 16), window="whole"))
    with pytest.raises(DataError, match=r"data\.clip\.window whole is for videos that come one by one"):
        next(one_pass(whole, batch_size=2, workers=workers))
    assert [batch["video"].shape[2] for batch in one_pass(whole, batch_size=1)] == [8, 9]
