"""The scorer: predicts how a block's distortion falls with its length, given earlier blocks as they were cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genvid.checkpoint import Model
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.attention import block_causal
from genvid.tokenizer.layers import TransformerConfig, learned_table
from genvid.tokens import BlockTokens


@dataclass(frozen=True)
class ScorerConfig:
    """Size of a scorer, and the tokenizer geometry that it was trained for."""

    width: int
    depth: int
    heads: int
    sizes: tuple[int, ...]
    """Candidate lengths of a block, ascending."""
    feature_width: int
    """Of the tokenizer's encoder."""
    embedding_width: int
    """Of the tokenizer's decoder."""
    num_blocks: int
    block_capacity: int
    metric: str
    """The distortion that it predicts, for example "lpips"."""

    def __post_init__(self) -> None:
        sizes = self.sizes
        if not sizes or list(sizes) != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] <= self.block_capacity:
            raise ValueError(f"sizes must ascend within 1 to {self.block_capacity} (the block capacity), got {sizes}")

    @classmethod
    def for_tokenizer(
        cls, tokenizer: AdapTokConfig, network: TransformerConfig, *, sizes: tuple[int, ...], metric: str
    ) -> ScorerConfig:
        """A scorer of the size of `network` that fits `tokenizer`."""
        return cls(
            width=network.width,
            depth=network.depth,
            heads=network.heads,
            sizes=sizes,
            feature_width=tokenizer.encoder.width,
            embedding_width=tokenizer.decoder.width,
            num_blocks=tokenizer.grid[0],
            block_capacity=tokenizer.block_capacity,
            metric=metric,
        )


class Scorer(Model):
    """Transformer over the latents of all blocks; slot `size - 1` of a block reads out the score of that size."""

    model_type = "adaptok_scorer"
    config_type = ScorerConfig
    config: ScorerConfig
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__(config)
        width = config.width
        self.input = nn.Linear(config.feature_width + config.embedding_width, width)
        self.positions = learned_table(config.num_blocks, config.block_capacity, width, std=width**-0.5)
        self.layers = TransformerConfig(width, config.depth, config.heads).build()
        self.output_norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, 1))
        self.register_buffer("target_mean", torch.tensor(0.0))
        self.register_buffer("target_std", torch.tensor(1.0))

    def forward(self, features: Tensor, embeddings: Tensor, keep: Tensor) -> Tensor:
        """Normalised scores (B, G, K) of every block from features (B, G, L, W), embeddings (B, G, L, W) and the kept
        slots (B, G, L). The scores of block g mean something where g is kept whole and earlier blocks as they were cut.
        """
        blocks, capacity = keep.shape[1:]
        attend = block_causal((capacity,) * blocks, keep.flatten(1))
        x = self._tokens(features, embeddings, range(blocks)).flatten(1, 2)
        for layer in self.layers:
            x = layer(x, attend)
        return self._read_out(x.unflatten(1, (blocks, capacity)))

    def denormalize(self, scores: Tensor) -> Tensor:
        """Normalised scores -> distortion in the units of `config.metric`."""
        return scores * self.target_std + self.target_mean

    def normalize(self, distortion: Tensor) -> Tensor:
        """Distortion in the units of `config.metric` -> the scores to be predicted."""
        return (distortion - self.target_mean) / self.target_std

    def update_statistics(self, mean: Tensor, square: Tensor, step: int) -> None:
        """Average the mean and the mean square of the distortions of step `step` (from 0) into those of earlier ones."""
        old_square = self.target_std.square() + self.target_mean.square()
        self.target_mean.lerp_(mean.to(self.target_mean), 1 / (step + 1))
        square = old_square.lerp(square.to(old_square), 1 / (step + 1))
        self.target_std.copy_((square - self.target_mean.square()).clamp(min=1e-12).sqrt())

    def _tokens(self, features: Tensor, embeddings: Tensor, blocks: range) -> Tensor:
        positions = self.positions[blocks.start : blocks.stop]
        return self.input(torch.cat([features, embeddings], -1)) + positions  # type: ignore[no-any-return]

    def _read_out(self, x: Tensor) -> Tensor:
        """(B, G, L, width) -> (B, G, K)."""
        slots = torch.tensor(self.config.sizes, device=x.device) - 1
        scores: Tensor = self.head(self.output_norm(x[:, :, slots]))
        return scores[..., 0]


class ScorerPredictor:
    """A tokenizer and its scorer as a `genvid.allocation.DistortionPredictor`."""

    def __init__(self, tokenizer: AdapTok, scorer: Scorer) -> None:
        self.tokenizer, self.scorer = tokenizer, scorer
        self.sizes = torch.tensor(scorer.config.sizes)

    @torch.no_grad()
    def predict(self, tokens: BlockTokens, block: int) -> Tensor:
        """Distortion (B, K) of `block` at each size, when earlier blocks are cut as `tokens.keep` says."""
        if tokens.features is None:
            raise ValueError(
                "the scorer reads encoder features, which these tokens do not carry; encode the video again"
            )
        keep = tokens.keep[:, : block + 1].clone()
        keep[:, block] = True
        scores = self.scorer(tokens.features[:, : block + 1], self.tokenizer.embed(tokens)[:, : block + 1], keep)
        return self.scorer.denormalize(scores[:, block])
