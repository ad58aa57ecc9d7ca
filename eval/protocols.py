"""Evaluation protocols as records: everything that changes a number besides the model, under a name.

A Fréchet distance depends on its split, clip rule, count, size, resize, quantisation, feature network and covariance
estimator more than on most methods. A number bears a protocol's name only where all of it was followed:
`adapted` gives any deviation a name of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from genvid import config as configuration
from genvid import noise
from genvid.data.clips import ClipConfig
from genvid.data.dataset import VideoData
from genvid.data.sources.base import ALL
from genvid.eval.features.loading import I3D_NAME
from genvid.eval.resizing import DistributedClip, TatsClip, TorchvisionClip
from genvid.files import readable

Clips = Literal["first", "random", "windows", "whole"]
"""Which frames of a video: the first ones; one seeded random window; a seeded draw from all non-overlapping windows;
or all of them."""

WINDOWS: dict[Clips, Literal["first", "random", "all", "whole"]] = {
    "first": "first",
    "random": "random",
    "windows": "all",
    "whole": "whole",
}
"""`clips` of a protocol -> `window` of the clip rule."""

OURS = "short side, antialiased bilinear, centre crop"
TORCHVISION = "torchvision: short side, long side truncated, antialiased bilinear, centre crop"
TATS = "TATS: short side, long side rounded up, bilinear without antialiasing, centre crop"
DISTRIBUTED = "none, files are read as distributed"
PREPARED = "in advance, into compressed files"
"""`resize` of data that recipes/prepare_videos.py made: good for training, another set of pixels for an evaluation."""

CLIP_RULES: dict[str, type[ClipConfig]] = {
    OURS: ClipConfig,
    TORCHVISION: TorchvisionClip,
    TATS: TatsClip,
    DISTRIBUTED: DistributedClip,
    PREPARED: ClipConfig,
}
"""`resize` of a protocol -> the clip rule that follows it."""


@dataclass(frozen=True)
class EvaluationProtocol:
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
    """Side of the frames the model works at; where files are read as distributed, one side of theirs."""
    videos: int | None = None
    """Videos of the split; None where the number is not fixed."""
    seed: int = 42
    names: str = ""
    """Names of the videos (see genvid.eval.listings); empty where they are not fixed."""
    resize: str = OURS
    scored_resolution: int | None = None
    """Both sides are resized to this before the feature network; None: as they are."""
    condition_frames: int = 0
    quantize: Literal["no", "round", "truncate"] = "no"
    """How pixels are brought to 8 bits before they are scored."""
    features: str = I3D_NAME
    """Feature network of the Frechet distance; empty: there is none."""
    feature_resolution: int | None = None
    """Frames are resized to this short side and cropped, by TATS's rule, before the feature network; None: the network
    resizes them itself, without regard to their aspect ratio."""
    feature_frames: int | None = None
    """First frames that the feature network reads; None: all of them."""
    uniform_ssim: bool = False
    """SSIM over uniform windows of 7 pixels, scikit-image's default, instead of Gaussian ones of 11."""
    ddof: int = 0
    sampler_seeds: int = 1
    note: str = ""

    def adapted(self, **changes: Any) -> EvaluationProtocol:
        """The protocol with other values of some fields. Its name lists them, unless nothing differs."""
        origin = PROTOCOLS.get(self.name.partition(" [")[0], self)
        adapted, known = asdict(replace(self, **changes)), asdict(origin)
        changed = ", ".join(
            f"{key.replace('_', ' ')} {_value(key, value)} instead of {_value(key, known[key])}"
            for key, value in adapted.items()
            if value != known[key] and key != "name"
        )
        made = replace(self, name=f"{origin.name} [{changed}]" if changed else origin.name, **changes)
        return self if made == self else made

    @property
    def any_size(self) -> bool:
        """Whether frames differ in size from video to video."""
        return self.resize == DISTRIBUTED

    def clip_rule(self) -> ClipConfig:
        """How clips are cut from videos. Frames are resized in floating point; `quantize` rounds them later."""
        return CLIP_RULES[self.resize](
            frames=self.frames or SHORTEST_WHOLE,
            resolution=(self.resolution, self.resolution),
            window=WINDOWS[self.clips],
            rounded=False,
        )

    def draw(self, items: int) -> list[int]:
        """Which of the items of a data set are compared, in their order of comparison.

        Items are the windows of all videos in the order of their paths, or the videos. Of more items than `count`, a
        sample by Python's `random.Random(seed).sample`, which is how LARP draws; ValueError when there are fewer.
        """
        if self.count is None or self.count == items:
            return list(range(items))
        if self.count > items:
            raise ValueError(
                f"{self.name} compares {self.count:,} clips, but the data hold {items:,}: compare fewer (--count)"
            )
        return self._sample(range(items), self.count)

    def draw_others(self, items: int, drawn: Sequence[int]) -> list[int]:
        """As many items again, none of them drawn before; empty when too few are left."""
        rest = sorted(set(range(items)) - set(drawn))
        return self._sample(rest, len(drawn), stream=1) if len(rest) >= len(drawn) else []

    def clip_seeds(self, indices: Sequence[int]) -> list[int]:
        """Clip seeds: they decide the random window of each item."""
        which = torch.tensor(indices, dtype=torch.int64)
        seeds: list[int] = noise.sample_seeds(self.seed, "protocol clips", which).tolist()
        return seeds

    def _sample(self, items: Sequence[int], count: int, stream: int = 0) -> list[int]:
        return random.Random(self.seed + stream).sample(items, count)


