"""Bases of training runs: their fields, their clips and held-out data."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

from genvid.data.buckets import BucketConfig, BucketedClips
from genvid.data.clips import ClipConfig
from genvid.data.dataset import ClipDataset, VideoData
from genvid.data.loader import SizedDataset
from genvid.data.sources.base import SourceConfig
from genvid.files import readable
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokens.cache import TokenCache
from genvid.train.config import TrainConfig, ValidationConfig
from genvid.train.task import TrainingTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeldOutClips(ValidationConfig):
    """Held-out clips, cut by the clip rule of `data`."""

    source: SourceConfig


@dataclass(frozen=True, kw_only=True)
class HeldOutTokens(ValidationConfig):
    """Held-out rows: a cache of other clips, made with the same tokenizer and allocator."""

    cache: str

    def open(self, trained: TokenCache) -> TokenCache:
        """The cache, beside that which is trained on."""
        alike = {name: getattr(trained.info, name) for name in ("tokenizer", "frames", "sizes", "classes")}
        held_out = TokenCache.open(self.cache, **alike)
        if held_out.info.data == trained.info.data:
            raise ValueError(f"validation.cache {self.cache} holds the clips that are trained on: cache others")
        return held_out


@dataclass(frozen=True, kw_only=True)
class Run(ABC):
    """A stage to be trained into `output_dir`."""

    task: str
    output_dir: str
    train: TrainConfig
    seed: int = 0
    init_from: str | None = None
    """Model folder or Hub id whose weights the training starts from (genvid.train.start)."""
    may_differ: tuple[str, ...] | None = None
    """Config keys and weights in which the model of `init_from` may differ; weights that do not fit start anew."""
    validation: ValidationConfig | None = None
    """Held-out data, on which the same loss is measured while the run trains."""

    @abstractmethod
    def build(self) -> tuple[TrainingTask, SizedDataset]:
        """The task, its weights drawn from the global generator, and the dataset it reads."""

    @abstractmethod
    def held_out(self) -> SizedDataset:
        """The dataset of `validation`."""


@dataclass(frozen=True, kw_only=True)
class ClipRun(Run):
    """A stage that is trained on clips."""

    data: VideoData
    validation: HeldOutClips | None = None

    @cached_property
    def clips(self) -> ClipDataset:
        """Those of `data`, opened once."""
        return self.data.open()

    def held_out(self) -> ClipDataset:
        return self.held_out_clips

    @cached_property
    def held_out_clips(self) -> ClipDataset:
        """Those of `validation`, opened once."""
        assert self.validation is not None
        if self.validation.source == self.data.source:
            raise ValueError(
                "validation.source is data.source, whose clips are trained on: give it another split, held_out or seed"
            )
        held_out = replace(self.data, source=self.validation.source).open()
        videos, trained = held_out.source.digests, set(self.clips.source.digests.values())
        shared = [readable(path) for path, digest in videos.items() if digest in trained]
        if shared:
            message = f"{len(shared)} of the {len(videos)} videos of validation.source are also trained on"
            if len(shared) == len(videos):
                raise ValueError(f"{message}: hold them out (data.source.held_out false, or a split of a manifest)")
            logger.warning("%s: %s", message, ", ".join(shared[:10]))
        return held_out


@dataclass(frozen=True, kw_only=True)
class BucketRun(ClipRun):
    """A stage of AdapTok that may be trained on clips of several lengths and sizes."""

    buckets: tuple[BucketConfig, ...] | None = None
    """Lengths and sizes of training clips, for rotary geometry; by default those of `data.clip`, which are also those
    of held-out clips, and of the clips that `train.batch_size` counts."""

    def open(self, model: AdapTokConfig) -> ClipDataset | BucketedClips:
        """The clips, for a tokenizer."""
        return BucketedClips(self.data, self.buckets, model.frame_blocks) if self.buckets else self.clips

    @property
    def clip_rules(self) -> tuple[ClipConfig, ...]:
        """The rule of held-out clips, and those of all buckets."""
        return self.data.clip, *(bucket.clip(self.data.clip) for bucket in self.buckets or ())

    def check_clips(self, model: AdapTokConfig) -> None:
        """ValueError for clips that a tokenizer does not take."""
        for clip in self.clip_rules:
            model.check_clip(clip.frames, clip.resolution)
        longest = max(clip.frames for clip in self.clip_rules)
        if model.window is None and longest < model.frames and self.init_from is None:
            raise ValueError(
                f"clips of at most {longest} frames leave the last blocks of a tokenizer of {model.frames} frames "
                "untrained (its geometry is absolute): change data.clip.frames or model.frames"
            )
