"""Training AdapTok and its scorer (arXiv 2505.17011)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from genvid import noise
from genvid.batch import Batch
from genvid.frozen import Frozen
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.curves import decode_sizes, distortion_of_each
from genvid.tokenizer.adaptok.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    LeCam,
    adversarial_loss,
    discriminator_loss,
)
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.packed import has_kernel
from genvid.tokenizer.adaptok.prior import PriorConfig, TokenPrior
from genvid.tokenizer.adaptok.scorer import Scorer
from genvid.tokenizer.adaptok.semantic import SemanticConfig, SemanticLoss
from genvid.tokenizer.adaptok.tail_drop import TailDropConfig, at_most, sample_lengths
from genvid.tokenizer.losses import Distortion
from genvid.tokenizer.quantizer import Quantized, VectorQuantizer
from genvid.tokenizer.restart import CodeRestart, RestartConfig
from genvid.tokenizer.statistics import moment_sums
from genvid.tokenizer.teachers import Teacher
from genvid.tokens.blocks import first_tokens
from genvid.train.task import StepOutput, TrainingTask

torch.compiler.assume_constant_result(has_kernel)  # type: ignore[no-untyped-call]
"""A constant of compiled steps: the compiler cannot trace calls of the driver."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The terms of the tokenizer's loss beside the distortion."""

    tail_drop: TailDropConfig = field(default_factory=TailDropConfig)
    quantizer_weight: float = 0.1
    prior: PriorConfig | None = field(default_factory=PriorConfig)
    restart: RestartConfig | None = None
    """Replace unused codes of a learned codebook (genvid.tokenizer.restart)."""
    semantic: SemanticConfig | None = None
    """Predict the features of a frozen network from the tokens (genvid.tokenizer.adaptok.semantic)."""

    def __post_init__(self) -> None:
        if self.quantizer_weight < 0:
            raise ValueError(f"objective.quantizer_weight is at least 0, got {self.quantizer_weight:g}")

    def check_mixed(self) -> None:
        """ValueError where a term is of clips of `model.frames` frames at `model.resolution` alone."""
        if self.prior is not None or self.semantic is not None:
            raise ValueError(
                "objective.prior and objective.semantic are of clips of model.frames frames at model.resolution: set "
                "them to null, or train on such clips without buckets"
            )


