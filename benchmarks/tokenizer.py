"""Speed of a tokenizer on clips and streams, beside its limit: python benchmarks/tokenizer.py [--published-size]

Clips: as many at once as `--clips` names, to tokens without and with the scorer, by the threshold rule, by the
published program of one block after the other and by the joint program, whose tokens then go back to frames. Streams:
one block after the other, as `genvid encode` and `genvid decode` do it: frames to tokens without and with the scorer
that holds a budget of half the tokens, and tokens to frames of all and of half the tokens. Frames are noise and wait on
the device.

The limit of a step is its floating-point operations at the rate of a large matrix product, or its weights read once at
the rate of a large copy, whichever takes longer; both rates are measured in the same run. MFU is the share of the
former rate that the step reaches; operations on padding count where a step does them, but decoding in bfloat16 on a
GPU does none, nor does scoring more than a few clips. The last table has the shares of the operations in the time of
one clip and one stream.

`--published-size`: random weights in the sizes of recipes/configs/k600 in place of a tokenizer: clips with its absolute
geometry, streams with rotary geometry. The published code (as released, eager, fp16, one H200) takes 389 ms to encode
128 clips, 1,994 with its scorer and integer program, and 328 to decode 1,020 tokens of each; for one clip 5.9, 75, 9.5.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from unittest.mock import patch

import torch
import yaml
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import genvid
from genvid import config
from genvid.allocation import GroupAllocator, JointAllocator, ThresholdAllocator
from genvid.allocation.curves import gains
from genvid.allocation.predictor import predict_all_curves
from genvid.device import device
from genvid.replay import Graphs
from genvid.tokenizer.adaptok.config import AbsoluteGeometry, AdapTokConfig, GeometryConfig, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokenizer.adaptok.stream import StreamBudget, StreamDecoder, StreamEncoder
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.precision import set_precision
from genvid.tokenizer.streams import video_decoder, video_encoder

RECIPES = Path(__file__).resolve().parents[1] / "recipes/configs/k600"
GROUP_SIZE = 64
"""Clips that share the budget of the program."""
FRAMES_PER_SECOND = 25
"""Of real time."""
STEPS = 5
"""That are timed together."""
OPERATIONS = {"aten::mm": "products", "aten::addmm": "products", "aten::bmm": "products", "aten::baddbmm": "products"}
"""By name in the profile. The others that have "att" in their name are attention."""


@dataclass(frozen=True)
class Case:
    """One way of coding `videos` clips or streams."""

    name: str
    videos: int
    frames: int
    """Of a video in a step."""
    networks: tuple[nn.Module, ...]
    """Whose weights are read in a step."""
    step: Callable[[], object]
    """Code the clips, or the next block of the streams."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", default="genvid-tiny", help="folder or name, with a scorer")
    parser.add_argument("--published-size", action="store_true", help="random weights in the published sizes")
    parser.add_argument("--clips", type=int, nargs="*", default=[1, 128], help="at once")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 16], help="side by side")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16 (the commands compute in float32)")
    parser.add_argument("--compile", action="store_true", help="compile every layer (the commands compile none)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    of_clips = published_size(AbsoluteGeometry()) if options.published_size else load(options.tokenizer)
    of_streams = published_size(RotaryGeometry()) if options.published_size else of_clips
    if of_streams.tokenizer.window is None:
        options.streams = []
    for network in (of_clips.tokenizer, of_clips.scorer, of_streams.tokenizer, of_streams.scorer):
        network.requires_grad_(False)  # else the counter of operations looks for gradients
    if options.compile:
        torch._dynamo.config.recompile_limit = 128  # of one layer, for all shapes and rules of attention
        for predictor in {id(of): of for of in (of_clips, of_streams)}.values():
            compile_layers(predictor)
    if options.bf16:
        for predictor in (of_clips, of_streams):
            set_precision(predictor.tokenizer, "bf16", predictor)
    with torch.inference_mode():
        arithmetic, copies = rates(torch.bfloat16 if options.bf16 else torch.float32)
        print(f"{device_name()}, {arithmetic / 1e12:.2f} TFLOP/s in products, {copies / 1e9:.0f} GB/s in copies")
        print(f"{'':34} videos  ms/step  frames/s  x real time  GFLOP/step  limit in ms: products, weights   MFU")
        for case in chain(
            *(clip_cases(of_clips, clips) for clips in options.clips),
            *(stream_cases(of_streams, streams) for streams in options.streams),
        ):
            seconds = time_of_step(case.step, options.seconds)
            work, weights = flops(case.step), weight_bytes(case.networks)
            speed = case.videos * case.frames / seconds
            print(
                f"{case.name:34} {case.videos:6} {1e3 * seconds:8.2f} {speed:9.0f} {speed / FRAMES_PER_SECOND:12.1f} "
                f"{work / 1e9:11.1f} {1e3 * work / arithmetic:22.2f} {1e3 * weights / copies:8.2f} "
                f"{work / arithmetic / seconds:5.0%}",
                flush=True,
            )
        for case in chain(*(cases(of, 1) for cases, of in ((clip_cases, of_clips), (stream_cases, of_streams)))):
            print(f"{case.name:34} " + ", ".join(f"{part} {share}" for part, share in profile(case.step).items()))


def load(source: str) -> ScorerPredictor:
    loaded = genvid.load(source)
    predictor = getattr(loaded, "predictor", None)
    if not isinstance(predictor, ScorerPredictor):
        raise SystemExit(f"{source} is not an AdapTok with a scorer: give another --tokenizer")
    return predictor


def published_size(geometry: GeometryConfig) -> ScorerPredictor:
    """Random weights."""
    model, scorer = (yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in ("tokenizer", "scorer"))
    torch.manual_seed(0)
    published = config.decode(AdapTokConfig, model["model"])
    rotary = isinstance(geometry, RotaryGeometry)
    sizes = replace(published, pooled_queries=rotary or published.pooled_queries, geometry=geometry)
    network, lengths = StackConfig(**scorer["model"]), tuple(scorer["sizes"])
    scorer_sizes = ScorerConfig.for_tokenizer(sizes, network, sizes=lengths, metric="lpips", gains=scorer["gains"])
    return ScorerPredictor(AdapTok(sizes).eval().to(device()), Scorer(scorer_sizes).eval().to(device()))


def clip_cases(predictor: ScorerPredictor, clips: int) -> Iterator[Case]:
    tokenizer = predictor.tokenizer
    frames, blocks = tokenizer.config.frames, tokenizer.config.grid[0]
    video = torch.rand(clips, 3, frames, *tokenizer.spec.resolution, device=device()) * 2 - 1
    tokens = tokenizer.encode(video)
    half = tokenizer.spec.block_capacity // 2
    group = GroupAllocator(predictor, [half] * blocks, GROUP_SIZE, exact=True)
    joint = JointAllocator(predictor, half * blocks, GROUP_SIZE)
    curves = predict_all_curves(predictor, tokens, tokens.lengths)
    threshold = ThresholdAllocator(predictor, float(gains(curves, predictor.sizes).median()))
    encoder, decoder = coders(tokenizer)
    every = (*encoder, predictor.scorer)
    # Of every clip half of the tokens, in blocks of different lengths.
    shares = (torch.arange(blocks) + 0.5) / blocks
    lengths = torch.stack([shares[torch.randperm(blocks)] for _ in range(clips)]) * tokenizer.spec.block_capacity
    cut = tokens.tail_drop(lengths.long())
    encode, decode = video_encoder(tokenizer), video_decoder(tokenizer)
    yield Case("encode clips", clips, frames, encoder, lambda: encode(video))
    yield Case("decode clips, half the tokens", clips, frames, decoder, lambda: decode(cut))
    yield Case("encode clips, scorer and threshold", clips, frames, every, lambda: threshold(encode(video)))
    yield Case("encode clips, scorer and program by block", clips, frames, every, lambda: group(encode(video)))
    yield Case("encode clips, scorer and joint program", clips, frames, every, lambda: joint(encode(video)))


def stream_cases(predictor: ScorerPredictor, streams: int) -> Iterator[Case]:
    """Each begins its streams when it is drawn."""
    tokenizer, scorer = predictor.tokenizer, predictor.scorer
    spec, blocks = tokenizer.spec, tokenizer.config.grid[0]
    half, frames = spec.block_capacity // 2, spec.frames_per_block
    video = torch.rand(streams, 3, frames, *spec.resolution, device=device()) * 2 - 1
    encoder, cut = StreamEncoder(tokenizer), StreamEncoder(tokenizer, StreamBudget(predictor, half * blocks, blocks))
    encoding, decoding = coders(tokenizer)
    yield Case("encode a block", streams, frames, encoding, lambda: encoder(video))
    yield Case("encode a block, scorer and budget", streams, frames, (*encoding, scorer), lambda: cut(video))
    tokens = tokenizer.encode(video[:, :, : spec.frames_of(0)])
    few = tokens.tail_drop(torch.full_like(tokens.lengths, half))
    for name, given in (("decode a block", tokens), ("decode a block, half the tokens", few)):
        decoder = StreamDecoder(tokenizer)
        yield Case(name, streams, frames, decoding, lambda given=given, decoder=decoder: decoder(given))


def compile_layers(predictor: ScorerPredictor) -> None:
    tokenizer = predictor.tokenizer
    for layer in (*tokenizer.encoder, *tokenizer.decoder, *predictor.scorer.layers):
        layer.compile()


def coders(tokenizer: AdapTok) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]:
    """The networks that encode, and those that decode."""
    encoder = tokenizer.patches, tokenizer.encoder, tokenizer.quantizer
    return encoder, (tokenizer.quantizer, tokenizer.decoder, tokenizer.output)


