"""Several tokens a step, frames as they come, schedules of guidance: python benchmarks/parallel.py [--tiny]

The model and the rows of benchmarks/sampling.py, random weights, beside the engine of one token a step in the same run.
Times are of the faster of two runs, graphs captured before. Random weights accept guesses of draft heads more often
than trained ones: `tokens a step` is printed beside each time. `mixed` needs no GPU: requests of all kinds under hard
budgets, and how many exceed theirs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from sampling import FULL, TINY, Benchmark, Scale, device_name, milliseconds, parser, peak_memory, row

from genvid import noise
from genvid.ar.draft import DraftConfig, DraftHeads
from genvid.ar.groups import GroupConfig, GroupTransformer
from genvid.ar.row_model import RowModel
from genvid.generation.budget import BudgetConfig, with_budget
from genvid.generation.engine.attention import PlainAttention
from genvid.generation.engine.scheduler import Engine, Request
from genvid.generation.frames import stream_frames
from genvid.generation.guidance import ByTokens, Guidance, PowerCosine
from genvid.generation.pipeline import Job
from genvid.generation.sampler import SamplingConfig
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens.rows import BlockLayout

PARTS = ("one", "many", "guidance", "mixed")
WAYS = ("groups", "draft")
HEADS = 4


@dataclass(frozen=True)
class Way:
    """A way to sample: its name, and what the engine is made of."""

    name: str
    model: RowModel
    draft: DraftHeads | None = None


class ParallelBenchmark(Benchmark):
    """The models of each way."""

    def __init__(self, scale: Scale, arguments: argparse.Namespace) -> None:
        super().__init__(scale, arguments)
        self.groups = (1, 1, 2, 4, 8) if scale is FULL else (1, 2, 4)
        with torch.device(self.device):
            self.draft = DraftHeads(DraftConfig(scale.transformer.width, HEADS)).to(self.dtype).eval()

    def ways(self) -> list[Way]:
        """One token a step first, then the ways of the options."""
        ways = {
            "groups": Way(f"groups {', '.join(map(str, self.groups))}, ...", self.grouped()),
            "draft": Way(f"{HEADS} draft heads", self.model, self.draft),
        }
        return [Way("one token a step", self.model), *(ways[name] for name in self.arguments.ways)]

    def grouped(self) -> GroupTransformer:
        with torch.device("meta"):
            model = GroupTransformer(GroupConfig(self.scale.layout, self.scale.transformer, groups=self.groups))
        model.llama = self.model.llama  # the weights are held once
        shape = model.queries.shape
        model.queries = torch.nn.Parameter(torch.randn(shape, device=self.device, dtype=self.dtype) * 0.02)
        return model.eval()

    def engine_of(self, way: Way, slots: int, guidance: float | Guidance = 1.0) -> Engine:
        """An engine whose graphs of the rows that are measured are captured by running them once."""
        compiled, config = not self.arguments.no_compile, SamplingConfig(guidance=guidance)
        attention = PlainAttention() if self.arguments.attention == "plain" else None
        engine = Engine(
            way.model,
            config,
            slots=slots,
            dtype=self.dtype,
            compiled=compiled,
            attention=attention,
            draft=way.draft,
        )
        start, plan = time.perf_counter(), self.even(self.scale.tokens)
        self.timed(engine, self.requests([plan] * slots, config.guided))
        print(f"# {way.name}, {slots} slots: ready after {time.perf_counter() - start:.0f} s", flush=True)
        return engine


def one(bench: ParallelBenchmark) -> None:
    """One video of every way, then its first frames."""
    plain, engines = 0.0, []
    for way in bench.ways():
        engines.append((way, bench.engine_of(way, 1)))
        plain = rows_at_once(bench, engines[-1][1], way, plain, "0.5 s")
    decoder = tokenizer(bench)
    for way, engine in engines:
        stream(bench, engine, way, decoder)


def many(bench: ParallelBenchmark) -> None:
    """Rows of every slot at once, of every way."""
    plain = 0.0
    for way in bench.ways():
        plain = rows_at_once(bench, bench.engine_of(way, bench.scale.rows), way, plain, "3 times")


def rows_at_once(bench: ParallelBenchmark, engine: Engine, way: Way, plain: float, target: str) -> float:
    """Complete rows, their seconds beside those of one token a step (0: these are they), which are returned."""
    slots, plan = engine.slots.count, bench.even(bench.scale.tokens)
    before = (engine.steps, engine.tokens, engine.row_steps)
    runs = [bench.timed(engine, bench.requests([plan] * slots)) for _ in range(2)]
    steps, tokens, row_steps = engine.steps - before[0], engine.tokens - before[1], engine.row_steps - before[2]
    seconds = min(runs)
    row(
        f"{slots} x {sum(plan)} tokens, {way.name}",
        f"{milliseconds(seconds)}, {slots / seconds:.2f} videos/s",
        f"{tokens / row_steps:.2f} tokens a step, {milliseconds(sum(runs) / steps)} a step",
        f"{(plain or seconds) / seconds:.2f} times",
        target,
    )
    return plain or seconds


def guidance(bench: ParallelBenchmark, slots: int) -> None:
    """A step with each schedule, of one token and of groups."""
    plan = bench.even(bench.scale.tokens)
    for way in bench.ways()[:2]:
        for schedule in (1.5, ByTokens(), PowerCosine()):
            engine = bench.engine_of(way, slots, schedule)
            steps = engine.steps
            seconds = bench.timed(engine, bench.requests([plan] * slots, True))
            name = schedule if isinstance(schedule, float) else type(schedule).__name__
            row(
                f"{slots} x {sum(plan)} tokens, {way.name}, guidance {name}",
                milliseconds(seconds),
                "",
                f"{milliseconds(seconds / (engine.steps - steps))} a step",
            )
            del engine


def tokenizer(bench: ParallelBenchmark) -> AdapTok:
    """AdapTok of the published sizes, or a tiny one, with random weights; float32, as `genvid sample` decodes."""
    layout, full = bench.scale.layout, bench.scale is FULL
    stack = StackConfig(768, 12, 12) if full else StackConfig(16, 1, 2)
    config = AdapTokConfig(
        frames=16,
        resolution=(128, 128) if full else (16, 16),
        patch=(4, 8, 8),
        block_capacity=layout.block_capacity,
        encoder=stack,
        decoder=stack,
        quantizer=VQConfig(codebook_size=layout.codebook_size, code_dim=16),
    )
    with torch.device(bench.device):
        return AdapTok(config).eval()


def stream(bench: ParallelBenchmark, engine: Engine, way: Way, decoder: AdapTok) -> None:
    """Seconds from the request to the first decoded frames on the host, and to the last, of one video."""
    plan, layout, found = bench.even(bench.scale.tokens), bench.scale.layout, []
    job = Job(bench.requests([plan]), lambda _, ids: layout.unpack(ids[None]))
    for _ in range(3):  # the first is a warm-up of the decoder
        bench.wait()
        start, times = time.perf_counter(), []
        for _ in stream_frames(engine, decoder, job):
            times.append(time.perf_counter() - start)
        found.append((times[0], times[-1]))
    first, last = min(found[1:])
    row(f"1 video, frames of its first block, {way.name}", milliseconds(first), "", "", "100 ms")
    row(f"1 video, all frames, {way.name}", milliseconds(last))


def mixed(bench: ParallelBenchmark, count: int) -> None:
    """Requests of all kinds under hard budgets: of each engine and guidance, planned alone, planned together and cut,
    as rows and as streams of blocks."""
    over = done = 0
    kinds = len(bench.ways()) * 2 * 3 * 2
    share = -(-count // kinds)
    for number, way in enumerate(bench.ways()):
        for schedule in (1.0, ByTokens((2.0, 1.0), (2,))):
            config = SamplingConfig(1.5, guidance=schedule)
            engine = Engine(way.model, config, slots=64, dtype=bench.dtype, draft=way.draft)
            for kind in range(3):
                for blocks in (False, True):
                    seed = 10 * (6 * number + 2 * kind + blocks)
                    spent, budget = spend(bench, engine, share, kind, seed, blocks)
                    total = budget.total
                    over += int((spent > budget.tokens_per_video).sum()) if total is None else int(spent.sum() > total)
                    done += len(spent)
    row(f"{done} requests of {kinds} kinds", f"{over} over their budget", "", "", "0")


def spend(
    bench: ParallelBenchmark, engine: Engine, count: int, kind: int, seed: int, blocks: bool
) -> tuple[torch.Tensor, BudgetConfig]:
    """(count,) tokens of the videos of a budget, and the budget."""
    layout = bench.scale.layout
    requests = [
        replace(request, num_blocks=layout.num_blocks, seed=seed * 10**6 + number)
        for number, request in enumerate(bench.requests([()] * count, True))
    ]
    least = layout.num_blocks * layout.sizes[0]
    draws = noise.uniform(noise.sample_seeds(seed, "budgets", torch.arange(1)), "share", 1)
    each = least + int(float(draws) * (layout.num_blocks * layout.largest - least))
    budget = (
        BudgetConfig(tokens_per_video=each, forecast_rows=16),
        BudgetConfig(total=each * count, forecast_rows=16),
        BudgetConfig(tokens_per_video=each, plan=False),
    )[kind]
    budgeted = with_budget(engine, requests, budget)
    ends = last_rows(engine, budgeted) if blocks else dict(engine.run(budgeted))
    return torch.tensor([spent_tokens(layout, ends[number], requests[number]) for number in range(count)]), budget


def last_rows(engine: Engine, requests: Sequence[Request]) -> dict[int, torch.Tensor]:
    return {number: ids for number, ids, last in engine.run_blocks(requests) if last}


def spent_tokens(layout: BlockLayout, ids: torch.Tensor, request: Request) -> int:
    """Codes of a row; its blocks are those that it announces."""
    return int(layout.unpack(ids[None], len(request.prefix)).lengths.sum())


def check(bench: ParallelBenchmark) -> None:
    """The attention of several tokens of a slot against torch's."""
    if bench.device.type != "cuda" or bench.arguments.attention == "plain":
        return
    from genvid.generation.engine.kernels import TritonAttention

    sizes, together, slots = bench.scale.transformer, 15, 5
    width = sizes.width // sizes.heads
    cache = torch.randn(2, slots, sizes.kv_heads, 2112, width, device=bench.device, dtype=bench.dtype)
    qkv = torch.randn(
        slots * together, (sizes.heads + 2 * sizes.kv_heads) * width, device=bench.device, dtype=bench.dtype
    )
    starts = torch.tensor([0, 60, 250, 1000, 2040], device=bench.device)[:, None]
    positions = (starts + torch.arange(together, device=bench.device)).flatten()
    rotary = (torch.rand(2112, width, device=bench.device), torch.rand(2112, width, device=bench.device))
    found = []
    for attention in (PlainAttention(), TritonAttention()):
        own = cache.clone()
        queries = attention.append(qkv, own, None, positions, rotary, together)
        found.append(attention.attend(queries, own, None, positions + 1, 2112, together))
    torch.testing.assert_close(found[1].float(), found[0].float(), atol=2e-2, rtol=2e-2)
    print("# attention of several tokens: as torch's", flush=True)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS, help="beside one token a step")
    options.add_argument("--count", type=int, default=360, help="requests of `mixed`")
    arguments = options.parse_args()
    scale = TINY if arguments.tiny else FULL
    bench = ParallelBenchmark(scale, arguments)
    print(f"# {device_name(bench)}, torch {torch.__version__}")
    row("what", "genvid", "", "beside one token a step", "target")
    row("---", "---", "---", "---", "---")
    parts: dict[str, Callable[[], None]] = {
        "one": lambda: one(bench),
        "many": lambda: many(bench),
        "guidance": lambda: guidance(bench, 1),
        "mixed": lambda: mixed(bench, arguments.count),
    }
    with torch.no_grad():
        for part in PARTS:
            if part in arguments.only:
                parts[part]()
    row("greatest memory", f"{peak_memory(bench):.2f} GB")
    check(bench)


if __name__ == "__main__":
    main()