def _value(field: str, value: object) -> object:
    return ("all" if field == "count" else "none") if value in (None, "") else value


UCF101_VIDEOS = {"train": 9537, "test": 3783, "train+test": 13_320}
"""Of the first of the three official splits."""
UCF101_NAMES = {"train": "UCF-101, groups 8 to 25", "test": "UCF-101, groups 1 to 7", "train+test": "UCF-101"}
K600_VAL_VIDEOS = 29_739
"""Rows of the validation list that LARP and AdapTok use."""
TOKENBENCH_VIDEOS = 520
"""Entries of video/list.txt of NVlabs/TokenBench."""


def _ucf_generation(name: str, note: str, *, count: int = 2048, split: str = "train") -> EvaluationProtocol:
    return EvaluationProtocol(
        name=name,
        task="generation",
        dataset="UCF-101",
        split=split,
        frames=16,
        clips="random",
        count=count,
        resolution=128,
        videos=UCF101_VIDEOS[split],
        names=UCF101_NAMES[split],
        resize=TORCHVISION,
        note=note,
    )


def _ucf_reconstruction(name: str, split: str, clips: Clips, note: str) -> EvaluationProtocol:
    return EvaluationProtocol(
        name=name,
        task="reconstruction",
        dataset="UCF-101",
        split=split,
        frames=16,
        clips=clips,
        count=UCF101_VIDEOS[split],
        resolution=128,
        videos=UCF101_VIDEOS[split],
        names=UCF101_NAMES[split],
        resize=TORCHVISION,
        note=note,
    )


def _infotok(name: str, dataset: str, names: str) -> EvaluationProtocol:
    """A test set at 240p as InfoTok (arXiv 2512.16975) publishes it: PSNR, SSIM, LPIPS-VGG and FVD of complete videos.

    From its code and TokenBench's `metrics_cli`, which it calls: frames as its files hold them, outputs in 8 bits, SSIM
    of scikit-image, FVD of the first 300 frames, whose short side is resized to 224. Not public: how the files were
    made from the originals (the resize and the compression), and how many there are. A departure: InfoTok scores
    reconstructions that went through a lossy mp4 file, here they are scored as decoded. Windows of 81 frames that
    overlap by 3 are its model's, not the protocol's.
    """
    return EvaluationProtocol(
        name=name,
        task="reconstruction",
        dataset=dataset,
        split="all",
        frames=None,
        clips="whole",
        count=None,
        resolution=240,
        names=names,
        resize=DISTRIBUTED,
        quantize="round",
        feature_resolution=224,
        feature_frames=300,
        uniform_ssim=True,
        ddof=1,
        note="InfoTok's files; its table of 33 frames at 256x256 is another protocol, whose crops are not published",
    )


