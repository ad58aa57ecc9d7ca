"""Tokenize a dataset once, at a budget: accelerate launch recipes/cache_tokens.py CONFIG.yaml [--key value ...]

Clips go through in whole groups, in the order of the dataset, whatever the number of processes: what a clip is given
does not depend on the hardware.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from genvid import config as configuration
from genvid.data.loader import one_pass
from genvid.data.token_cache import CacheInfo, TokenCacheWriter
from genvid.recipes.allocated import AllocatedTokenizer, encode
from genvid.recipes.command import command
from genvid.recipes.loading import VideoData, device
from genvid.train.accelerator import make_state


@dataclass(frozen=True, kw_only=True)
class CacheRun:
    """What is tokenized, by what, at which budget, and where the tokens go."""

    output_dir: str
    data: VideoData
    tokens: AllocatedTokenizer
    passes: int = 1
    """How often each item is tokenized: more than once where its window is random."""
    group_size: int = 128
    """Clips that are cut at a time: whole groups of the allocator."""
    batch_size: int = 16
    """Clips encoded at a time: memory, not results."""
    workers: int = 2

    def __post_init__(self) -> None:
        shared = self.tokens.allocator.clips_per_budget
        if self.group_size < 1 or self.group_size % shared:
            raise ValueError(
                f"group_size is a multiple of tokens.allocator.group_size, {shared} clips, got {self.group_size}"
            )


@torch.no_grad()
def cache_tokens(run: CacheRun) -> Path:
    """Write the cache; returns its folder."""
    state = make_state()
    dataset = run.data.open()
    tokenizer, allocator, sizes = run.tokens.build(run.data.clip.frames)
    spec = tokenizer.spec
    made_from = run.tokens.made_from()
    info = CacheInfo(
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
    groups = one_pass(
        dataset,
        batch_size=run.group_size,
        passes=run.passes,
        rank=state.process_index,
        world_size=state.num_processes,
        workers=run.workers,
        device=device(),
    )
    writer = TokenCacheWriter(run.output_dir, info, rank=state.process_index, world_size=state.num_processes)
    total = -(-len(dataset) * run.passes // (run.group_size * state.num_processes))
    with writer, tqdm(total=total, desc="caching", unit="group", disable=not state.is_main_process) as bar:
        for group in groups:
            tokens = allocator(encode(tokenizer, group["video"], run.batch_size))
            names = [dataset.name(i) for i in group["index"].tolist()]
            writer.add(tokens, group["label"], group["seed"], names)
            bar.update()
    state.wait_for_everyone()
    if state.is_main_process:
        writer.finish()
    state.wait_for_everyone()
    return Path(run.output_dir)


@command
def main(argv: Sequence[str]) -> None:
    usage = "accelerate launch recipes/cache_tokens.py CONFIG.yaml [--key value ...]"
    print(f"cached {cache_tokens(configuration.parse(CacheRun, argv, usage=usage))}")


if __name__ == "__main__":
    main(sys.argv[1:])
