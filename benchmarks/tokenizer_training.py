"""Speed of tokenizer training: [accelerate launch --config_file ...] benchmarks/tokenizer_training.py [--batch 16]

The recipe recipes/configs/k600/tokenizer.yaml (195 M with its prior, discriminator every fifth step, LPIPS on VGG-16)
on random clips that wait on the device, trained by genvid's Trainer: no loader is measured. VGG-16 has random weights,
which cost the same. `--plain` leaves the discriminator out, as DeepSpeed needs. `--tiny` is a trial on any CPU.

The published code takes 772 and 855 ms for a step of 16 clips on one H100, in 67.8 GB (its own code, eager, fp16).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from genvid import config as configuration
from genvid.batch import Batch
from genvid.perceptual import LPIPSConfig, PerceptualDistance, StructureDistance
from genvid.perceptual.networks import BACKBONES
from genvid.recipes.runs import AdapTokRun
from genvid.tokenizer.adaptok.prior import PriorConfig
from genvid.tokenizer.adaptok.tasks import AdapTokTask, AdversarialAdapTokTask
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.losses import Distortion
from genvid.train.config import TrainConfig
from genvid.train.trainer import Shard, Trainer

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "configs" / "k600" / "tokenizer.yaml"


class EnoughError(Exception):
    """All steps are measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="clips of a micro-batch of each process")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--steps", type=int, default=10, help="that are timed: whole rounds of five")
    parser.add_argument("--plain", action="store_true", help="no discriminator")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    parser.add_argument("--tiny", action="store_true", help="small networks at 32x32: does it run?")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    run = configuration.load(AdapTokRun, RECIPE)
    if options.tiny:
        small = StackConfig(32, 1, 2)
        run = replace(
            run,
            data=replace(run.data, clip=replace(run.data.clip, resolution=(32, 32))),
            model=replace(run.model, resolution=(32, 32), encoder=small, decoder=small),
            objective=replace(run.objective, prior=PriorConfig(small)),
            discriminator=replace(run.discriminator, transformer=small),
        )
    with tempfile.TemporaryDirectory() as folder:
        found = measure(run, options, Path(folder))
    if found is not None:
        print(json.dumps(found, indent=2))
        if options.output:
            options.output.write_text(json.dumps(found, indent=2) + "\n")


def measure(run: AdapTokRun, options: argparse.Namespace, folder: Path) -> dict[str, object] | None:
    """The results, on the main process."""
    torch.manual_seed(0)
    distortion = Distortion(run.distortion.weights, perceptual(folder, options.tiny))
    teacher = None if run.objective.semantic is None else run.objective.semantic.teacher.build()
    if options.plain or run.discriminator is None:
        task = AdapTokTask(run.model, run.objective, distortion, teacher=teacher)
    else:
        task = AdversarialAdapTokTask(run.model, run.objective, distortion, run.discriminator, teacher=teacher)
    cuda = torch.cuda.is_available()
    warm_up, seconds = 10, [0.0, 0.0]
    settings = run.train.optimizers
    train = TrainConfig(
        steps=10**6,
        batch_size=options.batch * options.accumulation * int(os.environ.get("WORLD_SIZE", "1")),
        accumulation=options.accumulation,
        precision="bf16" if cuda else "fp32",
        compile=not options.no_compile,
        activation_checkpointing=options.checkpointing,
        optimizers={"model": settings["generator"]} if len(task.phases) == 1 else settings,
        ema_decay=run.train.ema_decay,
        log_every=10**6,
        save_every=10**6,
    )
    PartialState(cpu=not cuda)
    (shared,) = broadcast_object_list([str(folder)])  # of the first process, as every process has made one
    trainer = Trainer(task, train, Path(shared) / "run", run_config=train)

    def stream(shard: Shard) -> Iterator[list[Batch]]:
        video = torch.rand(options.batch, 3, run.model.frames, *run.model.resolution, device=shard.device) * 2 - 1
        for step in range(warm_up + options.steps):
            if step == warm_up:
                seconds[0] = now()
            own = torch.arange(options.batch * options.accumulation, device=shard.device)
            seeds = own + (step * shard.world_size + shard.rank) * 10**6
            yield [{"video": video, "seed": part} for part in seeds.split(options.batch)]
        seconds[1] = now()
        raise EnoughError

    with suppress(EnoughError):
        trainer.fit(stream)
    accelerator = trainer.accelerator
    memory = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    memories = accelerator.gather(torch.tensor([memory], device=accelerator.device)).tolist()
    each = (seconds[1] - seconds[0]) / options.steps
    if not accelerator.is_main_process:
        return None
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "launch": accelerator.distributed_type.value,
        "processes": accelerator.num_processes,
        "clips of a micro-batch": options.batch,
        "micro-batches": options.accumulation,
        "discriminator": not options.plain,
        "ms a step": 1e3 * each,
        "clips a second": train.batch_size / each,
        "memory, GB": [round(value, 2) for value in memories],
    }


def perceptual(folder: Path, tiny: bool) -> PerceptualDistance:
    """LPIPS, but for its trunk's weights; something small for a trial."""
    if tiny:
        return StructureDistance()
    file = folder / "vgg16.pth"
    state: dict[str, Tensor] = BACKBONES["vgg"].build().state_dict()
    torch.save(state, file)
    return LPIPSConfig("vgg", str(file)).build()


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
