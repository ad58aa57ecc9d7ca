"""Memory and seams of LIT's codecs in tiles: python benchmarks/codec_tiles.py {memory,seams} [...]

`memory` builds the published architecture of AutoencoderKLWan or AutoencoderKLCosmos at a share of its widths, with
random weights, and codes one clip: frames whole or in tiles, all at once or in windows. Each peak is of a process of
its own and beyond what network and clip take: of resident memory on a CPU, of allocated memory on a GPU. `seams`
reconstructs frames of a video by a trained codec, whole and in tiles: decibels against the original
and the difference of the two, inside of tiles and in the strips that they share.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from genvid.data.clips import ClipConfig, to_float
from genvid.data.video import probe, read_clip
from genvid.device import device
from genvid.eval.metrics.fidelity import ClipPSNR
from genvid.tokenizer.lit.codecs.codec import Codec
from genvid.tokenizer.lit.codecs.diffusers_codec import ADAPTERS, DiffusersCodecConfig, import_diffusers
from genvid.tokenizer.lit.codecs.tiling import tile_spans

WAN, COSMOS = "AutoencoderKLWan", "AutoencoderKLCosmos"


def narrow_codec(name: str, share: int, window: int | None) -> Codec:
    """The published architecture with a `share`-th of its widths."""
    torch.manual_seed(0)
    if name == WAN:
        model = import_diffusers().AutoencoderKLWan(base_dim=96 // share)
    else:
        model = import_diffusers().AutoencoderKLCosmos(
            encoder_block_out_channels=tuple(width // share for width in (128, 256, 512, 512)),
            decode_block_out_channels=tuple(width // share for width in (256, 512, 512, 512)),
            temporal_compression_ratio=4,
            latents_mean=None,
            latents_std=None,
        )
    return ADAPTERS[name](model, window)


@dataclass(frozen=True)
class Case:
    """One measurement."""

    codec: str
    share: int
    frames: int
    size: tuple[int, int]
    part: str
    """Of the codec: `encode` or `decode`."""
    tile: int | None
    window: int | None

    @torch.no_grad()
    def measure(self) -> str:
        """A row of the table."""
        codec = narrow_codec(self.codec, self.share, self.window).to(device())
        codec.set_tile(self.tile)
        spec, (height, width) = codec.spec(self.size), self.size
        shapes = {
            "encode": (3, self.frames, height, width),
            "decode": (spec.token_dim, spec.num_blocks(self.frames), height // 8, width // 8),
        }
        x = torch.zeros(1, *shapes[self.part], device=device())
        before, start = _memory(), time.perf_counter()
        made: Tensor = getattr(codec, self.part)(x)
        output = made.numel() * made.element_size() / 2**20
        seconds = time.perf_counter() - start
        how = f"tiles of {self.tile}" if self.tile else "whole frames"
        how += f", windows of {self.window}" if self.window else ""
        peak = _peak() - before
        return f"| {self.part} | {how} | {peak:,.0f} | {output:,.0f} | {seconds:.0f} |"


def _memory() -> float:
    """MiB in use."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    return psutil.Process().memory_info().rss / 2**20


def _peak() -> float:
    """Most MiB in use since the process began."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def memory(options: argparse.Namespace) -> None:
    """Print a row for each part of the codec and way of coding."""
    print(f"{options.codec}, 1/{options.share} of its widths, {options.frames} frames of {options.size}\n")
    print("| part | how | peak, MiB | of it the result | seconds |\n|---|---|---|---|---|")
    for part in options.parts:
        for tile in options.tiles:
            for window in options.windows:
                frames = -(-options.frames // window) * window if window else options.frames
                case = Case(options.codec, options.share, frames, options.size, part, tile or None, window or None)
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                    print(alone.submit(case.measure).result(), flush=True)


def seams(options: argparse.Namespace) -> None:
    """Print decibels and differences inside of tiles and in shared strips."""
    codec = DiffusersCodecConfig(options.folder).load().to(device())
    info, rule = probe(options.video), ClipConfig(frames=1, resolution=tuple(options.size))
    video = to_float(rule.fit(torch.from_numpy(read_clip(options.video, 0, options.frames, info=info)), 0))[None]
    whole, tiled = (reconstruct(codec, video.to(device()), tile).cpu() for tile in (None, options.tile))
    shared = shared_strips(options.size, options.tile)
    print("| where | pixels | whole frames, dB | tiles, dB | difference, levels of 8 bits |\n|---|---|---|---|---|")
    for where, chosen in (("inside of tiles", ~shared), ("shared strips", shared)):
        original, one, other = (x[..., chosen][..., None] for x in (video, whole, tiled))
        values = [float(ClipPSNR().score(made, original)) for made in (one, other)]
        difference = 127.5 * float((one - other).square().mean().sqrt())
        print(f"| {where} | {chosen.double().mean():.0%} | {values[0]:.2f} | {values[1]:.2f} | {difference:.2f} |")


@torch.no_grad()
def reconstruct(codec: Codec, video: Tensor, tile: int | None) -> Tensor:
    codec.set_tile(tile)
    return codec.decode(codec.encode(video)).clamp(-1, 1)


def shared_strips(size: tuple[int, int], tile: int) -> Tensor:
    """(H, W) bool: pixels of more than one tile."""
    counts = [torch.zeros(side, dtype=torch.int) for side in size]
    for count in counts:
        for span in tile_spans(len(count), tile):
            count[span] += 1
    return counts[0][:, None] * counts[1] > 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    added = verbs.add_parser("memory")
    added.add_argument("codec", choices=(WAN, COSMOS))
    added.add_argument("--share", type=int, default=1, help="widths of the network are the published ones over this")
    added.add_argument("--parts", nargs="+", choices=("encode", "decode"), default=("encode", "decode"))
    added.add_argument("--frames", type=int, default=49)
    added.add_argument("--size", type=int, nargs=2, default=(720, 1280), help="height and width")
    added.add_argument("--tiles", type=int, nargs="+", default=(0, 256), help="sides of tiles; 0: whole frames")
    added.add_argument("--windows", type=int, nargs="+", default=(0,), help="frames of windows; 0: one piece")
    added.set_defaults(run=memory)
    added = verbs.add_parser("seams")
    added.add_argument("folder", help="a trained codec, as diffusers saves it")
    added.add_argument("video")
    added.add_argument("--frames", type=int, default=17)
    added.add_argument("--size", type=int, nargs=2, default=(256, 448))
    added.add_argument("--tile", type=int, default=128)
    added.set_defaults(run=seams)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
