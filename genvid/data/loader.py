"""Batches that depend on (seed, step) alone: not on the number of processes, and not on where a run was interrupted."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import accumulate, count
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from genvid import noise
from genvid.batch import Batch
from genvid.data.buckets import BucketedClips
from genvid.data.clips import to_float


class DataError(ValueError, RuntimeError):
    """Data that can no longer be loaded."""


class SizedDataset(Protocol):
    """Items by (index, seed)."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: tuple[int, int]) -> Batch: ...


class StepSampler:
    """Endless micro-batches of (index, clip seed) for one process.

    The items of all global batches are one stream, reshuffled every epoch, so a batch may end one epoch and begin the
    next. Rank r takes the r-th contiguous part of each global batch, in `micro_batches` equal pieces: two processes
    with b clips each have the clips of one process with 2b. If `sizes` gives a cost per item, micro-batches are
    balanced: equal clip counts, similar total cost. A run resumes at `start_step`.

    With `weights` there are no epochs: a global batch of B clips has one clip of each of B equal stretches of the
    summed weights, so a group of items has its share of the weights in every batch, to one clip.
    """

    def __init__(
        self,
        num_items: int,
        global_batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        micro_batches: int = 1,
        sizes: Sequence[int] | Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        if num_items < 1:
            raise ValueError("cannot draw batches from an empty dataset")
        if global_batch_size < 1 or global_batch_size % (world_size * micro_batches):
            raise ValueError(
                f"a global batch of {global_batch_size} clips cannot be split evenly over {world_size} processes with "
                f"{micro_batches} micro-batches each; use a multiple of {world_size * micro_batches}"
            )
        self.num_items, self.global_batch_size, self.seed = num_items, global_batch_size, noise.check_seed(seed)
        self.rank, self.world_size = rank, world_size
        self.start_step, self.micro_batches, self.sizes = start_step, micro_batches, sizes
        if weights is not None and len(weights) != num_items:
            raise ValueError(f"{num_items} items have {len(weights)} weights")
        self._summed = None if weights is None else weights.double().cumsum(0)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """(index, clip seed) of every clip in the global batch of a step, with consecutive seeds."""
        if self._summed is None:
            positions = range(step * self.global_batch_size, (step + 1) * self.global_batch_size)
            indices = [self._item(position) for position in positions]
        else:
            indices = self._weighted(step, self._summed)
        step_seed = noise.fold(noise.fold(torch.tensor(self.seed), "clips"), step)
        seeds = noise.consecutive_seeds(step_seed, self.global_batch_size)
        return list(zip(indices, seeds.tolist(), strict=True))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in count(self.start_step):
            yield from self.pieces(step)

    def pieces(self, step: int) -> list[list[tuple[int, int]]]:
        """The micro-batches of this process in a step."""
        first = self.rank * self.micro_batches
        return self._deal(self.batch(step))[first : first + self.micro_batches]

    def _deal(self, clips: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """A global batch -> the micro-batches of all processes."""
        number = self.world_size * self.micro_batches
        each, sizes = len(clips) // number, self.sizes
        if sizes is None:
            return [clips[start : start + each] for start in range(0, len(clips), each)]
        # Largest first, each to the piece that holds least and has room.
        pieces: list[list[tuple[int, int]]] = [[] for _ in range(number)]
        held = [0] * number
        for clip in sorted(clips, key=lambda clip: int(sizes[clip[0]]), reverse=True):
            piece = min((p for p in range(number) if len(pieces[p]) < each), key=held.__getitem__)
            pieces[piece].append(clip)
            held[piece] += int(sizes[clip[0]])
        return pieces

    def _weighted(self, step: int, summed: Tensor) -> list[int]:
        """Items of a global batch by their weights, in any order."""
        size, seed = self.global_batch_size, noise.sample_seeds(self.seed, "weighted items", torch.tensor([step]))
        places = (torch.arange(size) + noise.uniform(seed, "place", size)[0]) / size
        order = noise.uniform(seed, "order", size)[0].argsort(stable=True)
        items = torch.searchsorted(summed, places[order] * summed[-1], right=True)
        return items.clamp(max=self.num_items - 1).tolist()

    def _item(self, position: int) -> int:
        epoch, place = divmod(position, self.num_items)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, noise.permutation(self.seed, f"epoch {epoch}", self.num_items)
        return int(self._order[place])


class BucketSampler:
    """`StepSampler` over buckets of items: each step is the next step of one of them, by its share of every cycle."""

    def __init__(self, samplers: Sequence[StepSampler], shares: Sequence[int], seed: int, start_step: int) -> None:
        """`samplers`: of each bucket, whose items come after those of the buckets before it."""
        self.samplers, self.seed, self.start_step = samplers, seed, start_step
        self.firsts = [0, *accumulate(sampler.num_items for sampler in samplers)]
        self.cycle = torch.arange(len(shares)).repeat_interleave(torch.tensor(shares))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in count(self.start_step):
            bucket, own_step = self.turn(step)
            first = self.firsts[bucket]
            for piece in self.samplers[bucket].pieces(own_step):
                yield [(first + index, seed) for index, seed in piece]

    def turn(self, step: int) -> tuple[int, int]:
        """(bucket of a step, number of steps of that bucket before it)."""
        cycle, place = divmod(step, len(self.cycle))
        order = self.cycle[noise.permutation(self.seed, f"buckets {cycle}", len(self.cycle))]
        bucket = int(order[place])
        return bucket, cycle * int((self.cycle == bucket).sum()) + int((order[:place] == bucket).sum())


def step_batches(
    dataset: SizedDataset,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    workers: int = 0,
    device: torch.device | str = "cpu",
    micro_batches: int = 1,
) -> Generator[list[Batch]]:
    """For each training step, this process's micro-batches on `device`, without end. Closing it ends the workers.

    `batch_size` is global: clips of a step over all processes and micro-batches; of `BucketedClips` as many as do the
    same work. uint8 "video" becomes float in
    [-1, 1] on the device. A dataset may have `sizes`, the work of each item, and `weights`, how often each is drawn.
    """

    def sampler(part: SizedDataset, size: int, own_seed: int) -> StepSampler:
        return StepSampler(
            len(part),
            size,
            own_seed,
            rank=rank,
            world_size=world_size,
            start_step=start_step,
            micro_batches=micro_batches,
            sizes=getattr(part, "sizes", None),
            weights=getattr(part, "weights", None),
        )

    batches: Iterable[list[tuple[int, int]]]
    if isinstance(dataset, BucketedClips):
        seeds = noise.sample_seeds(seed, "buckets", torch.arange(len(dataset.parts))).tolist()
        sizes = dataset.batch_sizes(batch_size)
        samplers = [sampler(*one) for one in zip(dataset.parts, sizes, seeds, strict=True)]
        batches = BucketSampler(samplers, [bucket.share for bucket in dataset.buckets], seed, start_step)
    else:
        batches = sampler(dataset, batch_size, seed)
    loaded = load_batches(dataset, batches, workers=workers, device=device)
    while True:
        yield [next(loaded) for _ in range(micro_batches)]


def one_pass(
    dataset: SizedDataset,
    *,
    batch_size: int,
    passes: int = 1,
    items: Sequence[int] | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Every item once (or `passes` times), in order, for evaluation and caching. The seed of a clip is its index, and
    in later passes the index plus the number of all clips seen in the passes before.

    `items`: only these, in this order; their seeds are those that they have among all.

    Batches of `batch_size` consecutive items (the last may be shorter) go to the processes in turn, so the contents of
    a batch do not depend on the number of processes.
    """
    total = (len(dataset) if items is None else len(items)) * passes
    yield from numbered_batches(
        dataset,
        range(rank, -(-total // batch_size), world_size),
        batch_size=batch_size,
        passes=passes,
        items=items,
        workers=workers,
        device=device,
    )


def numbered_batches(
    dataset: SizedDataset,
    numbers: Iterable[int],
    *,
    batch_size: int,
    passes: int = 1,
    items: Sequence[int] | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Only these batches of `one_pass`, in the order of `numbers`, to resume an interrupted pass."""
    every, chosen = len(dataset), range(len(dataset)) if items is None else items
    total = len(chosen) * passes

    def clip(position: int) -> tuple[int, int]:
        turn, place = divmod(position, len(chosen))
        return chosen[place], chosen[place] + turn * every

    starts = (number * batch_size for number in numbers)
    batches = ([clip(i) for i in range(start, min(start + batch_size, total))] for start in starts)
    yield from load_batches(dataset, batches, workers=workers, device=device)


def load_batches(
    dataset: Any, batches: Iterable[list[tuple[int, int]]], *, workers: int = 0, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """Batches of (index, seed) through a DataLoader, at most two waiting for each worker, moved to the device.

    Workers start from a fork server: forking this process would copy CUDA's state and the locks of threads that
    torch and FFmpeg have started, which deadlocks; spawning pays for importing torch in every worker.
    """
    device = torch.device(device)
    cuda = device.type == "cuda"
    context = multiprocessing.get_context("forkserver") if workers else None
    if context:
        # A worker imports the modules of the main script; the server imports those of genvid once for all workers.
        context.set_forkserver_preload(["genvid.data", *(name for name in sys.modules if name.startswith("genvid."))])
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=cuda,
        multiprocessing_context=context,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_end_with_parent,
    )
    iterator: Any = iter(loader)
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                raise _in_one_sentence(error) from error
            moved = {name: value.to(device, non_blocking=cuda) for name, value in batch.items()}
            if "video" in moved and not moved["video"].is_floating_point():
                moved["video"] = to_float(moved["video"])
            yield moved
    finally:
        if workers:  # else they live as long as the traceback of an error, which holds `iterator`
            iterator._shutdown_workers()


def _end_with_parent(_: int) -> None:
    """End this worker when the process that started it ends, killed too: torch looks at the fork server alone, which
    lives as long as a worker does."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _in_one_sentence(error: Exception) -> Exception:
    """A DataError for bad data, dead workers and full shared memory; programming errors keep their traceback."""
    message = str(error).strip()
    raised_in_worker = "Original Traceback" in message
    reason = message.splitlines()[-1].partition(": ")[2] if raised_in_worker else message
    if "shared memory" in message:
        return DataError(
            f"the shared memory of the data workers is full ({reason}); free some of /dev/shm, or use fewer workers or "
            f"smaller batches"
        )
    if "stack expects each tensor to be equal size" in message:
        return DataError(
            "clips of one batch have several lengths: data.clip.window whole is for videos that come one by one"
        )
    if raised_in_worker:
        return DataError(reason) if isinstance(error, (ValueError, OSError)) else error
    if "DataLoader worker" in message:
        return DataError(
            f"a data worker died ({reason}); if it was killed for memory, use fewer workers or smaller batches"
        )
    return error