def time_of_step(step: Callable[[], object], seconds: float) -> float:
    """Median seconds of a step, of rounds over about so many, after as many in which graphs are captured."""
    start = now()
    while now() - start < seconds:
        step()
    rounds, start = list[float](), now()
    while len(rounds) < 2 or now() - start < seconds:
        begin = now()
        for _ in range(STEPS):
            step()
        rounds.append((now() - begin) / STEPS)
    return statistics.median(rounds)


def rates(dtype: torch.dtype) -> tuple[float, float]:
    """Floating-point operations a second of a large product in `dtype`, and bytes a second of a large copy."""
    size, count = (8192, 2**29) if device().type == "cuda" else (2048, 2**26)
    factor, source = torch.randn(size, size, device=device(), dtype=dtype), torch.zeros(count, device=device())
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
    eager = torch.compiler.set_stance("force_eager")
    with as_written(), eager, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def span_attention_flops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    places: Tensor,
    *_: object,
    **__: object,
) -> int:
    queries, *keys = (spans.diff(dim=1).long() for spans in places.unbind(1))
    return 2 * int((queries * sum(keys)).sum()) * query.shape[1] * (query.shape[2] + value.shape[2])


flop_registry[torch.ops.genvid.attend_spans] = span_attention_flops


def as_written() -> AbstractContextManager[object]:
    """A context in which no graph is replayed: the counter and the profiler miss the operations of a replay."""
    return patch.object(Graphs, "__call__", lambda graphs, function, *arguments: function(*arguments))


