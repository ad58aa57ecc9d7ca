"""Time features of 16-frame clips at 224x224: python benchmarks/evaluation.py [--clips 4096] [--workers 14]

Clips a second of (1) I3D alone on clips that are on the device, (2) files decoded to 128x128, the size of the UCF-101
protocols, and brought to the device, with no network, (3) an evaluation that does both (I3D resizes to 224x224 itself),
(4) one that generates samples, beside the sum of the times of generation and features alone. Each is printed when it is
measured, with the seconds since the start. Clocks of loading start after an eighth of the clips: starting
the processes that decode takes seconds, once. Files are made here unless --data names a folder of videos; weights do
not matter for time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genvid.batch import Batch
from genvid.data import FolderConfig, write_video
from genvid.eval.evaluation import Candidate, Evaluation, Execution, Measures, Output
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.features.i3d import I3D
from genvid.eval.features.loading import I3DStateDict, load_i3d
from genvid.eval.protocols import EvaluationProtocol
from genvid.eval.selection import protocol_clips
from genvid.tokens import TokenizerSpec

SHARE = 0.9
"""Target of an evaluation: this share of the speed of I3D alone."""
FILES = 32
"""Videos that are made: windows of them are read again and again."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STARTED = time.perf_counter()


class Timed(FeatureNetwork):
    """A feature network with a clock that starts after some clips."""

    def __init__(self, network: FeatureNetwork, after: int) -> None:
        super().__init__()
        self.network, self.after, self.name, self.weights = network, after, network.name, network.weights
        self.num_features, self.min_frames = network.num_features, network.min_frames
        self.restart()

    def restart(self) -> None:
        self.seen, self.start, self.before = 0, 0.0, 0

    def extract(self, video: Tensor) -> Tensor:
        if not self.start and self.seen >= self.after:
            wait()
            self.start, self.before = time.perf_counter(), self.seen
        self.seen += len(video)
        return self.network.extract(video)

    def seconds_a_clip(self) -> float:
        """Since the clock started."""
        wait()
        return (time.perf_counter() - self.start) / (self.seen - self.before)


class NoNetwork(FeatureNetwork):
    """Features at no cost, so that loading alone is timed."""

    name, num_features, min_frames = "none", 1, 1

    def extract(self, video: Tensor) -> Tensor:
        return video[:, 0, 0, 0, :1].clone()


class Generator:
    """A substitute for a small decoder: convolutions over noise, on the device."""

    spec: TokenizerSpec | None = None

    def __init__(self, frames: int, side: int) -> None:
        self.shape = (3, frames, side, side)
        layers = [torch.nn.Conv3d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(16, 3, 3, padding=1)]
        self.network = torch.nn.Sequential(*layers).to(DEVICE)

    def describe(self) -> Mapping[str, Any]:
        return {"benchmark": time.time()}

    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        return Output(self.network(torch.randn(len(seeds), *self.shape, device=DEVICE)).tanh())


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def say(what: str) -> None:
    print(f"{time.perf_counter() - STARTED:6.1f} s  {what}", flush=True)


def share(reached: float) -> str:
    return f"{100 * reached:.1f} % ({'met' if reached >= SHARE else 'MISSED'})"


@torch.no_grad()
def alone(features: FeatureNetwork, clips: int, batch: int, side: int) -> float:
    """Clips a second of the feature network on one resident batch."""
    video = torch.rand(batch, 3, 16, side, side, device=DEVICE) * 2 - 1
    features(video)
    wait()
    start, rounds = time.perf_counter(), max(1, clips // batch)
    for _ in range(rounds):
        features(video)
    wait()
    return rounds * batch / (time.perf_counter() - start)


@torch.no_grad()
def generating(generator: Generator, clips: int, batch: int) -> float:
    """Seconds that a clip takes to generate."""
    generator({}, torch.arange(batch))
    wait()
    start, rounds = time.perf_counter(), max(1, clips // batch)
    for _ in range(rounds):
        generator({}, torch.arange(batch))
    wait()
    return (time.perf_counter() - start) / (rounds * batch)


def make_files(folder: Path) -> None:
    """Videos of UCF-101's size, in which a tenth of the picture changes from frame to frame."""

    def make(number: int) -> None:
        draw = torch.Generator().manual_seed(number)
        small = torch.randint(256, (3, 1, 15, 20), generator=draw, dtype=torch.uint8).repeat(1, 48, 1, 1)
        small[:, :, 6:10, 6:14] = torch.randint(256, (3, 48, 4, 8), generator=draw, dtype=torch.uint8)
        large = small.repeat_interleave(16, 2).repeat_interleave(16, 3)
        write_video(folder / f"{number:04d}.mp4", large, 25)

    with ThreadPoolExecutor() as pool:
        list(pool.map(make, range(FILES)))


def evaluation(
    network: FeatureNetwork, clips: int, record: EvaluationProtocol, data: str, options: argparse.Namespace
) -> tuple[Evaluation, Timed]:
    """An evaluation of so many clips, windows of the files again and again, and its clock."""
    features = Timed(network, clips // 8)
    drawn = protocol_clips(replace(record, features=features.name), FolderConfig(data), features=features)
    drawn.real.items[:] = list(islice(cycle(drawn.real.items), clips))
    execution = Execution(options.batch_size, workers=options.workers, device=DEVICE)
    # Without other clips: the floor would be a second pass.
    return Evaluation(replace(drawn, others=None), Measures(features), execution), features


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Measure every part and print it at once."""
    i3d = load_i3d(options.i3d) if options.i3d else I3DStateDict(I3D(), name="random", weights="random", is_fvd=False)
    record = EvaluationProtocol("benchmark", "generation", "files", "all", 16, "windows", None, options.resolution)
    data, clips, batch = options.data, options.clips, options.batch_size
    if data is None:
        data = str(folder / "files")
        make_files(Path(data))
        say(f"{FILES} files made")
    speed = alone(i3d.to(DEVICE), clips // 4, batch, options.resolution)
    say(f"I3D alone         {speed:9.2f} clips/s")
    run, clock = evaluation(NoNetwork(), clips // 2, record, data, options)
    run._measure_real(run.clips.real, "loading")
    say(f"loading alone     {1 / clock.seconds_a_clip():9.2f} clips/s")
    run, clock = evaluation(i3d, clips, record, data, options)
    run._measure_real(run.clips.real, "decoded")
    decoded = 1 / clock.seconds_a_clip()
    say(f"while decoding    {decoded:9.2f} clips/s, {share(decoded / speed)} of I3D alone")
    generator = Generator(16, options.resolution)
    apart = 1 / (1 / speed + generating(generator, clips // 4, batch))
    clock.restart()
    run._measure_outputs([Candidate("generated", generator, folder / "features")], 0)
    beside = 1 / clock.seconds_a_clip()
    say(f"while generating  {beside:9.2f} clips/s, {share(beside / apart)} of {apart:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--i3d", help="weights of I3D (random ones otherwise)")
    parser.add_argument("--data", help="a folder of videos")
    options = parser.parse_args()
    torch.manual_seed(0)
    hardware = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    say(f"{hardware}, torch {torch.__version__}, {options.workers} workers, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"  # no features of an earlier run
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
