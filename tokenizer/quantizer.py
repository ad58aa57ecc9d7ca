"""From continuous latents to codes and back: a learned cosine codebook (VQ) and finite scalar quantization (FSQ).

One contract for both: `encode` picks codes, `lookup` turns codes into vectors, `project` turns vectors into decoder
input. Calling the quantizer does the first two with straight-through gradients and returns the training loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, normalize

from genvid import noise
from genvid.config import Choice, check_counts
from genvid.tokenizer.statistics import Whiten

_SIMILARITIES, _SIMILARITIES_ON_GPU = 1 << 23, 1 << 27
"""Token-to-codebook similarities computed at a time: 32 MB, which a cache holds, and 512 MB in a few large kernels."""
_LOW_TEMPERATURE = 0.025
"""Of codes, below which exp((cosine - 1) / temperature) may be 0 in float32 for all cosines of a token."""


@dataclass(frozen=True)
class QuantizerConfig(Choice):  # type: ignore[misc]
    """Which quantizer, and its parameters."""

    whiten: bool = field(default=False, kw_only=True)
    """Quantize whitened latents (`Whiten`), which keeps the codebook in use. Not in the published models."""

    def build(self, features_width: int, embeddings_width: int) -> Quantizer:
        """The quantizer between encoder features and decoder input of these widths."""
        raise NotImplementedError


@dataclass
class Quantized:
    """Quantized features of B clips."""

    vectors: Tensor
    """(B, G, L, code_dim) float32; gradients pass straight through to the features."""
    codes: Tensor
    """(B, G, L) int64."""
    latents: Tensor
    """(B, G, L, code_dim) float32: the input of the quantization, detached."""
    loss: Tensor
    """(B,) each clip's mean over its kept tokens, so that it does not depend on the rest of the batch."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sums over the batch for `Quantizer.update_statistics`."""


