"""Losses that give tokens a meaning: features of a frozen teacher, predicted from the tokens of a block.

Prefix heads (SemanTok, arXiv 2610.00686): cross-attention over the kept tokens of a block alone predicts the teacher's
patches and its pooled vector. A head has the input of an autoregressive model: the tokens in order, cut anywhere.
Decoder alignment (EVATok, arXiv 2603.12267): states of the pixel queries in the middle of the decoder, for comparison.
They depend on earlier blocks and on everything else that the decoder adds, too.

The teacher's features may enter the encoder beside the patches (SemanTok). SemanTok reads them at inference too. Here
inference goes without a teacher, and so does a share of the training clips.

Distances are 1 - cosine. The papers do not give the sizes of their heads; these are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvid import noise
from genvid.frozen import Frozen
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.positions import sincos
from genvid.tokenizer.layers import initialise, learned_table
from genvid.tokenizer.teachers import Teacher, TeacherConfig
from genvid.tokens.frame_blocks import fill_first


@dataclass(frozen=True)
class PrefixHeadsConfig:
    """Heads over the kept tokens of each block."""

    patches_weight: float = 0.5
    pooled_weight: float = 0.5
    grid: tuple[int, int] = (8, 8)
    """Cells of the picture whose features are predicted; the teacher's patches are averaged to them."""
    width: int = 256
    heads: int = 4

    def __post_init__(self) -> None:
        if min(self.patches_weight, self.pooled_weight) < 0 or not self.patches_weight + self.pooled_weight:
            raise ValueError(f"weights of semantic.prefix are at least 0 and not both 0, got {self}")
        if self.width % self.heads or self.width % 2 or min(self.grid) < 1:
            raise ValueError(f"semantic.prefix needs cells, and a width that is even and a multiple of heads: {self}")


@dataclass(frozen=True)
class DecoderAlignmentConfig:
    """Alignment of decoder states with the teacher's patches."""

    weight: float = 0.7
    layer: int | None = None
    """Of the decoder, from 0; null: the middle one."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"semantic.decoder.weight is at least 0, got {self.weight:g}")


@dataclass(frozen=True)
class EncoderInputConfig:
    """The teacher's features beside the encoder's patches, in training alone."""

    dropped: float = 0.5
    """Share of the clips whose encoder does not read them."""

    def __post_init__(self) -> None:
        if not 0 < self.dropped < 1:
            raise ValueError(
                f"semantic.encoder.dropped is a share between 0 and 1, got {self.dropped:g}: an encoder in use has no "
                "features, so it is trained without them too"
            )


@dataclass(frozen=True)
class SemanticConfig:
    """A teacher, and the parts of the tokenizer that learn to predict its features."""

    teacher: TeacherConfig
    prefix: PrefixHeadsConfig | None = field(default_factory=PrefixHeadsConfig)
    decoder: DecoderAlignmentConfig | None = None
    encoder: EncoderInputConfig | None = None

    def __post_init__(self) -> None:
        if self.prefix is None and self.decoder is None:
            raise ValueError("objective.semantic trains nothing: give it prefix or decoder")


class Targets(NamedTuple):
    """A teacher's features of a clip."""

    patches: Tensor
    """(B, G, h, w, D)."""
    pooled: Tensor
    """(B, G, D)."""