_ALL = (
    replace(
        _ucf_generation(
            "ucf101-gfvd-larp-10k",
            "LARP, AdapTok: the labels of the real windows condition the generator; split 1",
            count=10_000,
        ),
        clips="windows",
        sampler_seeds=4,
    ),
    replace(
        _ucf_generation("ucf101-gfvd-tats-2048", "TATS: about equally many clips of each class"),
        resize=TATS,
        quantize="truncate",
        ddof=1,
    ),
    replace(
        _ucf_generation(
            "ucf101-gfvd-stylegan-v-2048",
            "StyleGAN-V, whose code takes the first 2,048 videos, a few classes only, where here they are drawn, and "
            "whose frames are resized by Lanczos' filter and stored as JPEG",
            split="train+test",
        ),
        resolution=256,
        quantize="round",
    ),
    _ucf_reconstruction("ucf101-rfvd-first", "train", "first", "AdapTok: the first 16 frames"),
    _ucf_reconstruction("ucf101-rfvd-random", "train", "random", "as LARP, but seeded"),
    _ucf_reconstruction("ucf101-rfvd-test-first", "test", "first", "held-out videos"),
    _ucf_reconstruction("ucf101-rfvd-test-random", "test", "random", "held-out videos"),
    EvaluationProtocol(
        name="k600-prediction-larp-50k",
        task="prediction",
        dataset="Kinetics-600",
        split="val",
        frames=16,
        clips="windows",
        count=50_000,
        resolution=128,
        videos=K600_VAL_VIDEOS,
        names="Kinetics-600",
        resize=TORCHVISION,
        scored_resolution=64,
        condition_frames=5,
        note="all 16 decoded frames are scored, the 5 given ones as the tokenizer decodes them; no guidance",
    ),
    EvaluationProtocol(
        name="k600-rfvd-first",
        task="reconstruction",
        dataset="Kinetics-600",
        split="val",
        frames=16,
        clips="first",
        count=None,
        resolution=128,
        videos=K600_VAL_VIDEOS,
        names="Kinetics-600",
        resize=TORCHVISION,
        note="the first 16 frames of each video",
    ),
    EvaluationProtocol(
        name="davis-reconstruction",
        task="reconstruction",
        dataset="DAVIS",
        split="all",
        frames=None,
        clips="whole",
        count=None,
        resolution=256,
        videos=90,
        names="DAVIS 2017, train and val",
        quantize="round",
        features="",
        note="train and val of DAVIS 2017; too few videos for a Frechet distance",
    ),
    EvaluationProtocol(
        name="tokenbench-reconstruction",
        task="reconstruction",
        dataset="TokenBench",
        split="all",
        frames=None,
        clips="whole",
        count=None,
        resolution=256,
        videos=TOKENBENCH_VIDEOS,
        names="TokenBench",
        quantize="round",
        note="at 256x256; the leaderboard's numbers are at up to 1080p and do not compare",
    ),
    _infotok("davis-infotok-240p", "DAVIS at 240p", "DAVIS at 240p"),
    _infotok("tokenbench-infotok-240p", "TokenBench at 240p", "TokenBench at 240p"),
)

SHORTEST_WHOLE = 9
"""Frames that a whole video must have: the fewest of I3D."""

PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def protocol(name: str) -> EvaluationProtocol:
    """A published protocol by its name; ValueError names them all."""
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def check_held_out(name: str, data: VideoData) -> None:
    """ValueError where a protocol's name calls clips held out that are of a training split or of no split."""
    if "held out" not in name.replace("-", " ").lower():
        return
    split = data.source.split_name()
    if split == ALL or "train" in split:
        raise ValueError(
            f"the protocol '{name}' says held out, but the split of its clips is '{split}': hold clips out "
            "(data.source.held_out true, or a split of a manifest), or choose another protocol name"
        )


def data_protocol(
    data: VideoData, name: str, task: Literal["generation", "prediction", "reconstruction"], count: int
) -> EvaluationProtocol:
    """The record of numbers on `count` clips of `data`, with the split of the source; without a feature network."""
    check_held_out(name, data)
    window = data.clip.window
    return EvaluationProtocol(
        name=name,
        task=task,
        dataset=readable(str(configuration.encode(data.source))),
        split=data.source.split_name(),
        frames=None if window == "whole" else data.clip.frames,
        clips=next(clips for clips, its_window in WINDOWS.items() if its_window == window),
        count=count,
        resolution=min(data.clip.resolution),
        features="",
    )


def check_name(record: EvaluationProtocol) -> None:
    """ValueError for a record that bears a published protocol's name without being it."""
    if record != PROTOCOLS.get(record.name, record):
        raise ValueError(f"{record.name} is the name of a published protocol that this record differs from; rename it")
