"""Frames a second of a tokenizer on streams, beside its limit: python benchmarks/streaming.py [--published-size]

One block after the other, as `genvid encode` and `genvid decode` do it: frames to tokens without and with the scorer
that holds a budget of half the tokens, and tokens to frames of all and of half the tokens. Frames are noise and wait on
the device. The limit of a block is its floating-point operations at the rate of a large matrix product, or its weights
read once at the rate of a large copy, whichever takes longer; both rates are measured in the same run. The last table
has the shares of the operations in the time of one stream.

`--published-size`: random weights in the sizes of recipes/configs/k600 with rotary geometry, in place of a tokenizer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import genvid
from genvid import config
from genvid.device import device
from genvid.tokenizer.adaptok.config import AdapTokConfig, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig, ScorerPredictor
from genvid.tokenizer.adaptok.stream import StreamBudget, StreamDecoder, StreamEncoder
from genvid.tokenizer.layers import StackConfig

RECIPES = Path(__file__).resolve().parents[1] / "recipes/configs/k600"
FRAMES_PER_SECOND = 25
"""Of real time."""
BLOCKS = 5
"""Of a stream that are timed together. The first ones are not counted: they fill its window."""
OPERATIONS = {"aten::mm": "products", "aten::addmm": "products", "aten::bmm": "products", "aten::baddbmm": "products"}
"""By name in the profile; attention by its beginning."""


@dataclass(frozen=True)
class Case:
    """One way of coding `streams` streams."""

    name: str
    streams: int
    networks: tuple[nn.Module, ...]
    """Whose weights are read for each block."""
    step: Callable[[], object]
    """Go on by a block."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", default="genvid-tiny", help="folder or name, with a scorer")
    parser.add_argument("--published-size", action="store_true", help="random weights in the published sizes")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16], help="side by side")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16 (the commands compute in float32)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    predictor = published_size() if options.published_size else load(options.tokenizer)
    for network in (predictor.tokenizer, predictor.scorer):
        network.requires_grad_(False)  # else the counter of operations looks for gradients
    frames = predictor.tokenizer.spec.frames_per_block
    with torch.inference_mode(), torch.autocast(device().type, torch.bfloat16, enabled=options.bf16):
        products, copies = rates()
        print(f"{device_name()}, {products / 1e12:.2f} TFLOP/s in products, {copies / 1e9:.0f} GB/s in copies")
        print(f"{'':24} streams  ms/block  frames/s  x real time  GFLOP/block  limit in ms: products, weights")
        for streams in options.streams:
            for case in cases(predictor, streams):
                seconds = time_of_step(case.step, options.seconds)
                work, weights = flops(case.step), weight_bytes(case.networks)
                speed = streams * frames / seconds
                print(
                    f"{case.name:24} {streams:7} {1e3 * seconds:9.2f} {speed:9.0f} {speed / FRAMES_PER_SECOND:12.1f} "
                    f"{work / 1e9:12.1f} {1e3 * work / products:21.2f} {1e3 * weights / copies:8.2f}",
                    flush=True,
                )
        for case in cases(predictor, 1):
            print(f"{case.name:24} " + ", ".join(f"{part} {share}" for part, share in profile(case.step).items()))


def load(source: str) -> ScorerPredictor:
    loaded = genvid.load(source)
    predictor = getattr(loaded, "predictor", None)
    if not isinstance(predictor, ScorerPredictor) or predictor.tokenizer.window is None:
        raise SystemExit(f"{source} is not an AdapTok of rotary geometry with a scorer: give another --tokenizer")
    return predictor


def published_size() -> ScorerPredictor:
    """Random weights."""
    model, scorer = (yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in ("tokenizer", "scorer"))
    torch.manual_seed(0)
    sizes = replace(config.decode(AdapTokConfig, model["model"]), pooled_queries=True, geometry=RotaryGeometry())
    network, lengths = StackConfig(**scorer["model"]), tuple(scorer["sizes"])
    scorer_sizes = ScorerConfig.for_tokenizer(sizes, network, sizes=lengths, metric="lpips", gains=scorer["gains"])
    return ScorerPredictor(AdapTok(sizes).eval().to(device()), Scorer(scorer_sizes).eval().to(device()))


