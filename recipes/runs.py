"""Training runs: one dataclass per stage, whose YAML file is the recipe."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from torch import Tensor, nn

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.draft import DraftConfig, DraftHeads, DraftTask
from genvid.ar.groups import GroupConfig, GroupTask, GroupTransformer
from genvid.ar.model import BlockTransformer
from genvid.ar.row_model import RowModel
from genvid.ar.rows import PackedRows, RowConfig
from genvid.ar.task import ARTask
from genvid.batch import Batch
from genvid.checkpoint import load_model
from genvid.config import check_counts
from genvid.data.clips import ClipConfig
from genvid.data.dataset import ClipDataset
from genvid.data.loader import SizedDataset, one_pass
from genvid.device import device
from genvid.eval.features.classifier import VideoClassifier, VideoClassifierConfig
from genvid.provenance import Origin, check_made_from
from genvid.recipes.run import BucketRun, ClipRun, HeldOutTokens, Run
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.discriminator import DiscriminatorConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.tail_drop import TailDropConfig
from genvid.tokenizer.adaptok.tasks import AdapTokTask, AdversarialAdapTokTask, ObjectiveConfig, ScorerTask
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.lit.codecs.autoencoder import AutoencoderConfig, AutoencoderTask, VideoAutoencoder
from genvid.tokenizer.lit.codecs.cells import CellAutoencoder, CellAutoencoderConfig
from genvid.tokenizer.lit.model import LIT, LITConfig
from genvid.tokenizer.lit.task import LITObjective, LITTask
from genvid.tokenizer.losses import DistortionConfig, DistortionSpec
from genvid.tokens.cache import TokenCache
from genvid.tokens.rows import BlockLayout
from genvid.train.placement import trained_weights
from genvid.train.task import StepOutput, TrainingTask


@dataclass(frozen=True, kw_only=True)
class AdapTokRun(BucketRun):
    """Tokenizer; with a discriminator when one is configured."""

    model: AdapTokConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    distortion: DistortionSpec = field(default_factory=lambda: DistortionSpec(DistortionConfig(l1=1.0)))
    discriminator: DiscriminatorConfig | None = None

    def __post_init__(self) -> None:
        self.objective.tail_drop.check(self.model.block_capacity)
        self.check_clips(self.model)
        if self.discriminator is not None:
            for clip in self.clip_rules:
                self.discriminator.check(clip.resolution)
        if self.buckets or self.data.clip.frames > self.model.frames:
            self.objective.check_mixed()

    def build(self) -> tuple[TrainingTask, SizedDataset]:
        dataset, distortion = self.open(self.model), self.distortion.build()
        made_from = {"data": dataset.describe(), "distortion": distortion.name}
        teacher = None if self.objective.semantic is None else self.objective.semantic.teacher.build()
        if teacher is not None:
            made_from["teacher"] = teacher.name
            teacher.check([dataset, *([self.held_out()] if self.validation else [])])
        with trained_weights():
            if self.discriminator is None:
                task = AdapTokTask(self.model, self.objective, distortion, teacher=teacher)
            else:
                adversary = self.discriminator
                task = AdversarialAdapTokTask(self.model, self.objective, distortion, adversary, teacher=teacher)
        task.tokenizer.origin = Origin(made_from)
        return task, dataset


@dataclass(frozen=True, kw_only=True)
class ScorerRun(BucketRun):
    """Scorer of a trained tokenizer."""

    tokenizer: str
    model: StackConfig
    sizes: tuple[int, ...]
    """Candidate tokens per block, ascending."""
    tail_drop: TailDropConfig = field(default_factory=TailDropConfig)
    distortion: DistortionSpec = field(default_factory=DistortionSpec)
    gains: bool = True
    """Predict gains (see `ScorerConfig`); false is the published way."""

    def build(self) -> tuple[TrainingTask, SizedDataset]:
        tokenizer = load_model(self.tokenizer, AdapTok)
        self.check_clips(tokenizer.config)
        self.tail_drop.check(tokenizer.config.block_capacity)
        distortion = self.distortion.build()
        config = ScorerConfig.for_tokenizer(
            tokenizer.config, self.model, sizes=self.sizes, metric=distortion.name, gains=self.gains
        )
        with trained_weights():
            scorer = Scorer(config)
        dataset = self.open(tokenizer.config)
        made_from = {"tokenizer": tokenizer.fingerprint, "data": dataset.describe(), "distortion": distortion.name}
        scorer.origin = Origin(made_from)
        return ScorerTask(scorer, tokenizer, self.tail_drop, distortion), dataset


@dataclass(frozen=True, kw_only=True)
class AutoencoderRun(ClipRun):
    """A small causal video autoencoder: a codec for LIT where none can be downloaded."""

    model: AutoencoderConfig
    distortion: DistortionSpec = field(default_factory=lambda: DistortionSpec(DistortionConfig(l1=1.0)))
    latent_penalty: float = 1e-3

    def __post_init__(self) -> None:
        _check_codec_clip(self.data.clip, self.model.temporal_stride)

    def build(self) -> tuple[TrainingTask, ClipDataset]:
        dataset, distortion = self.clips, self.distortion.build()
        with trained_weights():
            autoencoder = VideoAutoencoder(self.model)
        autoencoder.origin = Origin({"data": dataset.describe()})
        return AutoencoderTask(autoencoder, distortion, self.latent_penalty), dataset


@dataclass(frozen=True, kw_only=True)
class CellAutoencoderRun(ClipRun):
    """A codec for LIT that starts from the principal components of cells of pixels."""

    model: CellAutoencoderConfig = field(default_factory=CellAutoencoderConfig)
    distortion: DistortionSpec = field(
        default_factory=lambda: DistortionSpec(DistortionConfig(log_mse=1.0, perceptual=0.0))
    )
    latent_penalty: float = 1e-3
    component_clips: int = 64
    """Clips whose cells have these components."""

    def __post_init__(self) -> None:
        check_counts(self, "component_clips")
        _check_codec_clip(self.data.clip, self.model.temporal_stride)

    def build(self) -> tuple[TrainingTask, ClipDataset]:
        dataset, distortion = self.clips, self.distortion.build()
        with trained_weights():
            autoencoder = CellAutoencoder(self.model)
        autoencoder.start_from_components(_spread_clips(dataset, self.component_clips))
        autoencoder.origin = Origin({"data": dataset.describe()})
        return AutoencoderTask(autoencoder, distortion, self.latent_penalty), dataset


@dataclass(frozen=True, kw_only=True)
class LITRun(ClipRun):
    """Inpainter on a frozen codec."""

    model: LITConfig
    objective: LITObjective = field(default_factory=LITObjective)
    metric_clips: int = 16
    """Clips on which the codec's metric is measured."""

    def __post_init__(self) -> None:
        check_counts(self, "metric_clips")

    def build(self) -> tuple[TrainingTask, ClipDataset]:
        if self.data.clip.resolution != self.model.resolution:
            raise ValueError(
                f"clips at {self.data.clip.resolution} do not fit model.resolution {self.model.resolution}"
            )
        lit, dataset = LIT(self.model), self.clips
        lit.origin = Origin({"codec": lit.codec.fingerprint(), "data": dataset.describe()})
        lit.spec.num_blocks(self.data.clip.frames)
        lit.to(device()).measure(_spread_clips(dataset, self.metric_clips).to(device()))
        return LITTask(lit, self.objective), dataset


