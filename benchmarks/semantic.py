"""Balance of a tokenizer's losses: python benchmarks/semantic.py CONFIG.yaml [--section.key value ...]

For each part of the loss of a recipe its value, and the root mean square over clips of the norm of its gradient at the
quantized tokens, where the encoder's gradient begins: after the steps of `train.steps`. Then the time of a forward and
backward pass with and without `objective.semantic`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch

from genvid import config as configuration
from genvid.batch import Batch
from genvid.command import command
from genvid.data.loader import step_batches
from genvid.device import device
from genvid.recipes.runs import AdapTokRun
from genvid.tokenizer.adaptok.tasks import AdapTokTask

REPEATS = 5


@command
def main(argv: Sequence[str]) -> None:
    usage = "python benchmarks/semantic.py CONFIG.yaml [--section.key value ...]"
    run = configuration.parse(AdapTokRun, argv, usage=usage)
    torch.manual_seed(run.seed)
    task, dataset = run.build()
    assert isinstance(task, AdapTokTask)
    stream = step_batches(
        dataset,
        batch_size=run.train.batch_size,
        seed=run.seed,
        rank=0,
        world_size=1,
        start_step=0,
        micro_batches=1,
        workers=run.train.workers,
        device=device(),
    )
    task = task.to(device()).train()
    optimizer = torch.optim.AdamW(task.trainable(task.phases[0]), lr=run.train.optimizers[task.phases[0]].lr)
    for batches in islice(stream, run.train.steps):
        losses = task.reconstruct(batches[0])[1]
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    batch = next(stream)[0]
    for name, (value, norm) in gradients(task, batch).items():
        print(f"{name:18} value {value:8.4f}   gradient {norm:.3e}")
    print(f"forward and backward {seconds(task, batch):.3f} s for {len(batch['seed'])} clips")
    if task.semantic is not None:
        plain = replace(run, objective=replace(run.objective, semantic=None)).build()[0].to(device()).train()
        assert isinstance(plain, AdapTokTask)
        print(f"without objective.semantic {seconds(plain, batch):.3f} s")


def gradients(task: AdapTokTask, batch: Batch) -> dict[str, tuple[float, float]]:
    """Part -> mean value, and norm of its gradient at the tokens of a clip."""
    _, quantized, _, parts = task.loss_parts(batch)
    found = {}
    for name, losses in parts.items():
        gradient = None
        if losses.requires_grad:  # that of FSQ is a constant
            (gradient,) = torch.autograd.grad(losses.sum(), quantized.vectors, retain_graph=True, allow_unused=True)
        norm = 0.0 if gradient is None else float(gradient.flatten(1).square().sum(1).mean().sqrt())
        found[name] = float(losses.detach().mean()), norm
    return found


def seconds(task: AdapTokTask, batch: Batch) -> float:
    """Least time of a few passes."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        task.reconstruct(batch)[1].mean().backward()
        if device().type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)


if __name__ == "__main__":
    main(sys.argv[1:])