def weight_bytes(networks: tuple[nn.Module, ...]) -> int:
    return sum(weight.nbytes for network in networks for weight in network.parameters())


def profile(step: Callable[[], object]) -> dict[str, str]:
    """Shares of kinds of operations in the time of a step in which the device is busy, without graphs, and of that in
    the time of a step."""
    cuda, activity = device().type == "cuda", torch.profiler.ProfilerActivity
    seconds = time_of_step(step, 0.5)
    activities = [activity.CPU, *([activity.CUDA] if cuda else [])]
    with as_written(), torch.profiler.profile(activities=activities) as profiled:
        for _ in range(STEPS):
            step()
        now()
    spent = {"products": 0.0, "attention": 0.0, "others": 0.0}
    kernels = 0
    for event in profiled.key_averages():
        if event.device_type == torch.autograd.DeviceType.CPU:
            attention = event.key.startswith(("aten::", "genvid::")) and "att" in event.key
            kind = "attention" if attention else OPERATIONS.get(event.key, "others")
            spent[kind] += event.self_device_time_total if cuda else event.self_cpu_time_total
        else:
            kernels += event.count
    busy = sum(spent.values())
    shares = {kind: f"{time / busy:.0%}" for kind, time in spent.items()}
    if cuda:
        shares |= {"kernels a step": str(kernels // STEPS), "device busy": f"{busy / STEPS / 1e6 / seconds:.0%}"}
    return shares


def device_name() -> str:
    return torch.cuda.get_device_name() if device().type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def now() -> float:
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
