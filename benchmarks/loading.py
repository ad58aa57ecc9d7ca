"""Clips that a core reads in a second from originals and from prepared videos, or draws; and memory of a worker.

python benchmarks/loading.py VIDEOS [--seconds 10] [--clips 5000] [--output results.json]

VIDEOS is a folder of original files (UCF-101). They are prepared at 128x128 into a temporary folder; then clips of 16
frames at random offsets are read from both in this process, on one core, and memory is followed over many clips. decord
and torchcodec read the same frames of the same originals where they are installed; procedural clips are drawn beside.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import torch

from genvid import noise
from genvid.data import ClipConfig, ClipDataset, FolderConfig, ProceduralConfig
from genvid.data.dataset import VideoData
from genvid.data.sources.files import FileSource
from genvid.recipes.prepare_videos import PreparationRun, prepare_videos

CLIP = ClipConfig(frames=16, resolution=(128, 128))
Reader = Callable[[int, int], torch.Tensor]
"""(item, clip seed) -> (3, 16, 128, 128) uint8."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("videos", help="a folder of video files")
    parser.add_argument("--seconds", type=float, default=10.0, help="of reading, for each reader")
    parser.add_argument("--clips", type=int, default=5000, help="over which memory is followed")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    originals = ClipDataset(FolderConfig(options.videos), CLIP)
    results: dict[str, Any] = {"videos": len(originals), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        data = VideoData(FolderConfig(options.videos), CLIP)
        made, problems = prepare_videos(PreparationRun(output_dir=folder, data=data, workers=1))
        frames = sum(video.video.info.frames for video in made.values())
        results["preparing"] = {
            "frames": frames,
            "frames_per_second": frames / (time.perf_counter() - started),
            "bytes_per_frame": sum(video.bytes for video in made.values()) / frames,
            "failed": len(problems),
        }
        prepared = ClipDataset(FolderConfig(folder), CLIP)
        readers: dict[str, Reader] = {"genvid, originals": clips_of(originals), "genvid, prepared": clips_of(prepared)}
        results["psnr"] = psnr(readers["genvid, prepared"], readers["genvid, originals"], len(originals))
        readers["genvid, procedural"] = clips_of(ClipDataset(ProceduralConfig(len(originals)), CLIP))
        readers |= other_readers(originals)
        for name, reader in readers.items():
            results[name] = speed(reader, len(originals), options.seconds)
            print(f"{name}: {results[name]['clips_per_second']:.1f} clips/s per core", flush=True)
        for name in ("genvid, originals", "genvid, prepared"):
            results[name] |= memory(readers[name], len(originals), options.clips)
            print(f"{name}: {results[name]['megabytes']} MB over {options.clips} clips", flush=True)
    print(json.dumps(results, indent=2))
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


def clips_of(dataset: ClipDataset) -> Reader:
    return lambda item, seed: dataset[item, seed]["video"]


def draws(items: int) -> Iterator[tuple[int, int]]:
    """(item, clip seed) of one clip after another."""
    for number in count():
        yield number % items, int(noise.sample_seeds(0, "benchmark", torch.tensor(number)))


def psnr(reader: Reader, reference: Reader, items: int) -> float:
    """Of prepared clips against those that are resized when they are read, mean over 4 clips a video, in dB."""
    values = []
    for (item, seed), _ in zip(draws(items), range(4 * items), strict=False):
        error = (reader(item, seed).float() - reference(item, seed).float()).square().mean()
        values.append(10 * torch.log10(255**2 / error))
    return float(torch.stack(values).mean())


def speed(reader: Reader, items: int, seconds: float) -> dict[str, float]:
    """Clips in a second of processor time, which other processes on the machine do not change much."""
    for (item, seed), _ in zip(draws(items), range(items), strict=False):
        reader(item, seed)
    started, clips = time.process_time(), 0
    for item, seed in draws(items):
        reader(item, seed)
        clips += 1
        spent = time.process_time() - started
        if spent > seconds:
            break
    return {"clips_per_second": clips / spent, "milliseconds": 1000 * spent / clips}


def memory(reader: Reader, items: int, clips: int) -> dict[str, list[float]]:
    """Memory of this process in megabytes after each tenth of `clips`."""
    held, process = [], psutil.Process()
    for number, (item, seed) in enumerate(draws(items), 1):
        reader(item, seed)
        if number % max(1, clips // 10) == 0:
            held.append(round(process.memory_info().rss / 1e6, 1))
        if number >= clips:
            return {"megabytes": held}
    return {"megabytes": held}


def other_readers(dataset: ClipDataset) -> dict[str, Reader]:
    """decord and torchcodec on the same files, frames and size, as far as they can be imported."""
    source = dataset.source
    assert isinstance(source, FileSource)
    files = [(str(source.root / path), info) for path, info in source.listing().items()]

    def reader(decode: Callable[[str, list[int]], torch.Tensor]) -> Reader:
        def read(item: int, seed: int) -> torch.Tensor:
            path, info = files[item]
            start = CLIP.start(info.frames, seed)
            return CLIP.fit(decode(path, list(range(start, start + CLIP.frames))), seed)

        return read

    found: dict[str, Reader] = {}
    if importlib.util.find_spec("decord"):
        import decord

        found["decord, originals"] = reader(
            lambda path, frames: torch.from_numpy(decord.VideoReader(path, num_threads=1).get_batch(frames).asnumpy())
        )
    if importlib.util.find_spec("torchcodec"):
        from torchcodec.decoders import VideoDecoder

        found["torchcodec, originals"] = reader(
            lambda path, frames: (
                VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC").get_frames_at(frames).data
            )
        )
    return found


if __name__ == "__main__":
    main()