def cases(predictor: ScorerPredictor, streams: int) -> Iterator[Case]:
    """Each begins its streams when it is drawn."""
    tokenizer, scorer = predictor.tokenizer, predictor.scorer
    spec, blocks = tokenizer.spec, tokenizer.config.grid[0]
    half = spec.block_capacity // 2
    video = torch.rand(streams, 3, spec.frames_per_block, *spec.resolution, device=device()) * 2 - 1
    encoder, cut = StreamEncoder(tokenizer), StreamEncoder(tokenizer, StreamBudget(predictor, half * blocks, blocks))
    networks = tokenizer.patches, tokenizer.encoder, tokenizer.quantizer
    yield Case("encode", streams, networks, lambda: encoder(video))
    yield Case("encode, scorer and budget", streams, (*networks, scorer), lambda: cut(video))
    tokens = tokenizer.encode(video)
    few = tokens.tail_drop(torch.full_like(tokens.lengths, half))
    networks = tokenizer.quantizer, tokenizer.decoder, tokenizer.output
    for name, given in (("decode", tokens), ("decode, half the tokens", few)):
        decoder = StreamDecoder(tokenizer)
        yield Case(name, streams, networks, lambda given=given, decoder=decoder: decoder(given))


def time_of_step(step: Callable[[], object], seconds: float) -> float:
    """Median seconds of a step, of rounds over about so many."""
    rounds, start = list[float](), now()
    while len(rounds) < 2 or now() - start < seconds:
        begin = now()
        for _ in range(BLOCKS):
            step()
        rounds.append((now() - begin) / BLOCKS)
    return statistics.median(rounds[1:])


def rates() -> tuple[float, float]:
    """Floating-point operations a second of a large matrix product, and bytes a second of a large copy, read alone."""
    size, count = (8192, 2**29) if device().type == "cuda" else (2048, 2**26)
    factor, source = torch.randn(size, size, device=device()), torch.zeros(count, device=device())
    target = torch.empty_like(source)
    product = least_seconds(lambda: factor @ factor)
    copy = least_seconds(lambda: target.copy_(source))
    return 2 * size**3 / product, 2 * source.nbytes / copy


def least_seconds(step: Callable[[], object]) -> float:
    times = []
    for _ in range(10):
        start = now()
        step()
        times.append(now() - start)
    return min(times)


def flops(step: Callable[[], object]) -> int:
    """Of the products of a step."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def weight_bytes(networks: tuple[nn.Module, ...]) -> int:
    return sum(weight.nbytes for network in networks for weight in network.parameters())


def profile(step: Callable[[], object]) -> dict[str, str]:
    """Shares of kinds of operations in the time of a step in which the device is busy, and of that in all of it."""
    cuda, activity = device().type == "cuda", torch.profiler.ProfilerActivity
    seconds = time_of_step(step, 0.5)
    with torch.profiler.profile(activities=[activity.CPU, *([activity.CUDA] if cuda else [])]) as profiled:
        for _ in range(BLOCKS):
            step()
        now()
    spent = {"products": 0.0, "attention": 0.0, "others": 0.0}
    kernels = 0
    for event in profiled.key_averages():
        if event.device_type == torch.autograd.DeviceType.CPU:
            attention = event.key.startswith("aten::_scaled_dot_product")
            kind = "attention" if attention else OPERATIONS.get(event.key, "others")
            spent[kind] += event.self_device_time_total if cuda else event.self_cpu_time_total
        else:
            kernels += event.count
    busy = sum(spent.values())
    shares = {kind: f"{time / busy:.0%}" for kind, time in spent.items()}
    if cuda:
        shares |= {"kernels a block": str(kernels // BLOCKS), "device busy": f"{busy / BLOCKS / 1e6 / seconds:.0%}"}
    return shares


def device_name() -> str:
    return torch.cuda.get_device_name() if device().type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def now() -> float:
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
