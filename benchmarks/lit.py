"""Time LIT's path against the rules it is compared with, and stream a long clip: python benchmarks/lit.py MODEL [...]

Clips are noise that changes at half of the positions: only shapes matter for time. Prints the median of the runs of
plain encode + decode, LIT, InfoTok's rule and ElasticTok's rule at one keep rate; then streams a clip in windows and
compares it with one call, and the memory of a stream with that of one ten times as long. --compile hands codec and
inpainter to torch.compile and times the parts of one fixed shape: ElasticTok's rule and the stream are left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from genvid.checkpoint import load_model
from genvid.noise import sample_seeds, uniform
from genvid.tokenizer.lit.budget import BudgetAllocator
from genvid.tokenizer.lit.comparators import ElasticTokRule, InfoTokRule
from genvid.tokenizer.lit.model import LIT
from genvid.tokenizer.lit.redundancy import RedundancyAllocator, RedundancyConfig, calibrate_threshold
from genvid.tokenizer.lit.stream import StreamDecoder, StreamEncoder
from genvid.tokens import BlockTokens


def make_clips(clips: int, frames: int, size: int, device: str) -> Tensor:
    """(clips, 3, frames, size, size): a smooth picture, of which the left half moves."""
    coarse = 2 * uniform(sample_seeds(0, "clip", torch.arange(clips)), "pixels", 3, 1, size // 8, size // 8) - 1
    picture = torch.nn.functional.interpolate(coarse[:, :, 0].float(), size=(size, size), mode="bilinear")
    moved = torch.stack([picture.roll(frame, -1) for frame in range(frames)], 2)
    still = picture[:, :, None].expand_as(moved)
    left = torch.arange(size) < size // 2
    return torch.where(left, moved, still).to(device)


def median_seconds(work: Callable[[], object], runs: int, device: str) -> float:
    seconds = []
    for _ in range(runs + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[runs // 2]


def calibrated(lit: LIT, tokens: BlockTokens, rate: float) -> RedundancyAllocator:
    """The threshold rule that keeps this share of the tokens."""

    def rule(threshold: float) -> RedundancyAllocator:
        return RedundancyAllocator(RedundancyConfig(threshold), lit.metric)

    return rule(calibrate_threshold([tokens.latents], rate, rule))  # type: ignore[list-item]


def time_paths(lit: LIT, video: Tensor, rate: float, runs: int, device: str, *, elastic: bool) -> None:
    tokens = lit.encode(video)
    budget = round(rate * tokens.keep[0].numel())
    thinned = calibrated(lit, tokens, rate)
    kept = BudgetAllocator(budget, lit.metric)(tokens)
    target = float(((lit.decode(kept).clamp(-1, 1) - video) / 2).square().mean())
    paths: dict[str, Callable[[], object]] = {
        "encode": lambda: lit.encode(video),
        "encode + decode": lambda: lit.decode(lit.encode(video)),
        "LIT, threshold": lambda: lit.decode(thinned(lit.encode(video))),
        "LIT, budget": lambda: lit.decode(BudgetAllocator(budget, lit.metric)(lit.encode(video))),
        "InfoTok's rule": lambda: lit.decode(InfoTokRule(lit, video, budget)(lit.encode(video))),
    }
    if elastic:
        paths["ElasticTok's rule"] = lambda: lit.decode(ElasticTokRule(lit, video, target)(lit.encode(video)))
    seconds = {name: median_seconds(path, runs if "Elastic" not in name else 1, device) for name, path in paths.items()}
    for name, value in seconds.items():
        print(
            f"{name:18s} {1e3 * value / len(video):9.2f} ms per clip, "
            f"{value / seconds['encode + decode']:6.2f} x encode + decode, "
            f"{value / seconds['LIT, threshold']:6.2f} x LIT",
            flush=True,
        )


def stream(lit: LIT, allocator: RedundancyAllocator, video: Tensor, chunk: int) -> Tensor:
    """The clip through both ends of a stream, `chunk` frames at a time, on the CPU as it comes out."""
    encoder, decoder = StreamEncoder(lit, allocator), StreamDecoder(lit)
    return torch.cat([decoder(encoder(part)).cpu() for part in video.split(chunk, 2)], 2)


def check_stream(lit: LIT, size: int, frames: int, chunk: int, rate: float, device: str) -> None:
    video = make_clips(1, frames, size, device)
    tokens = lit.encode(video)
    allocator = calibrated(lit, tokens, rate)
    one_shot = lit.decode(allocator(tokens)).cpu()
    difference = float((stream(lit, allocator, video, chunk) - one_shot).abs().max())
    print(f"stream of {frames} frames in chunks of {chunk}: largest difference from one call {difference:.1e}")
    if device == "cuda":
        peaks = []
        for length in (frames, 10 * frames):
            long = video.cpu().repeat(1, 1, length // frames, 1, 1)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            encoder, decoder = StreamEncoder(lit, allocator), StreamDecoder(lit)
            for part in long.split(chunk, 2):
                decoder(encoder(part.to(device)))
            peaks.append(torch.cuda.max_memory_allocated() / 2**20)
        print(f"peak memory of a stream: {peaks[0]:.0f} MiB for {frames} frames, {peaks[1]:.0f} for {10 * frames}")


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a LIT model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.35)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--stream-frames", type=int, default=300)
    parser.add_argument("--window", type=int, default=25, help="frames of a chunk of the stream")
    arguments = parser.parse_args()
    device = arguments.device
    lit = load_model(arguments.model, LIT).to(device).at((arguments.size, arguments.size))
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    parameters = sum(p.numel() for p in lit.inpainter.parameters())
    print(
        f"{hardware}, torch {torch.__version__}; codec {lit.codec.name}, inpainter {parameters / 1e6:.1f} M parameters"
    )
    print(
        f"{arguments.clips} clips of {arguments.frames} frames at {arguments.size}x{arguments.size}"
        + (", bf16 autocast (the stream in float32)" if device == "cuda" else "")
        + (", compiled" if arguments.compile else "")
    )
    if arguments.compile:
        lit.inpainter.use_compiler()
        lit.codec.use_compiler()
    video = make_clips(arguments.clips, arguments.frames, arguments.size, device)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        time_paths(lit, video, arguments.rate, arguments.runs, device, elastic=not arguments.compile)
    if arguments.compile:
        return
    lit.codec.codec_window = arguments.window
    check_stream(lit, arguments.size, arguments.stream_frames, arguments.window, arguments.rate, device)


if __name__ == "__main__":
    main()
