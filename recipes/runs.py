"""What a training run is: one dataclass per stage, whose YAML file is the recipe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.task import ARTask, ARTaskConfig
from genvid.checkpoint import load_model
from genvid.data.clips import ClipConfig
from genvid.data.dataset import ClipDataset
from genvid.data.source import SourceConfig
from genvid.data.token_cache import TokenCache
from genvid.eval.classifier import ClassifierConfig, VideoClassifier
from genvid.perceptual import PerceptualConfig, StructureConfig
from genvid.sequence import BlockLayout
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.tail_drop import TailDropConfig
from genvid.tokenizer.adaptok.tasks import AdapTokTask, AdversarialAdapTokTask, ObjectiveConfig, ScorerTask
from genvid.tokenizer.discriminator import DiscriminatorConfig
from genvid.tokenizer.layers import TransformerConfig as NetworkConfig
from genvid.tokenizer.losses import Distortion, DistortionConfig
from genvid.train.task import Batch, StepOutput, TrainingTask
from genvid.train.trainer import TrainConfig


@dataclass(frozen=True)
class VideoData:
    """Clips of a source."""

    source: SourceConfig
    clip: ClipConfig = field(default_factory=ClipConfig)
    strict: bool = False
    """Stop at the first unusable file instead of naming, counting and skipping it."""

    def open(self) -> ClipDataset:
        return ClipDataset(self.source, self.clip, strict=self.strict)


@dataclass(frozen=True)
class DistortionSpec:
    """What training lowers, or a scorer predicts."""

    weights: DistortionConfig = field(default_factory=DistortionConfig)
    perceptual: PerceptualConfig = field(default_factory=StructureConfig)

    def build(self) -> Distortion:
        return Distortion(self.weights, self.perceptual.build())


@dataclass(frozen=True, kw_only=True)
class Run(ABC):
    """A stage to be trained into `output_dir`."""

    task: str
    output_dir: str
    train: TrainConfig
    seed: int = 0

    @abstractmethod
    def build(self) -> tuple[TrainingTask, Any]:
        """The task, its weights drawn from the global generator, and the dataset it reads."""


@dataclass(frozen=True, kw_only=True)
class AdapTokRun(Run):
    """Tokenizer; with a discriminator when one is configured."""

    data: VideoData
    model: AdapTokConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    distortion: DistortionSpec = field(default_factory=lambda: DistortionSpec(DistortionConfig(l1=1.0)))
    discriminator: DiscriminatorConfig | None = None

    def __post_init__(self) -> None:
        drop, capacity = self.objective.tail_drop, self.model.block_capacity
        if drop.maximum > capacity:
            raise ValueError(f"tail_drop.maximum {drop.maximum} exceeds model.block_capacity {capacity}")
        _check_clip(self.data.clip, self.model)

    def build(self) -> tuple[TrainingTask, ClipDataset]:
        dataset, distortion = self.data.open(), self.distortion.build()
        if self.discriminator is None:
            return AdapTokTask(self.model, self.objective, distortion), dataset
        return AdversarialAdapTokTask(self.model, self.objective, distortion, self.discriminator), dataset


@dataclass(frozen=True, kw_only=True)
class ScorerRun(Run):
    """Scorer of a trained tokenizer."""

    data: VideoData
    tokenizer: str
    model: NetworkConfig
    sizes: tuple[int, ...]
    """Candidate tokens per block, ascending."""
    tail_drop: TailDropConfig = field(default_factory=TailDropConfig)
    distortion: DistortionSpec = field(default_factory=DistortionSpec)

    def build(self) -> tuple[TrainingTask, ClipDataset]:
        tokenizer = load_adaptok(self.tokenizer)
        _check_clip(self.data.clip, tokenizer.config)
        distortion = self.distortion.build()
        config = ScorerConfig.for_tokenizer(tokenizer.config, self.model, sizes=self.sizes, metric=distortion.name)
        return ScorerTask(Scorer(config), tokenizer, self.tail_drop, distortion), self.data.open()


@dataclass(frozen=True, kw_only=True)
class ARRun(Run):
    """Autoregressive model over a token cache; the cache says what a row is."""

    cache: str
    model: TransformerConfig
    objective: ARTaskConfig = field(default_factory=ARTaskConfig)
    framing: str = "length"

    def build(self) -> tuple[TrainingTask, TokenCache]:
        cache = TokenCache.open(self.cache)
        layout = BlockLayout(
            codebook_size=cache.info.codebook_size,
            num_classes=cache.num_classes,
            num_blocks=cache.info.num_blocks,
            block_capacity=cache.info.block_capacity,
            sizes=cache.info.sizes,
            framing=self.framing,
        )
        return ARTask(BlockTransformer(ARConfig(layout, self.model)), self.objective), cache


@dataclass(frozen=True, kw_only=True)
class ClassifierRun(Run):
    """Video classifier on real clips: judges samples, and gives features for a Frechet distance."""

    data: VideoData
    width: int = 16

    def build(self) -> tuple[TrainingTask, ClipDataset]:
        dataset = self.data.open()
        config = ClassifierConfig(
            classes=tuple(dataset.classes),
            width=self.width,
            frames=self.data.clip.frames,
            resolution=self.data.clip.resolution,
        )
        return ClassifierTask(VideoClassifier(config)), dataset


class ClassifierTask(TrainingTask):
    """Cross entropy of class logits."""

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        self.model = model

    def exportable(self) -> VideoClassifier:
        return self.model

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        logits = self.model(batch["video"]).float()
        loss = nn.functional.cross_entropy(logits, batch["label"], reduction="sum")
        return StepOutput(loss, {"accuracy": (logits.argmax(1) == batch["label"]).double().mean()})


RUNS: dict[str, type[Run]] = {
    "adaptok": AdapTokRun,
    "scorer": ScorerRun,
    "ar": ARRun,
    "classifier": ClassifierRun,
}
"""`task:` of a recipe -> its run."""


def load_adaptok(source: str) -> AdapTok:
    """An AdapTok model folder or Hub id; ValueError when it holds another model."""
    model = load_model(source)
    if not isinstance(model, AdapTok):
        raise ValueError(f"{source} holds a {model.model_type} model, but an AdapTok tokenizer is needed")
    return model


def load_scorer(source: str, tokenizer: AdapTok) -> Scorer:
    """The scorer of `tokenizer`; ValueError when it was made for a tokenizer of another shape."""
    scorer = load_model(source)
    if not isinstance(scorer, Scorer):
        raise ValueError(f"{source} holds a {scorer.model_type} model, but a scorer is needed")
    fits = ScorerConfig.for_tokenizer(
        tokenizer.config,
        NetworkConfig(scorer.config.width, scorer.config.depth, scorer.config.heads),
        sizes=scorer.config.sizes,
        metric=scorer.config.metric,
    )
    if fits != scorer.config:
        raise ValueError(f"the scorer {source} was trained for a tokenizer of another shape")
    return cast(Scorer, scorer)


def device() -> torch.device:
    """Where recipes compute."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_clip(clip: ClipConfig, model: AdapTokConfig) -> None:
    if clip.resolution != model.resolution or clip.frames > model.frames or clip.frames % model.patch[0]:
        raise ValueError(
            f"clips of {clip.frames} frames at {clip.resolution} do not fit a tokenizer of up to {model.frames} frames "
            f"at {model.resolution} in blocks of {model.patch[0]}: change data.clip"
        )