class SemanticLoss(nn.Module):
    """The losses and their heads. Only training needs them: they are in no export."""

    def __init__(self, config: SemanticConfig, teacher: Teacher, model: AdapTokConfig, code_dim: int) -> None:
        super().__init__()
        self.config, self.block_frames = config, model.patch[0]
        self.layer: int | None = None
        """Of the decoder, whose states are aligned."""
        self._teacher = Frozen(teacher)
        self.patches = self.pooled = self.align = self.enter = None
        if config.prefix is not None:
            cells = config.prefix.grid[0] * config.prefix.grid[1]
            self.patches = PrefixHead(config.prefix, code_dim, cells, teacher.width)
            self.pooled = PrefixHead(config.prefix, code_dim, 1, teacher.width)
        if config.decoder is not None:
            width, depth = model.decoder.width, model.decoder.depth
            self.layer = depth // 2 if config.decoder.layer is None else config.decoder.layer
            if not 0 <= self.layer < depth:
                raise ValueError(f"semantic.decoder.layer {self.layer} is not among the decoder's {depth} layers")
            self.align = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, teacher.width))
            initialise(self.align)
        if config.encoder is not None:
            self.grid = model.grid[1], model.grid[2]
            read = nn.Linear(teacher.width, model.encoder.width, bias=False)
            nn.init.zeros_(read.weight)
            self.enter = nn.Sequential(nn.LayerNorm(teacher.width), read)

    def targets(self, video: Tensor) -> Targets:
        """Features of a clip (B, 3, T, H, W)."""
        video = fill_first(video, self.block_frames)
        patches, pooled = self._teacher.network(video, video.shape[2] // self.block_frames)
        return Targets(patches, pooled)

    def encoder_input(self, targets: Targets, seeds: Tensor) -> Tensor | None:
        """(B, G, P, W) to be added to the encoder's patches, 0 for the clips of these `seeds` (B,) that go without;
        None: for all, as in use."""
        if self.config.encoder is None or self.enter is None or not self.training:
            return None
        added: Tensor = self.enter(averaged(targets.patches, self.grid))
        given = noise.uniform(seeds, "teacher's features") > self.config.encoder.dropped
        return torch.where(given[:, None, None, None], added, 0)

    def forward(self, targets: Targets, vectors: Tensor, keep: Tensor, states: Tensor) -> dict[str, Tensor]:
        """Weighted losses (B,) by name.

        `vectors` (B, G, L, code_dim) are quantized tokens, of which those of `keep` (B, G, L) are read; `states` (B, G,
        rows, columns, W) those of the pixel queries after decoder layer `layer`.
        """
        losses, prefix, decoder = {}, self.config.prefix, self.config.decoder
        if prefix is not None and self.patches is not None and self.pooled is not None:
            patches, pooled = averaged(targets.patches, prefix.grid), targets.pooled[:, :, None]
            losses["semantic_patches"] = prefix.patches_weight * distance(self.patches(vectors, keep), patches)
            losses["semantic_pooled"] = prefix.pooled_weight * distance(self.pooled(vectors, keep), pooled)
        if decoder is not None and self.align is not None:
            patches = averaged(targets.patches, (states.shape[2], states.shape[3]))
            losses["semantic_decoder"] = decoder.weight * distance(self.align(states.flatten(2, 3)), patches)
        return losses


class PrefixHead(nn.Module):
    """Learned queries that attend to the kept tokens of one block: (B, G, L, C) -> (B, G, queries, outputs)."""

    def __init__(self, config: PrefixHeadsConfig, code_dim: int, queries: int, outputs: int) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.read = nn.Linear(code_dim, width)
        self.keys_values = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.predict = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))
        initialise(self)
        self.queries = learned_table(queries, width, std=1.0)

    def forward(self, vectors: Tensor, keep: Tensor) -> Tensor:
        """`keep` (B, G, L) bool: the tokens that are read, at least one of each block."""
        batch, blocks, length, _ = vectors.shape
        index = torch.arange(length, device=vectors.device)
        tokens = self.read(vectors.flatten(0, 1)) + sincos(index, self.queries.shape[-1]).float()
        keys, values = (self._split(part) for part in self.keys_values(self.norm(tokens)).chunk(2, -1))
        queries = self._split(self.queries.expand(batch * blocks, -1, -1).to(keys.dtype))
        mask = keep.flatten(0, 1)[:, None, None]
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        x = read.transpose(1, 2).flatten(2) + self.queries
        predicted: Tensor = self.predict(x + self.mlp(x))
        return predicted.view(batch, blocks, *predicted.shape[1:])

    def _split(self, x: Tensor) -> Tensor:
        """(N, S, W) -> (N, heads, S, W / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def distance(predicted: Tensor, wanted: Tensor) -> Tensor:
    """(B, G, P, D) twice -> (B,): 1 - cosine, averaged over blocks and patches."""
    return 1 - F.cosine_similarity(predicted.float(), wanted.float(), dim=-1).mean((1, 2))


def averaged(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, G, h, w, D) -> (B, G, P, D): means over the P cells of a coarser grid; repeated in a finer one."""
    pooled = F.adaptive_avg_pool2d(patches.flatten(0, 1).permute(0, 3, 1, 2), grid)
    return pooled.flatten(2).mT.reshape(*patches.shape[:2], -1, patches.shape[-1])