@dataclass(frozen=True, kw_only=True)
class ARRun(Run):
    """Autoregressive model over the rows of a token cache."""

    cache: str
    model: TransformerConfig
    validation: HeldOutTokens | None = None
    objective: RowConfig = field(default_factory=RowConfig)
    framing: str = "length"
    context_blocks: int = 0
    """Above 0: frame prediction from that many given blocks, without classes."""
    sink_blocks: int = 0
    """Of the given blocks, those at the beginning of the stream, however far the window is."""
    num_blocks: int | None = None
    """Of a row: windows of cached streams of more blocks, drawn anew each time; by default all blocks."""
    budget_bins: int = 0
    """Above 0: rows begin with a budget token, their number of codes in so many bins, for sampling at a budget."""

    def build(self) -> tuple[TrainingTask, PackedRows]:
        cache = TokenCache.open(self.cache)
        config = self._config(cache)
        with trained_weights():
            task = self._task(config)
        made_from = {"tokenizer": cache.info.tokenizer, "cache": cache.describe()}
        task.exportable().origin = Origin(made_from, cache.classes)
        return task, PackedRows(cache, config, self.objective)

    def _task(self, config: ARConfig) -> ARTask:
        return ARTask(BlockTransformer(config))

    def held_out(self) -> PackedRows:
        assert self.validation is not None
        cache = TokenCache.open(self.cache)
        return PackedRows(self.validation.open(cache), self._config(cache), self.objective)

    def _config(self, cache: TokenCache) -> ARConfig:
        layout = BlockLayout(
            codebook_size=cache.info.codebook_size,
            num_classes=cache.num_classes,
            num_blocks=cache.info.num_blocks if self.num_blocks is None else self.num_blocks,
            block_capacity=cache.info.block_capacity,
            sizes=tuple(cache.info.sizes),
            framing=self.framing,
            budget_bins=self.budget_bins,
        )
        null_context = self.objective.context_dropout > 0
        return ARConfig(layout, self.model, self.context_blocks, null_context, self.sink_blocks)