class AdapTokTask(TrainingTask):
    """Tokenizer trained with tail drop: distortion + quantizer + prior + semantic losses."""

    compiled_across_layers = True

    def __init__(
        self,
        model: AdapTokConfig,
        objective: ObjectiveConfig,
        distortion: Distortion,
        *,
        teacher: Teacher | None = None,
    ) -> None:
        """`teacher`: the network of `objective.semantic`."""
        super().__init__()
        self.objective = objective
        self.tokenizer = AdapTok(model)
        self.prior = None
        if objective.prior is not None:
            num_tokens = model.block_capacity * self.tokenizer.spec.num_blocks(model.frames)
            self.prior = TokenPrior(objective.prior, code_dim=self.tokenizer.quantizer.code_dim, num_tokens=num_tokens)
        self.restart = None if objective.restart is None else self._code_restart(objective.restart)
        if (objective.semantic is None) != (teacher is None):
            raise ValueError("a teacher and objective.semantic belong together: give both or neither")
        self.semantic = None
        if objective.semantic is not None and teacher is not None:
            self.semantic = SemanticLoss(objective.semantic, teacher, model, self.tokenizer.quantizer.code_dim)
        self._distortion = Frozen(distortion)

    def exportable(self) -> AdapTok:
        return self.tokenizer

    def layers(self) -> Iterable[nn.Module]:
        prior = () if self.prior is None else self.prior.blocks
        return (*self.tokenizer.encoder, *self.tokenizer.decoder, *prior)

    def compile_layers(self) -> None:
        """Clips of every size and length are compiled by themselves, which is faster than for any shape."""
        for layer in (*self.layers(), self._distortion.network.perceptual):
            layer.compile(dynamic=False)

    def use_compiler(self, mode: str | None) -> None:
        """Forward and backward in one piece: shapes are fixed, and a small tokenizer is many small kernels.

        Not `self.compile`, which includes the hooks of the module: FSDP2 gathers weights in them."""
        self.forward = torch.compile(self.forward, mode=mode)  # type: ignore[method-assign]

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        _, losses, terms, sums = self.reconstruct(batch)
        return StepOutput(losses.sum(), terms, sums=sums)

    def update_statistics(self, phase: str, step: int, sums: dict[str, Tensor]) -> None:
        self.tokenizer.quantizer.update_statistics(sums)
        if self.restart is not None:
            self.restart.update(sums["codes"])

    @property
    def replaces_weights(self) -> bool:
        return self.restart is not None

    def replace_weights(self, phase: str, sums: dict[str, Tensor], skip: Tensor) -> dict[str, Tensor]:
        quantizer = self.tokenizer.quantizer
        if self.restart is None or phase != self.phases[0] or not isinstance(quantizer, VectorQuantizer):
            return {}
        return {"quantizer.embedding": self.restart.replace(quantizer, sums["offered"], skip)}

    def summary(self, phase: str, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"codebook_perplexity": perplexity(sums["codes"])}

    def reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Reconstruction of the clips with randomly dropped tails, their losses (B,), the journal's terms, and sums."""
        reconstruction, quantized, keep, parts = self.loss_parts(batch)
        losses = torch.stack(list(parts.values())).sum(0)
        terms = {name: value.detach().mean() for name, value in parts.items()}
        terms["tokens"] = keep.sum((1, 2)).double().mean()
        sums = {"codes": code_counts(quantized, keep, self.tokenizer.quantizer.codebook_size), **quantized.sums}
        if self.restart is not None:
            sums["offered"] = self.restart.sums(quantized, keep, batch["seed"])
        return reconstruction, losses, terms, sums

    def loss_parts(self, batch: Batch) -> tuple[Tensor, Quantized, Tensor, dict[str, Tensor]]:
        """Reconstruction, quantized tokens, those that are kept (B, G, L), and the weighted losses (B,) by name."""
        video, seeds = batch["video"], batch["seed"]
        targets = None if self.semantic is None else self.semantic.targets(video)
        tokenizer = self.tokenizer.at((video.shape[3], video.shape[4]))
        lengths = sample_tails(self.objective.tail_drop, tokenizer, batch)
        most_kept = None
        if self.training:  # on the clips of a training step alone, whose lengths are drawn evenly
            most = tail_drop_at(self.objective.tail_drop, tokenizer).most_kept(*lengths.shape)
            lengths = at_most(lengths, most)
            if tokenizer.packs_training(video.device) and most < lengths.numel() * tokenizer.spec.block_capacity:
                most_kept = most
        keep = first_tokens(lengths, tokenizer.spec.block_capacity)
        added = None if self.semantic is None or targets is None else self.semantic.encoder_input(targets, seeds)
        features = tokenizer.features(video, keep, added)
        quantized = tokenizer.quantizer(features, keep, seeds)
        embeddings = tokenizer.quantizer.project(quantized.vectors)
        layer = None if self.semantic is None else self.semantic.layer
        reconstruction, states = tokenizer.render_with_states(embeddings, keep, layer, most_kept)
        parts = self._distortion.network.parts(reconstruction, video)
        if self.semantic is not None and targets is not None:
            parts |= self.semantic(targets, quantized.vectors, keep, states)
        if self.objective.quantizer_weight:
            parts["quantizer"] = self.objective.quantizer_weight * quantized.loss
        if self.prior is not None and self.objective.prior is not None:
            loss = self.prior(tokenizer.quantizer, quantized, keep, seeds, most_kept)
            parts["prior"] = self.objective.prior.weight * loss
        return reconstruction, quantized, keep, parts

    def _code_restart(self, config: RestartConfig) -> CodeRestart:
        if not isinstance(self.tokenizer.quantizer, VectorQuantizer):
            raise ValueError("objective.restart replaces codes of a learned codebook: use quantizer vq, or null for it")
        return CodeRestart(config, self.tokenizer.quantizer.codebook_size)


