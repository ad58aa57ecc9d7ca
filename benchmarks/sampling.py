"""Speed of sampling beside its limits and beside transformers: python benchmarks/sampling.py [--tiny]

The 633 M model of AdapTok (arXiv:2505.17011) with random weights, rows of 4 blocks of up to 512 tokens. Each time is
printed beside the least one in which its bytes can be read: weights once a step, and the filled part of the keys and
values. Everything is measured in one run, after a warm-up, and ends with the greatest memory. `--tiny` is a trial on
any CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.profiler import ProfilerActivity
from transformers import LlamaForCausalLM

from genvid import noise
from genvid.ar.config import PRESETS, ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.generation.budget import BudgetConfig, with_budget
from genvid.generation.engine.attention import Attention, PlainAttention
from genvid.generation.engine.network import SlotNetwork
from genvid.generation.engine.scheduler import Engine, Request
from genvid.generation.sampler import SamplingConfig
from genvid.tokens.rows import BlockLayout


@dataclass(frozen=True)
class Scale:
    """Sizes of the measured model and its rows."""

    transformer: TransformerConfig
    layout: BlockLayout
    rows: int
    tokens: int
    marks: tuple[int, ...]
    """Lengths at which a step is timed."""
    videos: int
    requests: int
    mean: int
    """Tokens of a video of varying length."""


FULL = Scale(
    transformer=replace(PRESETS["LP"], max_positions=2052),
    layout=BlockLayout(8192, 101, 4, 512, sizes=tuple(range(64, 513, 64))),
    rows=64,
    tokens=1024,
    marks=(128, 512, 1024, 2000),
    videos=2000,
    requests=1000,
    mean=756,
)
TINY = Scale(
    transformer=TransformerConfig(width=32, depth=2, heads=2, kv_heads=2, hidden=64, max_positions=36),
    layout=BlockLayout(16, 3, 4, 8, sizes=tuple(range(1, 9))),
    rows=4,
    tokens=16,
    marks=(4, 16, 30),
    videos=24,
    requests=24,
    mean=12,
)


class Benchmark:
    """One model, one table."""

    def __init__(self, scale: Scale, arguments: argparse.Namespace) -> None:
        self.scale, self.arguments = scale, arguments
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        with torch.device(self.device):
            self.model = BlockTransformer(ARConfig(scale.layout, scale.transformer)).to(self.dtype).eval()
        self.weights = sum(p.numel() for p in self.model.parameters()) - self.model.backbone.embed_tokens.weight.numel()

    def engine(self, slots: int, guidance: float = 1.0) -> Engine:
        attention = PlainAttention() if self.arguments.attention == "plain" else None
        compiled = not self.arguments.no_compile
        config = SamplingConfig(guidance=guidance)
        engine = Engine(self.model, config, slots=slots, dtype=self.dtype, compiled=compiled, attention=attention)
        start = time.perf_counter()
        engine.slots.warm_up()
        self.wait()
        print(f"# {slots} slots, guidance {guidance:g}: ready after {time.perf_counter() - start:.0f} s", flush=True)
        return engine

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def limit(self, rows: int, length: float) -> float:
        """Seconds in which the bytes of a step can be read: weights, and `length` positions of every row."""
        sizes = self.scale.transformer
        cache = 2 * sizes.depth * sizes.kv_heads * (sizes.width // sizes.heads) * rows * length
        return (self.weights + cache) * self.dtype.itemsize / (self.arguments.bandwidth * 1e12)

    def requests(self, lengths: Sequence[Sequence[int]], guidance: bool = False) -> list[Request]:
        """Requests of classes, with blocks of these lengths."""
        layout = self.scale.layout
        return [
            Request(
                (layout.num_outputs + number % layout.num_classes,),
                number,
                len(plan),
                (layout.null_id,) if guidance else None,
                tuple(plan) or None,
            )
            for number, plan in enumerate(lengths)
        ]

    def timed(self, engine: Engine, requests: Sequence[Request]) -> float:
        """Seconds of a run."""
        self.wait()
        start = time.perf_counter()
        for _ in engine.run(requests):
            pass
        self.wait()
        return time.perf_counter() - start

    def even(self, tokens: int) -> list[int]:
        """Allowed lengths of the blocks of a video of about so many tokens."""
        layout = self.scale.layout
        return [max(size for size in layout.sizes if size <= max(tokens // layout.num_blocks, layout.sizes[0]))] * 4

    def varying(self, count: int) -> list[list[int]]:
        return varied_lengths(self.scale.layout, self.scale.mean, count).tolist()


def varied_lengths(layout: BlockLayout, mean: float, count: int) -> torch.Tensor:
    """(count, 4) lengths of blocks: skewed to the first, as on UCF-101, and varying by a factor of about ten."""
    seeds = noise.sample_seeds(0, "lengths", torch.arange(count))
    bell = (noise.uniform(seeds, "video", 6).sum(1) - 3) * 2**0.5  # variance 1
    shares = torch.tensor([1.9, 0.9, 0.65, 0.55]) * noise.uniform(seeds, "block", 4) ** 0.3 * 1.25
    sizes = torch.tensor(layout.sizes)

    def lengths(scale: float) -> torch.Tensor:
        wanted = scale * torch.exp(0.6 * bell)[:, None] * shares * mean / 4
        return sizes[(wanted[..., None] - sizes).abs().argmin(-1)]

    low, high = 0.1, 10.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if lengths(middle).sum(1).double().mean() < mean else (low, middle)
    return lengths(high)


def row(name: str, value: str, limit: str = "", other: str = "", target: str = "") -> None:
    print(f"| {name} | {value} | {limit} | {other} | {target} |", flush=True)


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


def check(bench: Benchmark) -> None:
    """The attention that is measured against torch's, where they differ."""
    if bench.device.type != "cuda" or bench.arguments.attention == "plain":
        return
    from genvid.generation.engine.kernels import TritonAttention

    sizes = bench.scale.transformer
    width, rows = sizes.width // sizes.heads, 7
    cache = torch.randn(2, rows, sizes.kv_heads, 2112, width, device=bench.device, dtype=bench.dtype)
    qkv = torch.randn(rows, (sizes.heads + 2 * sizes.kv_heads) * width, device=bench.device, dtype=bench.dtype)
    positions = torch.tensor([0, 1, 63, 255, 256, 1000, 2047], device=bench.device)
    rotary = (torch.rand(2112, width, device=bench.device), torch.rand(2112, width, device=bench.device))
    found = []
    for attention in (PlainAttention(), TritonAttention()):
        own = cache.clone()
        queries = attention.append(qkv, own, None, positions, rotary)
        found.append((own, attention.attend(queries, own, None, positions + 1, 2112)))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), atol=2e-2, rtol=2e-2)
    print("# attention: as torch's", flush=True)
    check_single(bench, TritonAttention())


