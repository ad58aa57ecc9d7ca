"""Speed of AR training on packed rows beside padded ones: [accelerate launch ...] benchmarks/training.py [--tiny]

The 633 M model of AdapTok (arXiv:2505.17011) with random weights, trained by genvid's Trainer: bf16, dropout, compiled
layers, AdamW, clipping, moving average. Rows have 4 blocks of up to 512 tokens, 756 in all on average, and as many
ids as they need; "padded" gives each the width of the longest possible row. Batches wait on the device: no loader is
measured.

Useful tokens are targets, codes and framing; filling and padding count for nothing. MFU is what these tokens need,

    3 * sum over rows of (2 * weights * n + depth * 2 * width * n^2)    operations for a row of n tokens,

per second and process, of the --peak of the device (989 TFLOP/s, dense bf16 of an H100): once forward and twice
backward; `weights` are those of products of matrices, so without the embedding; attention is causal, which halves it.

Settings are measured one after the other; compilation comes before. `--tiny` is a trial on any CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from sampling import FULL, TINY, Scale, varied_lengths
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from genvid.ar.config import ARConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.rows import IGNORED, PackedRows, RowConfig
from genvid.ar.task import ARTask
from genvid.batch import Batch
from genvid.data.loader import step_batches
from genvid.train.config import TrainConfig
from genvid.train.optim import OptimizerConfig
from genvid.train.trainer import Shard, Trainer


class RandomTokens:
    """A token cache of random codes, with the lengths of videos."""

    def __init__(self, scale: Scale, count: int) -> None:
        self.layout = scale.layout
        self.lengths = varied_lengths(scale.layout, scale.mean, count)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        index, seed = item
        generator = torch.Generator().manual_seed(index)
        shape = (self.layout.num_blocks, self.layout.block_capacity)
        return {
            "codes": torch.randint(self.layout.codebook_size, shape, generator=generator),
            "lengths": self.lengths[index],
            "label": torch.tensor(index % self.layout.num_classes),
            "seed": torch.tensor(seed),
        }


class PaddedTask(ARTask):
    """The same rows beside one another, as wide as the longest possible one."""

    def logits(self, batch: Batch) -> Tensor:
        return self.model(batch["tokens"])


def padded(batch: Batch, config: ARConfig) -> Batch:
    """A packed micro-batch -> (B, S) tokens and targets."""
    counts = row_lengths(batch).tolist()
    wide = {}
    for name, filling in (("tokens", config.layout.pad_id), ("targets", IGNORED)):
        rows = batch[name][0, : sum(counts)].split(counts)
        wide[name] = torch.stack(
            [torch.nn.functional.pad(row, (0, config.longest_input - len(row)), value=filling) for row in rows]
        )
    return wide


def row_lengths(batch: Batch) -> Tensor:
    """(B,) tokens of each row, without the filling of the sequence."""
    return batch["starts"][0, : batch["seed"].shape[1] + 1].diff()


@dataclass(frozen=True)
class Setting:
    """Setting of one line of the table."""

    layout: str
    rows: int
    """Rows of a micro-batch."""
    micro_batches: int


@dataclass(frozen=True)
class Measured:
    """A line of the table."""

    layout: str
    rows: int
    micro_batches: int
    processes: int
    launch: str
    tokens_per_step: float
    """Useful ones, of all processes."""
    computed_per_useful: float
    """Positions that are computed for each useful token."""
    step_ms: float
    tokens_per_second: float
    mfu: float
    memory_gb: list[float]
    """Greatest, of each process."""
    setup_seconds: float
    """Until the first timed step: compilation."""


class EnoughError(Exception):
    """All steps are measured."""


class Benchmark:
    """One model size, one table."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.scale = TINY if arguments.tiny else FULL
        depth = arguments.depth or self.scale.transformer.depth
        sizes = replace(self.scale.transformer, depth=depth, dropout=arguments.dropout)
        self.config = ARConfig(self.scale.layout, sizes)
        self.state = PartialState(cpu=not torch.cuda.is_available())
        self.cache = RandomTokens(self.scale, 4096)

    @property
    def cuda(self) -> bool:
        return self.state.device.type == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def say(self, line: str) -> None:
        if self.state.is_main_process:
            print(line, flush=True)

    def task(self, layout: str, config: ARConfig) -> ARTask:
        torch.manual_seed(0)
        with self.state.device:
            model = BlockTransformer(config)
        return (ARTask if layout == "packed" else PaddedTask)(model)

    def batches(self, setting: Setting, shard: Shard, steps: int, multiple: int) -> Iterator[list[Batch]]:
        """The micro-batches of the first steps, on the CPU."""
        stream = step_batches(
            PackedRows(self.cache, self.config, RowConfig(token_multiple=multiple)),
            batch_size=setting.rows * setting.micro_batches * shard.world_size,
            seed=0,
            rank=shard.rank,
            world_size=shard.world_size,
            micro_batches=setting.micro_batches,
        )
        return (next(stream) for _ in range(steps))

    def operations(self, counts: Tensor) -> float:
        """Of rows of (B,) tokens, forward and backward."""
        sizes, n = self.config.transformer, counts.double()
        attention = 2 * sizes.width + 2 * sizes.width * sizes.kv_heads // sizes.heads
        weights = sizes.depth * sizes.width * (attention + 3 * sizes.hidden)
        weights += sizes.width * self.config.layout.num_outputs
        return float(3 * (2 * weights * n + sizes.depth * 2 * sizes.width * n**2).sum())

    def measure(self, setting: Setting, profiler: profile | None = None) -> Measured:
        """Train a few steps; torch.OutOfMemoryError where they do not fit."""
        arguments, width = self.arguments, self.config.longest_input
        begun = time.perf_counter()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        config = TrainConfig(
            steps=10**6,
            batch_size=setting.rows * setting.micro_batches * self.state.num_processes,
            accumulation=setting.micro_batches,
            precision="bf16" if self.cuda else "fp32",
            compile=not arguments.no_compile,
            activation_checkpointing=arguments.checkpointing,
            optimizers={"model": OptimizerConfig(lr=1e-4, weight_decay=0.05, muon=arguments.muon)},
            ema_decay=None if arguments.no_average else 0.9999,
            log_every=10**6,
            save_every=10**6,
        )
        seconds, done = [0.0, 0.0], torch.zeros(3, dtype=torch.float64)

        def stream(shard: Shard) -> Iterator[list[Batch]]:
            waiting = []
            steps, multiple = arguments.warm_up + arguments.steps, arguments.token_multiple
            for number, step in enumerate(self.batches(setting, shard, steps, multiple)):
                for batch in step if number >= arguments.warm_up else ():
                    counts = row_lengths(batch)
                    useful = (batch["targets"] != IGNORED).sum()
                    computed = batch["tokens"].numel() if setting.layout == "packed" else width * len(counts)
                    done.add_(torch.tensor([useful, computed, self.operations(counts)]))
                if setting.layout == "padded":
                    step = [padded(batch, self.config) for batch in step]
                waiting.append([{name: value.to(shard.device) for name, value in batch.items()} for batch in step])
            yield from waiting[: arguments.warm_up]
            self.wait()
            if profiler is not None:
                profiler.start()
            seconds[0] = time.perf_counter()
            yield from waiting[arguments.warm_up :]
            self.wait()
            seconds[1] = time.perf_counter()
            if profiler is not None:
                profiler.stop()
            raise EnoughError

        with tempfile.TemporaryDirectory() as own:
            (folder,) = broadcast_object_list([own])
            task = self.task(setting.layout, self.config)
            trainer = Trainer(task, config, Path(folder) / "run", run_config=config)
            with suppress(EnoughError):
                trainer.fit(stream)
            accelerator = trainer.accelerator
            memory = torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0
            memories = accelerator.gather(torch.tensor([memory], device=accelerator.device)).tolist()
            useful, computed, operations = accelerator.reduce(done.to(accelerator.device), "sum").tolist()
        elapsed = seconds[1] - seconds[0]
        return Measured(
            **asdict(setting),
            processes=accelerator.num_processes,
            launch=accelerator.distributed_type.value,
            tokens_per_step=useful / arguments.steps,
            computed_per_useful=computed / useful,
            step_ms=1e3 * elapsed / arguments.steps,
            tokens_per_second=useful / elapsed,
            mfu=operations / elapsed / accelerator.num_processes / (arguments.peak * 1e12),
            memory_gb=[round(value, 2) for value in memories],
            setup_seconds=seconds[0] - begun,
        )

    def check(self) -> None:
        """The attention that is measured, in bf16, against padded rows in float32, on a model of two layers."""
        config = replace(self.config, transformer=replace(self.config.transformer, depth=2, dropout=0.0))
        packed, reference = self.task("packed", config), self.task("padded", config)
        shard = Shard(0, 1, 0, 1, self.state.device)
        # Filled up by whole rows, and by empty ones.
        (step,) = self.batches(Setting("packed", 6, 1), shard, 1, 4 * config.longest_input)
        losses, gradients = [], []
        for task, batch, half in ((packed, step[0], self.cuda), (reference, padded(step[0], config), False)):
            moved = {name: value.to(shard.device) for name, value in batch.items()}
            with torch.autocast(shard.device.type, torch.bfloat16, enabled=half):
                loss = task(moved, "model", 0, {}).loss / (batch["targets"] != IGNORED).sum()
            loss.backward()
            losses.append(loss.detach().item())
            gradients.append(torch.cat([p.grad.flatten() for p in task.parameters()]))
        angle = torch.nn.functional.cosine_similarity(*gradients, 0)
        self.say(f"# packed loss {losses[0]:.5f}, padded float32 {losses[1]:.5f}; cosine of gradients {angle:.5f}")
        if abs(losses[0] - losses[1]) > 2e-3 * losses[1] or not angle > 0.99:
            raise SystemExit("packed rows do not compute what padded rows do")

    def profile(self, setting: Setting) -> None:
        """Where the time of the timed steps goes."""
        kind = "cuda" if self.cuda else "cpu"
        profiler = profile(activities=[ProfilerActivity.CUDA if self.cuda else ProfilerActivity.CPU])
        self.measure(setting, profiler)
        self.say(
            profiler.key_averages().table(sort_by=f"self_{kind}_time_total", row_limit=30, max_name_column_width=90)
        )


