"""Tokenize a dataset once, at a budget: accelerate launch recipes/cache_tokens.py CONFIG.yaml [--key value ...]

Clips are allocated in complete groups, in the order of the dataset: their lengths do not depend on the number of
processes. After an interruption the same command goes on, on any number of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from genvid import config as configuration
from genvid.command import command
from genvid.data.dataset import ClipDataset, VideoData
from genvid.data.loader import numbered_batches
from genvid.device import device
from genvid.tokenizer.adaptok.loading import AllocatedTokenizer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokens.cache import TokenCacheWriter
from genvid.tokens.cache_info import CacheInfo
from genvid.tokens.coding import encode
from genvid.train.accelerator import make_state

SHARDS = 256
"""Most files of a cache: all are open while it is read."""


@dataclass(frozen=True, kw_only=True)
class CacheRun:
    """A dataset, a tokenizer with its allocator, and the folder of the token cache."""

    output_dir: str
    data: VideoData
    tokens: AllocatedTokenizer
    passes: int = 1
    """Times that each item is tokenized: more than 1 for random windows."""
    group_size: int = 128
    """Clips that are allocated at a time: a multiple of the allocator's group."""
    batch_size: int = 16
    """Clips encoded at a time; affects memory, not results."""
    workers: int = 2

    def __post_init__(self) -> None:
        configuration.check_counts(self, "passes", "group_size", "batch_size")
        shared = self.tokens.allocator.clips_per_budget
        if self.group_size % shared:
            raise ValueError(
                f"group_size is a multiple of tokens.allocator.group_size, {shared} clips, got {self.group_size}"
            )


@torch.no_grad()
def cache_tokens(run: CacheRun) -> Path:
    """Write the cache; returns its folder."""
    state = make_state()
    dataset = run.data.open()
    tokenizer, allocator, sizes = run.tokens.build(run.data.clip.frames, device())
    clips = len(dataset) * run.passes
    shards = _shards(-(-clips // run.group_size))
    about = {"clips": clips, "clips cut at a time": run.group_size}
    writer = TokenCacheWriter(run.output_dir, _info(run, tokenizer, sizes, dataset), shards=len(shards), about=about)
    state.wait_for_everyone()
    if state.is_main_process:
        writer.begin()
    state.wait_for_everyone()
    missing = set(writer.missing())
    own = [number for number in range(state.process_index, len(shards), state.num_processes) if number in missing]
    groups = numbered_batches(
        dataset,
        [group for number in own for group in shards[number]],
        batch_size=run.group_size,
        passes=run.passes,
        workers=run.workers,
        device=device(),
    )
    bar = tqdm(total=sum(len(shards[n]) for n in own), desc="caching", unit="group", disable=not state.is_main_process)
    with bar:
        for number in own:
            with writer.shard(number) as shard:
                for group in islice(groups, len(shards[number])):
                    tokens = allocator(encode(tokenizer, group["video"], run.batch_size))
                    names = [dataset.name(i) for i in group["index"].tolist()]
                    shard.add(tokens, group["label"], group["seed"], names)
                    bar.update()
    state.wait_for_everyone()
    if state.is_main_process:
        writer.finish()
    state.wait_for_everyone()
    return Path(run.output_dir)


def _info(run: CacheRun, tokenizer: AdapTok, sizes: list[int], dataset: ClipDataset) -> CacheInfo:
    spec, made_from = tokenizer.spec, run.tokens.made_from()
    return CacheInfo(
        tokenizer=made_from.pop("tokenizer"),
        allocator=configuration.encode(run.tokens),
        data=dataset.fingerprint(),
        group_size=run.tokens.allocator.clips_per_budget,
        frames=run.data.clip.frames,
        num_blocks=spec.num_blocks(run.data.clip.frames),
        block_capacity=spec.block_capacity,
        sizes=sizes,
        codebook_size=spec.codebook_size or 0,
        classes=dataset.classes,
        made_from=made_from,
    )


def _shards(groups: int) -> list[range]:
    """The consecutive groups of every shard. Many small shards: an interruption loses one of each process."""
    count = min(SHARDS, groups)
    return [range(number * groups // count, (number + 1) * groups // count) for number in range(count)]


@command
def main(argv: Sequence[str]) -> None:
    usage = "accelerate launch recipes/cache_tokens.py CONFIG.yaml [--key value ...]"
    print(f"cached {cache_tokens(configuration.parse(CacheRun, argv, usage=usage))}")


if __name__ == "__main__":
    main(sys.argv[1:])