@torch.no_grad()
def check_single(bench: Benchmark, attention: Attention) -> None:
    """The kernels of one row against torch in float32: in float32 equal, in bf16 no farther off than those of many."""
    from genvid.generation.engine import single_row

    single_row.OVERLAP = not bench.arguments.no_overlap
    exact = SlotNetwork(bench.model, 1, dtype=torch.float32, attention=PlainAttention())
    exact.cache.normal_()
    networks = {
        "one, float32": SlotNetwork(bench.model, 1, dtype=torch.float32),
        "one": SlotNetwork(bench.model, 1, dtype=bench.dtype),
        "many": SlotNetwork(bench.model, 1, dtype=bench.dtype, attention=attention),
    }
    errors = dict.fromkeys(networks, 0.0)
    for position in (0, *bench.scale.marks):
        at, limit = torch.tensor([position], device=bench.device), min(exact.capacity, max(256, 2 * position))
        wanted = exact.logits(exact(at, at, at + 1, limit))
        for name, network in networks.items():
            network.cache.copy_(exact.cache)
            error = network.logits(network(at, at, at + 1, limit)) - wanted
            errors[name] = max(errors[name], float(error.norm() / wanted.norm()))
    print("# one row beside torch in float32, relative error:", {k: f"{v:.1e}" for k, v in errors.items()}, flush=True)
    assert errors["one, float32"] < 1e-4
    assert errors["one"] < 1.5 * errors["many"]


def transformers_seconds(bench: Benchmark, rows: int, tokens: int) -> tuple[float, float]:
    """Seconds per step, and of the first call after compilation, of transformers' generate with a static cache."""
    llama: LlamaForCausalLM = bench.model.llama
    first = bench.scale.layout.num_outputs
    prompt = torch.full((rows, 1), first, device=bench.device)

    def run() -> float:
        bench.wait()
        start = time.perf_counter()
        llama.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            top_k=0,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            cache_implementation="static",
            pad_token_id=bench.scale.layout.pad_id,
        )
        bench.wait()
        return time.perf_counter() - start

    for _ in range(2):
        run()
    seconds = run()
    return seconds / tokens, seconds