COLUMNS = "rows", "processes", "micro-batches", "tokens/step", "ms/step", "tokens/s", "MFU", "computed/useful", "memory"


def line(found: Measured) -> str:
    cells = (
        f"{found.layout} x {found.rows}",
        f"{found.processes} {found.launch}",
        str(found.micro_batches),
        f"{found.tokens_per_step:,.0f}",
        f"{found.step_ms:.1f}",
        f"{found.tokens_per_second:,.0f}",
        f"{100 * found.mfu:.1f} %",
        f"{found.computed_per_useful:.2f}",
        ", ".join(f"{value:.1f}" for value in found.memory_gb) + " GB",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--packed", type=int, nargs="*", help="rows of a packed micro-batch, several settings (32)")
    parser.add_argument("--padded", type=int, nargs="*", help="rows of a padded micro-batch, several settings (none)")
    parser.add_argument("--micro-batches", type=int, default=2, help="of each process and step (2)")
    parser.add_argument("--steps", type=int, default=6, help="that are timed (6)")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them (3)")
    parser.add_argument("--token-multiple", type=int, default=128, help="packed sequences are filled up to it (128)")
    parser.add_argument("--depth", type=int, help="fewer layers: a quick trial")
    parser.add_argument("--dropout", type=float, default=0.1, help="as published: 0.1")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of the device (989: H100, dense bf16)")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-average", action="store_true", help="without the moving average")
    parser.add_argument("--no-check", action="store_true", help="without comparing packed with padded rows first")
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    parser.add_argument("--muon", action="store_true")
    parser.add_argument("--profile", action="store_true", help="the kernels of the first setting, measuring nothing")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    bench = Benchmark(arguments)
    packed = arguments.packed if arguments.packed is not None else [4 if arguments.tiny else 32]
    settings = [Setting("packed", rows, arguments.micro_batches) for rows in packed]
    settings += [Setting("padded", rows, arguments.micro_batches) for rows in arguments.padded or []]
    name = torch.cuda.get_device_name() if bench.cuda else "CPU"
    bench.say(f"# {name}, torch {torch.__version__}, depth {bench.config.transformer.depth}")
    if not arguments.no_check:
        bench.check()
    if arguments.profile:
        return bench.profile(settings[0])
    bench.say(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    found: list[Measured] = []
    for setting in settings:
        try:
            found.append(bench.measure(setting))
            bench.say(f"{line(found[-1])} <!-- ready after {found[-1].setup_seconds:.0f} s -->")
        except torch.OutOfMemoryError:
            bench.say(f"| {setting.layout} x {setting.rows} | out of memory |")
        gc.collect()
        if bench.cuda:
            torch.cuda.empty_cache()
    if arguments.output and bench.state.is_main_process:
        record = {"device": name, "torch": torch.__version__, "measured": [asdict(value) for value in found]}
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
