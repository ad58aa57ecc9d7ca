"""The scorer: predicts the distortion of a block at each candidate length, given the kept tokens of earlier blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from genvid.checkpoint import Model
from genvid.tokenizer.adaptok.attention import alone, block_causal, key_mask
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok, longest_kept
from genvid.tokenizer.adaptok.pooled_queries import carry_over, novelty
from genvid.tokenizer.layers import Attend, StackConfig, learned_table
from genvid.tokenizer.statistics import Standardize
from genvid.tokens import BlockTokens


@dataclass(frozen=True)
class ScorerConfig:
    """Size of a scorer, and the shape of its tokenizer."""

    RENAMED: ClassVar[Mapping[str, str]] = {"surprise": "novelty"}

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

    def __post_init__(self) -> None:
        sizes = self.sizes
        if not sizes or list(sizes) != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] <= self.block_capacity:
            raise ValueError(f"sizes must ascend within 1 to {self.block_capacity} (the block capacity), got {sizes}")

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
        )


class Scorer(Model):
    """Transformer over the latents of all blocks.

    The score of a size is read out at its last position of the block (published). With `gains` it is the mean of
    read-outs at the positions that the size adds to the one before.
    """

    model_type = "adaptok_scorer"
    config_type = ScorerConfig
    config: ScorerConfig
    sizes: Tensor
    """(K,) int64: `config.sizes`."""
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
        self.positions = learned_table(config.num_blocks, config.block_capacity, width, std=width**-0.5)
        self.layers = StackConfig(width, config.depth, config.heads).build()
        self.output_norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, 1))
        self.register_buffer("sizes", torch.tensor(config.sizes), persistent=False)
        self.register_buffer("readout", _readout(config), persistent=False)

    def forward(self, scorer_inputs: Tensor, keep: Tensor) -> Tensor:
        """`scorer_inputs` (B, G, L, E) and kept tokens (B, G, L) -> normalised scores (B, G, K) of every block.

        The scores of a block are predictions only where `keep` has all of its tokens.
        """
        blocks, capacity = keep.shape[1:]
        attend = block_causal((capacity,) * blocks, keep.flatten(1))
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

    def scorer_inputs(self, tokenizer: AdapTok, tokens: BlockTokens, start: Tensor | None = None) -> Tensor:
        """Consecutive blocks -> (B, G, L, E): features, embeddings and, if configured, novelty.

        `start` (B, L, W): the carry-over of the blocks before (`carry_over`).
        """
        assert tokens.features is not None
        embeddings = tokenizer.embed(tokens)
        read = [tokens.features, embeddings]
        if self.config.novelty:
            assert tokenizer.memory is not None
            carried = carry_over(embeddings, tokens.keep, tokenizer.memory, start)[:, :-1]
            read.append(novelty(embeddings, carried, tokenizer.coarser))
        return torch.cat(read, -1)

    def embed(self, scorer_inputs: Tensor, keep: Tensor, first: int = 0) -> Tensor:
        """Scorer inputs (B, G, L, E) of the blocks from `first` on -> layer input (B, G, L, width).

        L below the block capacity: the first positions of each block.
        """
        tokens: Tensor = self.input(torch.where(keep[..., None], self.evidence_scale(scorer_inputs), 0))
        return tokens + self.positions[first : first + scorer_inputs.shape[1], : scorer_inputs.shape[2]]

    def read_out(self, x: Tensor) -> Tensor:
        """Output of the layers (B, G, L, width) -> normalised scores (B, G, K)."""
        if not self.config.gains:
            x = x[:, :, self.sizes - 1]
        scores: Tensor = self.head(self.output_norm(x))[..., 0]
        return scores @ self.readout.to(scores.dtype) if self.config.gains else scores


def _readout(config: ScorerConfig) -> Tensor:
    """(L, K) weight of each position in each score: the mean over the positions that a size adds."""
    positions, ends = torch.arange(config.block_capacity)[:, None], torch.tensor(config.sizes)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return ((positions >= starts) & (positions < ends)).float() / (ends - starts)


class ScorerPredictor:
    """A tokenizer and its scorer as a `genvid.allocation.DistortionPredictor`, with keys and values cached.

    In a pass over the blocks, each block runs twice: with all its tokens for its own scores, and with its kept tokens
    for the keys and values that later blocks attend to. The cache is used only for a call whose earlier blocks equal
    the cached ones, so results do not depend on earlier calls. The weights must not change between calls.
    """

    def __init__(self, tokenizer: AdapTok, scorer: Scorer) -> None:
        self.tokenizer, self.scorer = tokenizer, scorer
        self.sizes = scorer.sizes
        self._cache: _Cache | None = None

    @torch.no_grad()
    def predict(self, tokens: BlockTokens, block: int) -> Tensor:
        """Distortion (B, K) of `block` at each size, given the tokens of earlier blocks that `tokens.keep` keeps.

        All tokens of `block` are read, kept or not; later blocks are not read.
        """
        if tokens.features is None or tokens.codes is None:
            raise ValueError("the scorer reads codes and encoder features, and these tokens lack one: encode the video")
        cache = self._cache
        if cache is None or not cache.precedes(tokens, block):
            cache = _Cache(self.tokenizer, self.scorer)
        while cache.blocks < block:
            cache.append(tokens)
        self._cache = cache if block + 1 < tokens.keep.shape[1] else None
        return self.scorer.denormalize(cache.score(tokens).float())


class _Cache:
    """Keys and values of the kept tokens of the first `blocks` blocks."""

    def __init__(self, tokenizer: AdapTok, scorer: Scorer) -> None:
        self.tokenizer, self.scorer = tokenizer, scorer
        self.blocks = 0
        self.tokens: BlockTokens | None = None
        self.keep: list[Tensor] = []
        self.carried: Tensor | None = None
        """(B, L, W) carry-over to the next block, for a scorer that reads novelty."""
        self.layers: list[list[tuple[Tensor, Tensor]]] = [[] for _ in scorer.layers]

    def precedes(self, tokens: BlockTokens, block: int) -> bool:
        """Whether the cached blocks are the first ones of `tokens`, and none of them is `block` or later."""
        if self.tokens is None or self.blocks > block:
            return False
        ours, theirs = self.tokens, _select(tokens, slice(self.blocks))
        pairs = ((ours.keep, theirs.keep), (ours.codes, theirs.codes), (ours.features, theirs.features))
        return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)

    def score(self, tokens: BlockTokens) -> Tensor:
        """Normalised scores (B, K) of the next block of `tokens`, from all of its tokens."""
        x, _ = self._run(tokens, torch.ones_like(tokens.keep[:, self.blocks]))
        return self.scorer.read_out(x[:, None])[:, 0]

    def append(self, tokens: BlockTokens) -> None:
        """Cache the kept tokens of the next block of `tokens`, up to its longest kept length."""
        keep = tokens.keep[:, self.blocks]
        keep = keep[:, : longest_kept(keep[:, None])[0]]
        if keep.shape[1]:
            _, layers = self._run(tokens, keep)
            for past, (keys, values) in zip(self.layers, layers, strict=True):
                # Views would keep the queries in memory.
                past.append((keys.clone(), values.clone()))
            self.keep.append(keep)
        if self.scorer.config.novelty:
            assert self.tokenizer.memory is not None
            block = _select(tokens, slice(self.blocks, self.blocks + 1))
            embeddings = self.tokenizer.embed(block)
            self.carried = carry_over(embeddings, block.keep, self.tokenizer.memory, self.carried)[:, -1]
        self.blocks += 1
        self.tokens = _select(tokens, slice(self.blocks))

    def _run(self, tokens: BlockTokens, keep: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The first S tokens of the next block through all layers, those that `keep` (B, S) keeps.

        Returns their output (B, S, width), and their keys and values by layer.
        """
        block, count = _select(tokens, slice(self.blocks, self.blocks + 1)), keep.shape[1]
        scorer_inputs = self.scorer.scorer_inputs(self.tokenizer, block, self.carried)[:, :, :count]
        x = self.scorer.embed(scorer_inputs, keep[:, None], self.blocks)[:, 0]
        mask = key_mask(torch.cat([*self.keep, keep], 1))
        layers: list[tuple[Tensor, Tensor]] = []
        for layer, past in zip(self.scorer.layers, self.layers, strict=True):
            x = layer(x, _after(past, mask, keep, layers))
        return x, layers


def _after(
    past: list[tuple[Tensor, Tensor]], mask: Tensor, keep: Tensor, record: list[tuple[Tensor, Tensor]]
) -> Attend:
    """Attention of the next block, kept tokens `keep`, to `past` and itself; keys and values are added to `record`."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        record.append((keys, values))
        seen_keys, seen_values = (torch.cat(parts, 2) for parts in zip(*past, (keys, values), strict=True))
        return alone(scaled_dot_product_attention(queries, seen_keys, seen_values, attn_mask=mask), values, keep)

    return attend


def _select(tokens: BlockTokens, blocks: slice) -> BlockTokens:
    """The tokens of some blocks."""
    fields = (tokens.keep, tokens.codes, tokens.latents, tokens.features)
    return BlockTokens(*(None if field is None else field[:, blocks] for field in fields))  # type: ignore[arg-type]