def steps(bench: Benchmark, engine: Engine, rows: int, guidance: float, target: str) -> float:
    """Whole rows of one length, then single steps at marked lengths. Seconds per step."""
    scale, halves = bench.scale, 1 if guidance == 1.0 else 2
    plan = bench.even(scale.tokens)
    seconds = bench.timed(engine, bench.requests([plan] * rows, guidance != 1.0))
    made = sum(plan) + len(plan)
    other = ""
    if guidance == 1.0 and not bench.arguments.no_transformers:
        other = milliseconds(transformers_seconds(bench, rows, scale.tokens)[0])
    name = f"{rows} rows x {sum(plan)} tokens, guidance {guidance:g}, per step"
    row(name, milliseconds(seconds / made), milliseconds(bench.limit(rows * halves, made / 2)), other, target)
    for mark in scale.marks:
        value = at_length(bench, engine, mark)
        row(
            f"{rows} rows, guidance {guidance:g}, step at length {mark}",
            value,
            milliseconds(bench.limit(rows * halves, mark)),
        )
    if bench.arguments.profile:
        profile(bench, engine, scale.marks[len(scale.marks) // 2])
    return seconds / made


def hold_at(bench: Benchmark, engine: Engine, length: int) -> None:
    """Set the state of all rows to one length; they are never continued."""
    slots, layout = engine.slots, bench.scale.layout
    grammar, state = slots.sync()
    grammar.zero_()
    grammar[2], grammar[3] = -1, layout.num_blocks  # ANNOUNCED, NUM_BLOCKS
    grammar[5:] = -2  # WAIT
    state.zero_()
    state[2] = length - 1  # POSITION
    slots.write(grammar, state)
    for _ in range(3):
        slots.step(length)
    bench.wait()


def at_length(bench: Benchmark, engine: Engine, length: int, repeats: int = 50) -> str:
    """A step of rows that are all of one length."""
    hold_at(bench, engine, length)
    start = time.perf_counter()
    for _ in range(repeats):
        engine.slots.step(length)
    bench.wait()
    return milliseconds((time.perf_counter() - start) / repeats)


def profile(bench: Benchmark, engine: Engine, length: int, repeats: int = 20, shown: int = 12) -> None:
    """The kernels of a step (on a CPU the operators) that take the most time."""
    on_gpu = bench.device.type == "cuda"
    hold_at(bench, engine, length)
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(repeats):
            engine.slots.step(length)
        bench.wait()
    spent = sorted(
        ((e.self_device_time_total if on_gpu else e.self_cpu_time_total, e.count, e.key) for e in found.key_averages()),
        reverse=True,
    )
    total, count = sum(each[0] for each in spent) / repeats, sum(each[1] for each in spent) / repeats
    print(f"# step at length {length}: {count:.0f} kernels, {total:.0f} us (those that overlap count twice)")
    for time_spent, count, name in spent[:shown]:
        print(f"# {time_spent / repeats:9.1f} us = {count / repeats:6.1f} x {time_spent / count:7.2f} us  {name[:80]}")


def varying_lengths(bench: Benchmark, engine: Engine, peak: float) -> None:
    """Continuous batching against fixed batches, on the same engine."""
    scale, lengths = bench.scale, bench.varying(bench.scale.videos)
    requests = bench.requests(lengths)
    tokens = sum(map(sum, lengths))
    memory = peak_memory(bench)
    seconds = bench.timed(engine, requests)
    fixed = sum(
        bench.timed(engine, requests[start : start + scale.rows]) for start in range(0, len(requests), scale.rows)
    )
    mean = tokens / len(lengths)
    row(
        f"{len(lengths)} videos of {mean:.0f} tokens on average, {scale.rows} slots",
        f"{len(lengths) / seconds:.2f} videos/s",
        f"{1 / bench.limit(scale.rows, mean / 2) * scale.rows / mean:.2f} videos/s",
        f"{len(lengths) / fixed:.2f} videos/s in fixed batches: {fixed / seconds:.2f} times",
        "1.6 times",
    )
    share = tokens / seconds / peak
    row("the same", f"{tokens / seconds:,.0f} tokens/s", "", f"peak {peak:,.0f}: {100 * share:.0f} %", "85 %")
    row("memory before and after", f"{memory:.2f} GB, {peak_memory(bench):.2f} GB", "", "", "flat")


def one_video(bench: Benchmark, engine: Engine) -> None:
    """Latency of the first block of one video, and the speed of the complete video."""
    plan = bench.even(bench.scale.tokens)
    whole, first = bench.requests([plan])[0], bench.requests([plan[:1]])[0]
    bench.timed(engine, [whole])
    seconds, start = bench.timed(engine, [whole]), bench.timed(engine, [first])
    made = sum(plan) + len(plan)
    theirs = (float("nan"), float("nan"))
    if not bench.arguments.no_transformers:
        theirs = (transformers_seconds(bench, 1, plan[0])[1], transformers_seconds(bench, 1, made)[1])
    limits = [tokens * bench.limit(1, tokens / 2) for tokens in (plan[0], made)]
    row("1 video, tokens of its first block", milliseconds(start), milliseconds(limits[0]), milliseconds(theirs[0]))
    row("1 video, all tokens", milliseconds(seconds), milliseconds(limits[1]), milliseconds(theirs[1]))
    row("1 video", f"{made / seconds:,.0f} tokens/s", f"{made / limits[1]:,.0f}", f"{made / theirs[1]:,.0f} tokens/s")


def spending(engine: Engine, requests: Sequence[Request]) -> torch.Tensor:
    """(N,) tokens of each request's blocks."""
    rows = dict(engine.run(requests))
    given = [len(request.prefix) + request.num_blocks for request in requests]
    return torch.tensor([len(rows[number]) - count for number, count in enumerate(given)])


def budgets(bench: Benchmark, engine: Engine) -> None:
    """Planned generation: violations, and how much of the budget is used."""
    scale, layout = bench.scale, bench.scale.layout
    requests = bench.requests([()] * scale.requests)
    requests = [replace(request, num_blocks=layout.num_blocks) for request in requests]
    free = spending(engine, requests)
    wanted = float(free.double().mean())
    for share in (0.3, 0.5, 0.7):
        each = int(share * wanted / layout.sizes[0]) * layout.sizes[0]
        group = min(scale.rows, 32)
        for name, budget in (
            ("each video", BudgetConfig(tokens_per_video=each)),
            ("in all", BudgetConfig(total=each * len(requests), group_size=group)),
            ("each video, cut", BudgetConfig(tokens_per_video=each, plan=False)),
        ):
            start = time.perf_counter()
            spent = spending(engine, with_budget(engine, requests, budget))
            seconds = time.perf_counter() - start
            over = int((spent > each).sum()) if budget.total is None else int(spent.sum() > budget.total)
            # Usable tokens: all of a total; of a budget per video at most the tokens of the video without a budget.
            usable = each * len(spent) if budget.total is not None else int(free.clamp(max=each).sum())
            row(
                f"{len(spent)} requests, {each} tokens ({name}); free mean {wanted:.0f}",
                f"{over} over budget, {100 * spent.sum() / usable:.1f} % of the usable tokens used",
                "",
                f"{len(spent) / seconds:.2f} videos/s",
                "0, 97 %",
            )


def peak_memory(bench: Benchmark) -> float:
    """GB, the greatest so far."""
    return torch.cuda.max_memory_allocated() / 1e9 if bench.device.type == "cuda" else float("nan")


def device_name(bench: Benchmark) -> str:
    return torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of every benchmark of this model."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tiny", action="store_true", help="small sizes: does it run?")
    options.add_argument("--attention", choices=["triton", "plain"], default="triton", help="plain: torch's")
    options.add_argument("--no-compile", action="store_true", help="CUDA graphs of uncompiled parts")
    options.add_argument("--bandwidth", type=float, default=3.0, help="TB/s that the limits assume (3.0)")
    return options


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=["steps", "guided", "single", "varying", "budgets"])
    options.add_argument("--no-transformers", action="store_true", help="leave transformers out")
    options.add_argument("--no-overlap", action="store_true", help="one row: kernels one after another")
    options.add_argument("--profile", action="store_true", help="also print the kernels of a step")
    arguments = options.parse_args()
    bench = Benchmark(TINY if arguments.tiny else FULL, arguments)
    chosen = arguments.only or ["steps", "guided", "single", "varying", "budgets"]
    count = sum(p.numel() for p in bench.model.parameters())
    print(f"# {device_name(bench)}, torch {torch.__version__}, {count / 1e6:.1f} M parameters")
    check(bench)
    row("what", "genvid", "limit of the bytes", "beside it", "target")
    row("---", "---", "---", "---", "---")
    rows = bench.scale.rows
    if {"steps", "varying", "budgets"} & set(chosen):
        engine = bench.engine(rows)
        parts: dict[str, Callable[[], object]] = {
            "varying": lambda: varying_lengths(bench, engine, peak),
            "budgets": lambda: budgets(bench, engine),
        }
        peak = rows / steps(bench, engine, rows, 1.0, "3.5 ms")
        for part in ("varying", "budgets"):
            if part in chosen:
                parts[part]()
        del engine, parts
    if "guided" in chosen:
        steps(bench, bench.engine(rows, guidance=1.5), rows, 1.5, "6.5 ms")
    if "single" in chosen:
        engine = bench.engine(1)
        steps(bench, engine, 1, 1.0, "1 ms")
        one_video(bench, engine)
    row("greatest memory", f"{peak_memory(bench):.2f} GB")


if __name__ == "__main__":
    main()
