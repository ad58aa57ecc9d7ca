"""The scorer: predicts the distortion of a block at each candidate length, given the kept tokens of earlier blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from genvid.checkpoint import Model
from genvid.tokenizer.adaptok.attention import block_causal
from genvid.tokenizer.adaptok.config import AdapTokConfig, check_rotary_heads
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.pooled_queries import carry_over, novelty
from genvid.tokenizer.adaptok.positions import Placement, Runs, unchanged
from genvid.tokenizer.adaptok.pyramid import Pyramid, overlapping_cells
from genvid.tokenizer.adaptok.rotary import LevelVectors, rotated
from genvid.tokenizer.layers import StackConfig, learned_table, product
from genvid.tokenizer.statistics import Standardize
from genvid.tokens import BlockTokens


@dataclass(frozen=True)
class ScorerConfig:
    """Size of a scorer, and the shape of its tokenizer."""

    RENAMED: ClassVar[Mapping[str, str]] = {"surprise": "novelty"}
    IMPLIED: ClassVar[Mapping[str, Any]] = {"window": None, "picture": None}

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
    """The distortion to be predicted, for example "lpips"."""
    gains: bool = False
    """Predict the distortion of the smallest size and the decrease at every further one, instead of K distortions (the
    published targets). An allocation depends on the decreases alone, which are small beside the differences between
    clips. All decreases share one scale, so errors count in proportion to the distortion they cost.
    """
    novelty: bool = False
    """Read also the novelty of each latent (genvid.tokenizer.adaptok.pooled_queries)."""
    window: int | None = None
    """Of a tokenizer with rotary geometry: earlier blocks that a block attends to, and positions are rotary."""
    picture: tuple[int, int] | None = None
    """Of a tokenizer with rotary geometry: patch rows and columns at its trained size."""

    def __post_init__(self) -> None:
        sizes = self.sizes
        if not sizes or list(sizes) != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] <= self.block_capacity:
            raise ValueError(f"sizes must ascend within 1 to {self.block_capacity} (the block capacity), got {sizes}")
        if self.window is not None:
            check_rotary_heads(StackConfig(self.width, self.depth, self.heads))

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: AdapTokConfig,
        network: StackConfig,
        *,
        sizes: tuple[int, ...],
        metric: str,
        gains: bool = False,
    ) -> ScorerConfig:
        """A scorer with layers as in `network`, for `tokenizer`."""
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
            gains=gains,
            novelty=gains and tokenizer.pooled_queries,
            window=tokenizer.window,
            picture=None if tokenizer.window is None else tokenizer.grid[1:],
        )


class Scorer(Model):
    """Transformer over the latents of all blocks.

    The score of a size is read out at its last position of the block (published). With `gains` it is the mean of
    read-outs at the positions that the size adds to the one before.

    Of a tokenizer with rotary geometry it has its positions and its window, and `at` gives the same weights for frames
    of another size.
    """

    model_type = "adaptok_scorer"
    config_type = ScorerConfig
    config: ScorerConfig
    candidates: tuple[int, ...]
    """`config.sizes`; for frames of other sizes in proportion to the area."""
    sizes: Tensor
    """(K,) int64: the same."""
    readout: Tensor
    """(L, K), for `gains`: weights of positions in scores."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__(config)
        width = config.width
        channels = config.feature_width + config.embedding_width * (3 if config.novelty else 1)
        # Encoder features may be fifty times as large as embeddings. Published scorers read both unscaled.
        # "evidence" is the name of the scorer inputs in weights on disk.
        self.evidence_scale = Standardize(channels)
        self.target_scale = Standardize(len(config.sizes))
        self.input = nn.Linear(channels, width)
        self.pyramid: Pyramid | None = None
        if config.picture is None:
            self.positions = learned_table(config.num_blocks, config.block_capacity, width, std=width**-0.5)
        else:
            self.levels = LevelVectors(config.block_capacity, width)
            self.pyramid = Pyramid(*config.picture, overlapping_cells(*config.picture, config.block_capacity))
        self.layers = StackConfig(width, config.depth, config.heads).build()
        self.output_norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, 1))
        self.candidates = config.sizes
        self.register_buffer("sizes", torch.tensor(config.sizes), persistent=False)
        self.register_buffer("readout", _readout(config.sizes, config.block_capacity), persistent=False)

    def at(self, tokenizer: AdapTok) -> Self:
        """The same weights for the frame size of `tokenizer`, whose candidate sizes follow the number of latents.

        ValueError where these are fewer than the candidate sizes.
        """
        if self.pyramid is None or tokenizer.resolution == tokenizer.config.resolution:
            return self
        capacity, device = tokenizer.spec.block_capacity, self.sizes.device
        larger = len(self.config.sizes)
        if capacity < larger:
            height, width = tokenizer.resolution
            raise ValueError(
                f"a scorer of {larger} candidate sizes cannot score {height}x{width} frames, of which a block has "
                f"{capacity} latents"
            )
        sizes = list[int]()
        for size in self.config.sizes:
            larger -= 1  # each needs a latent more
            scaled = max(round(size * capacity / self.config.block_capacity), sizes[-1] + 1 if sizes else 1)
            sizes.append(min(scaled, capacity - larger))
        tables = {"sizes": torch.tensor(sizes, device=device), "readout": _readout(sizes, capacity).to(device)}
        other = copy.copy(self)
        other.candidates = tuple(sizes)
        other._buffers, other._modules = {**self._buffers, **tables}, {**self._modules, "pyramid": tokenizer.pyramid}
        return other

    def forward(self, scorer_inputs: Tensor, keep: Tensor) -> Tensor:
        """`scorer_inputs` (B, G, L, E) and kept tokens (B, G, L) -> normalised scores (B, G, K) of every block.

        The scores of a block are predictions only where `keep` has all of its tokens.
        """
        blocks, capacity = keep.shape[1:]
        attend = block_causal((capacity,) * blocks, keep.flatten(1), self.config.window)
        attend = self.placement([(block, capacity) for block in range(blocks)])(attend)
        x = self.embed(scorer_inputs, keep).flatten(1, 2)
        for layer in self.layers:
            x = layer(x, attend)
        return self.read_out(x.view(*keep.shape, -1))

    def denormalize(self, scores: Tensor) -> Tensor:
        """Normalised scores (..., K) -> distortion in the units of `config.metric`."""
        targets = self.target_scale.undo(scores)
        return torch.cat([targets[..., :1], -targets[..., 1:]], -1).cumsum(-1) if self.config.gains else targets

    def normalize(self, targets: Tensor) -> Tensor:
        """Targets (..., K) -> normalised scores to be predicted."""
        normal: Tensor = self.target_scale(targets)
        return normal

    def targets(self, distortion: Tensor) -> Tensor:
        """Distortion (..., K) in the units of `config.metric` -> targets: itself, or with `gains` its decreases."""
        return torch.cat([distortion[..., :1], -distortion.diff(dim=-1)], -1) if self.config.gains else distortion

    def update_targets(self, mean: Tensor, square: Tensor, step: int) -> None:
        """Average the (K,) mean and mean square of the targets of step `step` (from 0) into those of earlier ones."""
        self.target_scale.update(mean, square, step)
        if self.config.gains:
            shared = self.target_scale.std[1:]
            shared.copy_(shared.square().mean().sqrt())

    def scorer_inputs(self, tokenizer: AdapTok, tokens: BlockTokens, carried: Tensor | None = None) -> Tensor:
        """Consecutive blocks -> (B, G, L, E): features, embeddings and, if configured, novelty.

        `carried` (B, G, L, W): `carry_over` to these blocks; None: they have none before them.
        """
        assert tokens.features is not None
        embeddings = tokenizer.embed(tokens)
        read = [tokens.features, embeddings]
        if self.config.novelty:
            assert tokenizer.memory is not None
            if carried is None:
                carried = carry_over(embeddings, tokens.keep, tokenizer.memory, self.config.window)[0]
            read.append(novelty(embeddings, carried, tokenizer.pyramid.coarser))
        return torch.cat(read, -1)

    def embed(self, scorer_inputs: Tensor, keep: Tensor, first: int = 0) -> Tensor:
        """Scorer inputs (B, G, L, E) of the blocks from `first` on -> layer input (B, G, L, width).

        L below the block capacity: the first positions of each block.
        """
        tokens = product(self.input, torch.where(keep[..., None], self.evidence_scale(scorer_inputs), 0))
        blocks, count = scorer_inputs.shape[1:3]
        if self.pyramid is None:
            return tokens + self.positions[first : first + blocks, :count]
        vectors: Tensor = self.levels(self.pyramid)[:count]
        return tokens + vectors

    def placement(self, runs: Runs, first: int | Tensor = 0, chosen: Tensor | None = None) -> Placement:
        """Of the latents of `runs`, counted from `first`; or of the ones `chosen` (N,) among these, in their order."""
        if self.pyramid is None:
            return unchanged
        network = StackConfig(self.config.width, self.config.depth, self.config.heads)
        latents = self.pyramid.latent_places
        return rotated([(block, latents[:length]) for block, length in runs], network, first, chosen)

    @property
    def read(self) -> Tensor:
        """(Q,) positions of a block at which scores are read out, on the CPU."""
        return torch.arange(len(self.readout)) if self.config.gains else torch.tensor(self.candidates) - 1

    def read_out(self, x: Tensor) -> Tensor:
        """Output of the layers (B, G, L, width) -> normalised scores (B, G, K)."""
        return self.scores(x if self.config.gains else x[:, :, self.sizes - 1])

    def scores(self, x: Tensor) -> Tensor:
        """Output of the layers (B, G, Q, width) at the positions `read` -> normalised scores (B, G, K)."""
        scores: Tensor = self.head(self.output_norm(x))[..., 0]
        return scores @ self.readout.to(scores.dtype) if self.config.gains else scores


def _readout(sizes: Sequence[int], capacity: int) -> Tensor:
    """(L, K) weight of each position in each score: the mean over the positions that a size adds."""
    positions, ends = torch.arange(capacity)[:, None], torch.tensor(sizes)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return ((positions >= starts) & (positions < ends)).float() / (ends - starts)
