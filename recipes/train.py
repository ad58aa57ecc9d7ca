"""Train any stage: accelerate launch recipes/train.py CONFIG.yaml [--section.key value ...]

The same command resumes a run that was interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from pathlib import Path

from accelerate.utils import set_seed

from genvid import config as configuration
from genvid.batch import Batch
from genvid.command import command
from genvid.config import ConfigError
from genvid.data.loader import SizedDataset, step_batches
from genvid.recipes.run import Run
from genvid.recipes.runs import RUNS
from genvid.train.start import start_from
from genvid.train.trainer import BatchStream, HeldOut, Shard, Trainer

USAGE = "accelerate launch recipes/train.py CONFIG.yaml [--section.key value ...]"


def read_run(argv: Sequence[str]) -> Run:
    """The run of a recipe and its overrides; `task:` names the stage."""
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"usage: {USAGE}")
    data = configuration.read(argv[0], argv[1:])
    task = data.get("task")
    if task not in RUNS:
        raise ConfigError(f"{argv[0]}: task is {task!r}, but must be one of {', '.join(RUNS)}")
    return configuration.decode(RUNS[task], data, source=argv[0])


def train(run: Run) -> Path:
    """Train a stage to its end; returns the folder of the exported model."""
    set_seed(run.seed)
    task, dataset = run.build()
    if run.init_from is not None:
        start_from(task, run.init_from, run.may_differ or ())
    elif run.may_differ:
        raise ConfigError(f"may_differ lists parts of the model of init_from, which is null: {run.may_differ}")
    held_out = None if run.validation is None else HeldOut(_batches(run, run.held_out()), run.validation)
    trainer = Trainer(task, run.train, run.output_dir, run_config=run, seed=run.seed, held_out=held_out)
    return trainer.fit(_batches(run, dataset))


def _batches(run: Run, dataset: SizedDataset) -> BatchStream:
    """The batches of a run from a dataset."""

    def batches(shard: Shard) -> Generator[list[Batch]]:
        return step_batches(
            dataset,
            batch_size=run.train.batch_size,
            seed=run.seed,
            rank=shard.rank,
            world_size=shard.world_size,
            start_step=shard.start_step,
            micro_batches=shard.micro_batches,
            workers=run.train.workers,
            device=shard.device,
        )

    return batches


@command
def main(argv: Sequence[str]) -> None:
    print(f"exported {train(read_run(argv))}")


if __name__ == "__main__":
    main(sys.argv[1:])