class Quantizer(nn.Module, ABC):
    """Features (B, G, L, W) <-> codes (B, G, L). Computes in float32, also under autocast."""

    codebook_size: int
    code_dim: int

    def __init__(self, features_width: int, embeddings_width: int, *, whiten: bool) -> None:
        super().__init__()
        self.input = nn.Linear(features_width, self.code_dim)
        self.whiten = Whiten(self.code_dim) if whiten else nn.Identity()
        self.output = nn.Linear(self.code_dim, embeddings_width)

    def forward(self, features: Tensor, keep: Tensor, seeds: Tensor | None = None) -> Quantized:
        """Quantize with gradients. `keep` (B, G, L) bool: the tokens in the loss.

        `seeds` (B,) int64: in training mode a stochastic quantizer samples its codes with them; None: nearest codes.
        """
        with torch.autocast(features.device.type, enabled=False):
            latents = self.input(features.float())
            quantized = self._quantize(self.whiten(latents), keep, seeds)
            if isinstance(self.whiten, Whiten):
                quantized.sums["latents"] = self.whiten.sums(latents)
        return quantized

    def latents(self, features: Tensor) -> Tensor:
        """(..., W) features -> (..., code_dim) float32: the input of the quantization."""
        with torch.autocast(features.device.type, enabled=False):
            latents: Tensor = self.whiten(self.input(features.float()))
        return latents

    def quantize(self, latents: Tensor, keep: Tensor) -> Quantized:
        """`latents` (B, G, L, code_dim) to their nearest codes, with straight-through gradients."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._quantize(latents, keep, None)

    def update_statistics(self, sums: dict[str, Tensor]) -> None:
        """Update running statistics with the `Quantized.sums` of a training step, added over all processes."""
        if isinstance(self.whiten, Whiten):
            self.whiten.update(sums["latents"])

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """(..., W) features -> (...) int64 codes, deterministic."""
        with torch.autocast(features.device.type, enabled=False):
            return self._nearest(self.latents(features))

    def project(self, vectors: Tensor) -> Tensor:
        """(..., code_dim) vectors -> (..., W) decoder input."""
        projected: Tensor = self.output(vectors)
        return projected

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """(...) codes -> (..., code_dim) vectors, in [-1, 1]."""

    def codebook(self) -> Tensor:
        """(codebook_size, code_dim): the vector of every code."""
        return self.lookup(torch.arange(self.codebook_size, device=self.output.weight.device))

    @abstractmethod
    def _nearest(self, latents: Tensor) -> Tensor:
        """(..., code_dim) -> (...) codes."""

    @abstractmethod
    def _quantize(self, latents: Tensor, keep: Tensor, seeds: Tensor | None) -> Quantized: ...


@QuantizerConfig.register_subclass("vq")
@dataclass(frozen=True)
class VQConfig(QuantizerConfig):
    """Cosine codebook as in AdapTok and LARP; in training, codes are sampled by similarity / temperature."""

    codebook_size: int = 8192
    code_dim: int = 16
    temperature: float = 0.03
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0

    def __post_init__(self) -> None:
        check_counts(self, "codebook_size", "code_dim", section="quantizer.")
        if self.temperature <= 0 or min(self.commitment_weight, self.codebook_weight) < 0:
            raise ValueError(f"the temperature of a quantizer is above 0 and its weights are at least 0, got {self}")

    def build(self, features_width: int, embeddings_width: int) -> Quantizer:
        return VectorQuantizer(self, features_width, embeddings_width)


class VectorQuantizer(Quantizer):
    """The code whose direction is nearest to the latent's (arXiv 2410.21264, 2505.17011)."""

    def __init__(self, config: VQConfig, features_width: int, embeddings_width: int) -> None:
        self.codebook_size, self.code_dim = config.codebook_size, config.code_dim
        super().__init__(features_width, embeddings_width, whiten=config.whiten)
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.codebook_size, config.code_dim))
        nn.init.kaiming_uniform_(self.embedding)

    def lookup(self, codes: Tensor) -> Tensor:
        return normalize(embedding(codes, self.embedding.float()), dim=-1)

    @torch.no_grad()
    def _nearest(self, latents: Tensor) -> Tensor:
        return torch.cat([cosines.argmax(-1) for cosines in self._cosines(latents)]).view(latents.shape[:-1])

    @torch.no_grad()
    def _sample(self, latents: Tensor, seeds: Tensor) -> Tensor:
        """Draw from softmax(cosine / temperature) by inverting its cumulative sum at one number per token."""
        levels = noise.uniform(seeds, "quantizer", *latents.shape[1:-1]).float().view(-1, 1)
        codes, start = [], 0
        for cosines in self._cosines(latents):
            # Cosines are at most 1: no overflow, and no row maximum to subtract but at a low temperature.
            most = cosines.amax(-1, keepdim=True) if self.config.temperature < _LOW_TEMPERATURE else 1.0
            mass = ((cosines - most) / self.config.temperature).exp().cumsum(-1)
            level = levels[start : start + len(mass)] * mass[:, -1:]
            codes.append(torch.searchsorted(mass, level).clamp(max=self.codebook_size - 1))
            start += len(mass)
        return torch.cat(codes).view(latents.shape[:-1])

    def _cosines(self, latents: Tensor) -> Iterator[Tensor]:
        """Similarities (tokens, codebook_size), a limited number of tokens at a time."""
        codebook = self.codebook()
        directions = normalize(latents, dim=-1).flatten(0, -2)
        at_once = _SIMILARITIES_ON_GPU if latents.is_cuda else _SIMILARITIES
        for part in torch.split(directions, max(1, at_once // self.codebook_size)):
            yield part @ codebook.T

    def _quantize(self, latents: Tensor, keep: Tensor, seeds: Tensor | None) -> Quantized:
        if seeds is None or not self.training:
            codes = self._nearest(latents)
        else:
            codes = self._sample(latents, seeds)
        directions, chosen = normalize(latents, dim=-1), self.lookup(codes)
        commitment = (chosen.detach() - directions).square().mean(-1)
        fit = (chosen - directions.detach()).square().mean(-1)
        loss = self.config.commitment_weight * commitment + self.config.codebook_weight * fit
        vectors = directions + (chosen - directions).detach()
        return Quantized(vectors, codes, latents.detach(), _kept_mean(loss, keep))


@QuantizerConfig.register_subclass("fsq")
@dataclass(frozen=True)
class FSQConfig(QuantizerConfig):
    """Round each of a few bounded channels to one of its levels."""

    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"every FSQ channel needs at least 2 levels, got {self.levels}")

    def build(self, features_width: int, embeddings_width: int) -> Quantizer:
        return FiniteScalarQuantizer(self, features_width, embeddings_width)


class FiniteScalarQuantizer(Quantizer):
    """A grid of levels per channel as the codebook (arXiv 2309.15505): nothing to learn, no loss, no sampling."""

    levels: Tensor
    strides: Tensor

    def __init__(self, config: FSQConfig, features_width: int, embeddings_width: int) -> None:
        self.codebook_size, self.code_dim = math.prod(config.levels), len(config.levels)
        super().__init__(features_width, embeddings_width, whiten=config.whiten)
        strides = [math.prod(config.levels[:channel]) for channel in range(self.code_dim)]
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes[..., None] // self.strides % self.levels
        return (digits - self.levels // 2) / (self.levels // 2)

    def _nearest(self, latents: Tensor) -> Tensor:
        return self._codes(self._bound(latents).round())

    def _quantize(self, latents: Tensor, keep: Tensor, seeds: Tensor | None) -> Quantized:
        bounded = self._bound(latents)
        rounded = bounded + (bounded.round() - bounded).detach()
        codes = self._codes(rounded.detach().round())
        return Quantized(rounded / (self.levels // 2), codes, latents.detach(), latents.new_zeros(len(latents)))

    def _bound(self, latents: Tensor) -> Tensor:
        """Squash each channel so that rounding yields exactly its levels; 0 stays 0, but is between the levels of two,
        where it would be at the end of the range, without a gradient."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = (self.levels % 2 == 0) * 0.5
        shift = torch.atanh(offset / half) * (self.levels > 2)
        return torch.tanh(latents + shift) * half - offset

    def _codes(self, rounded: Tensor) -> Tensor:
        return ((rounded.long() + self.levels // 2) * self.strides).sum(-1)


def _kept_mean(values: Tensor, keep: Tensor) -> Tensor:
    """(B, G, L) values -> (B,) mean over the kept tokens of each clip; 0 where none is kept."""
    weights = keep.to(values.dtype).flatten(1)
    return (values.flatten(1) * weights).sum(1) / weights.sum(1).clamp(min=1)