class AdversarialAdapTokTask(AdapTokTask):
    """The same with a discriminator: a second phase, with its own optimizer."""

    phases: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    def __init__(
        self,
        model: AdapTokConfig,
        objective: ObjectiveConfig,
        distortion: Distortion,
        discriminator: DiscriminatorConfig,
        *,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(model, objective, distortion, teacher=teacher)
        self.adversary = discriminator
        self.discriminator = Discriminator(discriminator)
        self.lecam = LeCam(discriminator.lecam_decay)

    def compile_layers(self) -> None:
        """The discriminator's too. They are not among `layers`: activation checkpointing would run them again after
        `as_constants` has ended."""
        super().compile_layers()
        for layer in self.discriminator.blocks:
            layer.compile(dynamic=False)

    def use_compiler(self, mode: str | None) -> None:
        """Each phase in one piece. The reconstruction is copied from the first to the second."""
        self._generate = torch.compile(self._generate, mode=mode)  # type: ignore[method-assign]
        self._discriminator_logits = torch.compile(self._discriminator_logits, mode=mode)  # type: ignore[method-assign]

    def phases_at(self, step: int) -> tuple[str, ...]:
        trains = (step - self.adversary.start_step) % self.adversary.every == 0
        return self.phases_by(step) if trains else self.phases[:1]

    def phases_by(self, step: int) -> tuple[str, ...]:
        return self.phases if step >= self.adversary.start_step else self.phases[:1]

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        if phase == "discriminator":
            return self.discriminator.parameters()
        return (p for name, p in self.named_parameters() if not name.startswith("discriminator."))

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        if phase == "discriminator":
            return self._discriminate(batch, carry["reconstruction"])
        with as_constants(self.discriminator):
            reconstruction, losses, terms, sums = self._generate(batch, step >= self.adversary.start_step)
        return StepOutput(losses.sum(), terms, sums=sums, carry={"reconstruction": reconstruction.detach().clone()})

    def update_statistics(self, phase: str, step: int, sums: dict[str, Tensor]) -> None:
        if phase == "generator":
            super().update_statistics(phase, step, sums)
        else:
            count, real, fake = sums["logits"]
            self.lecam.update(real / count, fake / count)

    def summary(self, phase: str, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return super().summary(phase, sums) if phase == "generator" else {}

    def _generate(self, batch: Batch, adversarial: bool) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        reconstruction, losses, terms, sums = self.reconstruct(batch)
        if adversarial:
            loss = self.adversary.weight * adversarial_loss(self.discriminator(reconstruction))
            losses, terms["adversarial"] = losses + loss, loss.detach().mean()
        return reconstruction, losses, terms, sums

    def _discriminator_logits(self, video: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) logits of real and of reconstructed clips."""
        real, fake = self.discriminator(torch.cat([video, reconstruction.to(video.dtype)])).chunk(2)
        return real, fake

    def _discriminate(self, batch: Batch, reconstruction: Tensor) -> StepOutput:
        real, fake = self._discriminator_logits(batch["video"], reconstruction)
        separation = discriminator_loss(real, fake, batch["seed"], self.adversary.label_noise)
        lecam = self.adversary.lecam_weight * self.lecam(real, fake)
        terms = {
            "lecam": lecam.detach().mean(),
            "real_logit": real.detach().mean(),
            "fake_logit": fake.detach().mean(),
        }
        logits = torch.stack([torch.ones_like(real), real.detach(), fake.detach()]).sum(1, dtype=torch.double)
        return StepOutput((separation + lecam).sum(), terms, sums={"logits": logits})


class ScorerTask(TrainingTask):
    """Scorer trained online on the measured distortion of one block per step, the tokenizer frozen.

    Earlier blocks are cut to random lengths, as allocators cut them. Inputs and targets are normalised by statistics
    of the first `STATISTICS_STEPS` steps, which are saved with the scorer.
    """

    compiled_across_layers = True
    STATISTICS_STEPS: ClassVar[int] = 100

    def __init__(self, scorer: Scorer, tokenizer: AdapTok, tail_drop: TailDropConfig, distortion: Distortion) -> None:
        super().__init__()
        self.scorer, self.tail_drop = scorer, tail_drop
        self._tokenizer, self._distortion = Frozen(tokenizer.eval().requires_grad_(False)), Frozen(distortion)

    def exportable(self) -> Scorer:
        return self.scorer

    def layers(self) -> Iterable[nn.Module]:
        return self.scorer.layers

    def compile_layers(self) -> None:
        tokenizer = self._tokenizer.network
        for layer in (*self.scorer.layers, *tokenizer.encoder, *tokenizer.decoder):
            layer.compile()

    def use_compiler(self, mode: str | None) -> None:
        """For every block, which has shapes of its own: all up to the decoded frames in one piece, and all from their
        distortion on. Between them a perceptual distance runs in passes, each a compiled piece."""
        self._distortion.network.perceptual.compile(dynamic=False)
        self._decode = torch.compile(self._decode, mode=mode, dynamic=False)  # type: ignore[method-assign]
        self._score = torch.compile(self._score, mode=mode, dynamic=False)  # type: ignore[method-assign]

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        video, tokenizer = batch["video"], self._tokenizer.network
        block = int(tokenizer.spec.num_blocks(video.shape[2]) * noise.uniform(torch.tensor([step]), "scored block"))
        decoded, scorer_inputs, keep = self._decode(batch, block)
        original = video[:, :, tokenizer.spec.span(block)]
        curve = distortion_of_each(decoded, original, self._distortion.network)
        # Copies: CUDA graphs reuse the memory of their outputs.
        losses, terms, sums = self._score(scorer_inputs.clone(), keep.clone(), curve, (video.shape[3], video.shape[4]))
        return StepOutput(losses.sum(), terms, sums=sums if step < self.STATISTICS_STEPS else {})

    @torch.no_grad()
    def _decode(self, batch: Batch, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Frames of `block` at all candidate sizes, scorer inputs and kept tokens of the blocks up to it, the last
        whole."""
        video = batch["video"]
        tokenizer = self._tokenizer.network.at((video.shape[3], video.shape[4]))
        scorer, spec = self.scorer.at(tokenizer), tokenizer.spec
        lengths = sample_tails(self.tail_drop, tokenizer, batch)[:, : block + 1]
        lengths[:, block] = spec.block_capacity
        upto = video[:, :, : spec.longest_clip(block + 1)]
        features = tokenizer.features(upto, first_tokens(lengths, spec.block_capacity))
        tokens = tokenizer.quantized(features).tail_drop(lengths)
        decoded = decode_sizes(tokenizer, tokens, block, scorer.candidates)
        return decoded, scorer.scorer_inputs(tokenizer, tokens), tokens.keep

    def _score(
        self, scorer_inputs: Tensor, keep: Tensor, curve: Tensor, resolution: tuple[int, int]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Squared errors (B,) of the scores of the last block, whose curves (B, K) are measured; the journal's terms;
        and sums."""
        scorer = self.scorer.at(self._tokenizer.network.at(resolution))
        target = scorer.targets(curve)
        predicted = scorer(scorer_inputs, keep)[:, -1].float()
        errors = (predicted - scorer.normalize(target)).square().mean(1)
        spread = scorer.denormalize(predicted.detach()) - curve
        terms = {"distortion": curve.mean(), "absolute_error": spread.abs().mean()}
        every = torch.ones_like(curve[:, 0], dtype=torch.bool)
        sums = {"targets": moment_sums(target, every), "scorer_inputs": moment_sums(scorer_inputs, keep)}
        return errors, terms, sums

    def update_statistics(self, phase: str, step: int, sums: dict[str, Tensor]) -> None:
        if step < self.STATISTICS_STEPS:
            count, mean, square = sums["targets"]
            self.scorer.update_targets(mean / count, square / count, step)
            count, mean, square = sums["scorer_inputs"]
            self.scorer.evidence_scale.update(mean / count, square / count, step)


def sample_tails(drop: TailDropConfig, tokenizer: AdapTok, batch: Batch) -> Tensor:
    """(B, G) int64: kept tokens of each block of the clips."""
    blocks = tokenizer.spec.num_blocks(batch["video"].shape[2])
    return sample_lengths(tail_drop_at(drop, tokenizer), batch["seed"], blocks)


def tail_drop_at(drop: TailDropConfig, tokenizer: AdapTok) -> TailDropConfig:
    """The tail drop of the trained frame size, for that of `tokenizer`."""
    return drop.scaled(tokenizer.spec.block_capacity / tokenizer.config.block_capacity)


@contextmanager
def as_constants(network: nn.Module) -> Iterator[None]:
    """Within the context the weights of `network` need no gradient. Hooks of FSDP2 run as usual."""
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def code_counts(quantized: Quantized, keep: Tensor, codebook_size: int) -> Tensor:
    """(codebook_size,) float64: how often each code occurs among the kept tokens."""
    counts = torch.zeros(codebook_size, device=keep.device, dtype=torch.double)
    return counts.index_add_(0, quantized.codes.flatten(), keep.flatten().double())


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of the codes in use: between 1 and the codebook size."""
    share = counts / counts.sum()
    entropy: Tensor = torch.special.entr(share).sum()
    return entropy.exp()
