"""Evaluation protocols as records: everything that changes a number besides the model, under a name.

A Fréchet distance depends on its split, clip rule, count, size, resize, quantisation, feature network and covariance
estimator more than on most methods. A protocol's name may stand beside a number only when all of it was followed:
`adapted` gives any deviation a name of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

Clips = Literal["first", "random", "windows", "whole"]
"""Which frames of a video: the first ones; one seeded random window; a seeded draw from all non-overlapping windows;
or all of them."""


@dataclass(frozen=True)
class Protocol:
    """One way to compute a number."""

    name: str
    task: Literal["generation", "prediction", "reconstruction"]
    dataset: str
    split: str
    frames: int | None
    """Frames of a clip at the native frame rate; None: all of them."""
    clips: Clips
    count: int | None
    """Clips compared; None: one for each video of the split."""
    resolution: int
    """Side of the frames the model works at."""
    seed: int = 42
    resize: str = "short side, antialiased bilinear, centre crop"
    scored_resolution: int | None = None
    """Both sides are resized to this before the feature network; None: as they are."""
    condition_frames: int = 0
    quantize: bool = False
    """Whether pixels are rounded to 8 bits before they are scored."""
    features: str = "I3D Kinetics-400"
    ddof: int = 0
    sampler_seeds: int = 1
    note: str = ""

    def adapted(self, *, count: int | None = None, features: str | None = None) -> Protocol:
        """The protocol with another number of clips or another feature network. It says so in its name, unless
        nothing differs."""
        changes: dict[str, int | str] = {}
        if count is not None and count != self.count:
            changes["count"] = count
        if features is not None and features != self.features:
            changes["features"] = features
        if not changes:
            return self
        said = ", ".join(f"{key} {value} instead of {asdict(self)[key] or 'all'}" for key, value in changes.items())
        return replace(self, name=f"{self.name} [{said}]", **changes)  # type: ignore[arg-type]

    def require(self, *, count: int, features: str) -> None:
        """ValueError unless the protocol was followed to the end with its own feature network."""
        followed = self.adapted(count=count if self.count is not None else None, features=features)
        if followed != self:
            raise ValueError(
                f"this is not {self.name} but '{followed.name}'; follow the protocol, or report it under that name"
            )


def _ucf_generation(name: str, note: str, *, count: int = 2048, quantize: bool = True, ddof: int = 0) -> Protocol:
    return Protocol(
        name=name,
        task="generation",
        dataset="UCF-101",
        split="train",
        frames=16,
        clips="random",
        count=count,
        resolution=128,
        quantize=quantize,
        ddof=ddof,
        note=note,
    )


def _ucf_reconstruction(name: str, split: str, clips: Clips, note: str) -> Protocol:
    return Protocol(
        name=name,
        task="reconstruction",
        dataset="UCF-101",
        split=split,
        frames=16,
        clips=clips,
        count=9537 if split == "train" else 3783,
        resolution=128,
        note=note,
    )


_ALL = (
    replace(
        _ucf_generation(
            "ucf101-gfvd-larp-10k",
            "LARP, AdapTok: the labels of the real windows condition the generator; split 1",
            count=10_000,
            quantize=False,
        ),
        clips="windows",
        sampler_seeds=4,
    ),
    _ucf_generation("ucf101-gfvd-tats-2048", "TATS: about equally many clips of each class", ddof=1),
    replace(
        _ucf_generation("ucf101-gfvd-stylegan-v-2048", "StyleGAN-V: videos shuffled before the first 2,048 are taken"),
        split="train+test",
    ),
    _ucf_reconstruction("ucf101-rfvd-first", "train", "first", "AdapTok: the first 16 frames"),
    _ucf_reconstruction("ucf101-rfvd-random", "train", "random", "as LARP, but seeded"),
    _ucf_reconstruction("ucf101-rfvd-test-first", "test", "first", "held-out videos"),
    _ucf_reconstruction("ucf101-rfvd-test-random", "test", "random", "held-out videos"),
    Protocol(
        name="k600-prediction-larp-50k",
        task="prediction",
        dataset="Kinetics-600",
        split="val",
        frames=16,
        clips="windows",
        count=50_000,
        resolution=128,
        scored_resolution=64,
        condition_frames=5,
        note="all 16 decoded frames are scored, the 5 given ones as the tokenizer decodes them; no guidance",
    ),
    Protocol(
        name="k600-rfvd-first",
        task="reconstruction",
        dataset="Kinetics-600",
        split="val",
        frames=16,
        clips="first",
        count=None,
        resolution=128,
    ),
    Protocol(
        name="davis-reconstruction",
        task="reconstruction",
        dataset="DAVIS",
        split="all",
        frames=None,
        clips="whole",
        count=None,
        resolution=256,
    ),
    Protocol(
        name="tokenbench-reconstruction",
        task="reconstruction",
        dataset="TokenBench",
        split="all",
        frames=None,
        clips="whole",
        count=None,
        resolution=256,
    ),
)

PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def protocol(name: str) -> Protocol:
    """A published protocol by its name; ValueError names them all."""
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def check_name(record: Protocol) -> None:
    """ValueError for a record that bears a published protocol's name without being it."""
    if record != PROTOCOLS.get(record.name, record):
        raise ValueError(f"{record.name} is the name of a published protocol that this record differs from; rename it")