@dataclass(frozen=True, kw_only=True)
class GroupRun(ARRun):
    """Autoregressive model that predicts several codes of a block at once."""

    groups: tuple[int, ...] = (1, 1, 2, 4, 8)
    """Codes of the consecutive groups of a block; the last number repeats."""

    def _task(self, config: ARConfig) -> ARTask:
        shape = {field.name: getattr(config, field.name) for field in fields(config)}
        return GroupTask(GroupTransformer(GroupConfig(**shape, groups=self.groups)))


@dataclass(frozen=True, kw_only=True)
class DraftRun(Run):
    """Draft heads of a trained autoregressive model, on the rows that it was trained on."""

    cache: str
    model: str
    """Model folder or Hub id."""
    heads: int = 4
    """Codes guessed at a time."""
    depth: int = 1
    """Residual layers of each head."""
    validation: HeldOutTokens | None = None
    objective: RowConfig = field(default_factory=RowConfig)

    def build(self) -> tuple[TrainingTask, PackedRows]:
        cache, model = TokenCache.open(self.cache), load_model(self.model, RowModel)
        way_out = "use a cache of the tokenizer that it was trained with"
        check_made_from(self.model, model.origin.made_from, {"tokenizer": cache.info.tokenizer}, way_out)
        with trained_weights():
            heads = DraftHeads(DraftConfig(model.config.transformer.width, self.heads, self.depth))
        return DraftTask(model, heads), PackedRows(cache, model.config, self.objective)

    def held_out(self) -> PackedRows:
        assert self.validation is not None
        cache, config = TokenCache.open(self.cache), load_model(self.model, RowModel).config
        return PackedRows(self.validation.open(cache), config, self.objective)


@dataclass(frozen=True, kw_only=True)
class ClassifierRun(ClipRun):
    """Video classifier on real clips: for the classes of samples, and for features of a Frechet distance."""

    width: int = 24
    pool: int = 1

    def build(self) -> tuple[TrainingTask, ClipDataset]:
        dataset, clip = self.clips, self.data.clip
        config = VideoClassifierConfig(
            dataset.num_classes,
            frames=clip.frames,
            resolution=min(clip.resolution),
            width=self.width,
            pool=self.pool,
        )
        with trained_weights():
            classifier = VideoClassifier(config)
        classifier.origin = Origin({"data": dataset.describe()}, dataset.classes)
        return ClassifierTask(classifier), dataset

    def held_out(self) -> ClipDataset:
        held_out, classes = super().held_out(), self.clips.classes
        if held_out.classes != classes:
            raise ValueError(
                f"validation.source has the classes {', '.join(held_out.classes)}, but {', '.join(classes)} are trained"
            )
        return held_out


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
    "autoencoder": AutoencoderRun,
    "cell_autoencoder": CellAutoencoderRun,
    "lit": LITRun,
    "ar": ARRun,
    "ar_groups": GroupRun,
    "ar_draft": DraftRun,
    "classifier": ClassifierRun,
}
"""`task:` of a recipe -> its run."""


def _spread_clips(dataset: ClipDataset, count: int) -> Tensor:
    """(N, 3, T, H, W) in [-1, 1]: at most `count` clips, evenly spread over a data set."""
    items = range(0, len(dataset), -(-len(dataset) // count))
    return next(one_pass(dataset, batch_size=count, items=items))["video"]


def _check_codec_clip(clip: ClipConfig, step: int) -> None:
    if clip.frames % step != 1:
        raise ValueError(f"the autoencoder takes clips of 1 + n * {step} frames, got {clip.frames}: change data.clip")
