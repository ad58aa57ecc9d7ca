"""Time features of 16-frame clips at 224x224: python benchmarks/evaluation.py [--clips 8192] [--workers 14]

Clips a second of (1) I3D alone on clips that are on the device, (2) an evaluation that decodes files to 128x128, the
size of the UCF-101 protocols, and extracts features (I3D resizes to 224x224 itself), (3) one that generates samples,
against what generation and features would take one after the other. Time counts from the second eighth of the clips:
starting the processes that decode takes seconds, once. Files are made here unless --data names a folder of videos;
weights do not matter for time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genvid.data import FolderConfig, write_video
from genvid.data.loader import Batch
from genvid.eval.evaluation import Evaluation, Made
from genvid.eval.features import FeatureNetwork, I3DStateDict, load_i3d
from genvid.eval.i3d import I3D
from genvid.eval.protocols import Protocol
from genvid.tokens import TokenizerSpec

SHARE = 0.9
"""Of I3D's own speed that an evaluation should reach."""


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
            wait(video.device)
            self.start, self.before = time.perf_counter(), self.seen
        self.seen += len(video)
        return self.network.extract(video)

    def seconds_a_clip(self, device: torch.device) -> float:
        """Since the clock started."""
        wait(device)
        return (time.perf_counter() - self.start) / (self.seen - self.before)


class Generator:
    """Costs what a small decoder costs: some convolutions over noise, on the device."""

    spec: TokenizerSpec | None = None

    def __init__(self, frames: int, side: int, device: torch.device) -> None:
        self.shape, self.device = (3, frames, side, side), device
        layers = [torch.nn.Conv3d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(16, 3, 3, padding=1)]
        self.network = torch.nn.Sequential(*layers).to(device)

    def describe(self) -> Mapping[str, Any]:
        return {"benchmark": time.time()}

    def __call__(self, given: Batch, seeds: Tensor, /) -> Made:
        return Made(self.network(torch.randn(len(seeds), *self.shape, device=self.device)).tanh())


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def alone(features: FeatureNetwork, clips: int, batch: int, record: Protocol, device: torch.device) -> float:
    """Clips a second of the feature network on one resident batch."""
    video = torch.rand(batch, 3, record.frames or 16, record.resolution, record.resolution, device=device) * 2 - 1
    features(video)
    wait(device)
    start, rounds = time.perf_counter(), max(1, clips // batch)
    for _ in range(rounds):
        features(video)
    wait(device)
    return rounds * batch / (time.perf_counter() - start)


def make_files(folder: Path, count: int) -> None:
    """Videos of UCF-101's size and length."""
    draw = torch.Generator().manual_seed(0)
    for number in range(count):
        small = torch.randint(256, (3, 48, 15, 20), generator=draw, dtype=torch.uint8)
        write_video(folder / f"{number:04d}.mp4", small.repeat_interleave(16, 2).repeat_interleave(16, 3), 25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--i3d", help="weights of I3D (random ones otherwise)")
    parser.add_argument("--data", help="a folder of videos")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    random_weights = I3DStateDict(I3D(), name="random I3D", weights="random", is_fvd=False)
    features = Timed(load_i3d(arguments.i3d) if arguments.i3d else random_weights, arguments.clips // 8)
    record = Protocol(
        "benchmark", "generation", "files", "all", 16, "windows", None, arguments.resolution, features=features.name
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # no features of an earlier run
        if arguments.data is None:
            make_files(folder / "files", min(256, -(-arguments.clips // 3)))
        source = FolderConfig(arguments.data or str(folder / "files"))
        run = Evaluation(
            record,
            source,
            folder / "out",
            features=features,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            device=device,
        )
        items = run.real.items
        run.real.items[:] = (items * -(-arguments.clips // len(items)))[: arguments.clips]
        run.others.items.clear()  # the floor would be a second pass
        speed = alone(features.network, arguments.clips, arguments.batch_size, record, device)
        print(f"{device}, torch {torch.__version__}, {arguments.workers} workers, load {os.getloadavg()[0]:.1f}")
        print(f"I3D alone:        {speed:9.2f} clips/s", flush=True)
        features.restart()
        run._measure_real(run.real, "decoded")
        decoded = 1 / features.seconds_a_clip(device)
        verdict = "met" if decoded >= SHARE * speed else "MISSED"
        print(f"while decoding:   {decoded:9.2f} clips/s, {100 * decoded / speed:.1f} % ({verdict})", flush=True)
        generator = Generator(16, arguments.resolution, device)
        apart = 1 / speed + generating(generator, arguments.clips, arguments.batch_size, device)
        features.restart()
        run._measure_made(generator, 0)
        beside = features.seconds_a_clip(device)
        verdict = "met" if apart >= SHARE * beside else "MISSED"
        print(
            f"while generating: {1 / beside:9.2f} clips/s, {100 * apart / beside:.1f} % of {1 / apart:.2f} ({verdict})"
        )


@torch.no_grad()
def generating(generator: Generator, clips: int, batch: int, device: torch.device) -> float:
    """Seconds that a clip takes to generate."""
    generator({}, torch.arange(batch))
    wait(device)
    start, rounds = time.perf_counter(), max(1, clips // batch)
    for _ in range(rounds):
        generator({}, torch.arange(batch))
    wait(device)
    return (time.perf_counter() - start) / (rounds * batch)


if __name__ == "__main__":
    main()
