"""The scorer: predicts how a block's distortion falls with its length, given earlier blocks as they were cut."""

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
from genvid.tokenizer.layers import Attend, StackConfig, learned_table
from genvid.tokenizer.statistics import Standardize
from genvid.tokens import BlockTokens


@dataclass(frozen=True)
class ScorerConfig:
    """Size of a scorer, and the tokenizer geometry that it was trained for."""

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
    """The distortion that it predicts, for example "lpips"."""
    gains: bool = False
    """Predict the distortion of the smallest size and what every further size gains, in place of K distortions as
    published. Gains are what an allocation depends on; among distortions they drown in the differences between clips.
    All gains share one scale: an error counts by what it costs, and the small gains of the last sizes count little.
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
            gains=gains,
            novelty=gains and tokenizer.pooled_queries,
        )


class Scorer(Model):
    """Transformer over the latents of all blocks.

    Slot `size - 1` of a block reads out the score of that size, as published; with `gains`, all slots that a size adds
    do, and the score is their mean: every token answers for what it adds.
    """

    model_type = "adaptok_scorer"
    config_type = ScorerConfig
    config: ScorerConfig
    slots: Tensor
    readers: Tensor

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
        self.register_buffer("slots", torch.tensor(config.sizes) - 1, persistent=False)
        self.register_buffer("readers", _readers(config), persistent=False)

    def forward(self, scorer_inputs: Tensor, keep: Tensor) -> Tensor:
        """Normalised scores (B, G, K) of every block from `scorer_inputs` (B, G, L, E) and the kept slots (B, G, L).

        The scores of block g mean something where g is kept whole and earlier blocks as they were cut.
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
        """Targets (..., K) -> the scores to be predicted."""
        normal: Tensor = self.target_scale(targets)
        return normal

    def targets(self, distortion: Tensor) -> Tensor:
        """Distortion (..., K) in the units of `config.metric` -> what is predicted of it."""
        return torch.cat([distortion[..., :1], -distortion.diff(dim=-1)], -1) if self.config.gains else distortion

    def update_targets(self, mean: Tensor, square: Tensor, step: int) -> None:
        """Average the (K,) mean and mean square of the targets of step `step` (from 0) into those of earlier ones."""
        self.target_scale.update(mean, square, step)
        if self.config.gains:
            shared = self.target_scale.std[1:]
            shared.copy_(shared.square().mean().sqrt())

    def scorer_inputs(self, tokenizer: AdapTok, tokens: BlockTokens, left: Tensor | None = None) -> Tensor:
        """What is read of consecutive blocks (B, G, L, E): features, embeddings, and surprise; `left` by the blocks
        before (see `AdapTok.carry_over`)."""
        assert tokens.features is not None
        embeddings = tokenizer.embed(tokens)
        read = [tokens.features, embeddings]
        if self.config.novelty:
            known = tokenizer.carry_over(embeddings, tokens.keep, left)[:, :-1]
            read.append(tokenizer.novelty(embeddings, known))
        return torch.cat(read, -1)

    def embed(self, scorer_inputs: Tensor, keep: Tensor, first: int = 0) -> Tensor:
        """Scorer inputs of consecutive blocks from `first` -> layer input (B, G, L, width).

        Fewer slots than the block capacity are the first ones.
        """
        tokens: Tensor = self.input(torch.where(keep[..., None], self.evidence_scale(scorer_inputs), 0))
        return tokens + self.positions[first : first + scorer_inputs.shape[1], : scorer_inputs.shape[2]]

    def read_out(self, x: Tensor) -> Tensor:
        """Output of the layers (B, G, L, width) -> normalised scores (B, G, K)."""
        if not self.config.gains:
            x = x[:, :, self.slots]
        scores: Tensor = self.head(self.output_norm(x))[..., 0]
        return scores @ self.readers.to(scores.dtype) if self.config.gains else scores


def _readers(config: ScorerConfig) -> Tensor:
    """(L, K) share of each slot in each score: the mean over the slots that a size adds to the one before."""
    slots, ends = torch.arange(config.block_capacity)[:, None], torch.tensor(config.sizes)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return ((slots >= starts) & (slots < ends)).float() / (ends - starts)


class ScorerPredictor:
    """A tokenizer and its scorer as a `genvid.allocation.DistortionPredictor`.

    Asked block after block, it runs each block once in full to score it and once as kept for the blocks after it,
    from cached keys and values. What it answers never depends on what it was asked before: the cache is used only
    where it holds exactly the earlier blocks of the question. For weights that do not change while it is in use.
    """

    def __init__(self, tokenizer: AdapTok, scorer: Scorer) -> None:
        self.tokenizer, self.scorer = tokenizer, scorer
        self.sizes = scorer.slots + 1
        self._cache: _Cache | None = None

    @torch.no_grad()
    def predict(self, tokens: BlockTokens, block: int) -> Tensor:
        """Distortion (B, K) of `block` at each size, when earlier blocks are cut as `tokens.keep` says.

        `block` itself is read whole, whatever `tokens.keep` says of it; later blocks are not read.
        """
        if tokens.features is None or tokens.codes is None:
            raise ValueError("the scorer needs codes and encoder features, and these tokens lack one: encode the video")
        cache = self._cache
        if cache is None or not cache.precedes(tokens, block):
            cache = _Cache(self.tokenizer, self.scorer)
        while cache.blocks < block:
            cache.append(tokens)
        self._cache = cache if block + 1 < tokens.keep.shape[1] else None
        return self.scorer.denormalize(cache.score(tokens).float())


class _Cache:
    """Keys and values of the blocks before the next one, as they were kept."""

    def __init__(self, tokenizer: AdapTok, scorer: Scorer) -> None:
        self.tokenizer, self.scorer = tokenizer, scorer
        self.blocks = 0
        self.tokens: BlockTokens | None = None
        self.keep: list[Tensor] = []
        self.left: Tensor | None = None
        """(B, L, W): what the last block left in its slots, where the scorer reads surprise."""
        self.layers: list[list[tuple[Tensor, Tensor]]] = [[] for _ in scorer.layers]

    def precedes(self, tokens: BlockTokens, block: int) -> bool:
        """Whether what is cached are the first blocks of `tokens`, and no more than those before `block`."""
        if self.tokens is None or self.blocks > block:
            return False
        ours, theirs = self.tokens, _select(tokens, slice(self.blocks))
        pairs = ((ours.keep, theirs.keep), (ours.codes, theirs.codes), (ours.features, theirs.features))
        return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)

    def score(self, tokens: BlockTokens) -> Tensor:
        """Normalised scores (B, K) of the next block of `tokens`, whole."""
        x, _ = self._run(tokens, torch.ones_like(tokens.keep[:, self.blocks]))
        return self.scorer.read_out(x[:, None])[:, 0]

    def append(self, tokens: BlockTokens) -> None:
        """Take the next block of `tokens` as it is kept, cut to its longest kept length."""
        keep = tokens.keep[:, self.blocks]
        keep = keep[:, : longest_kept(keep[:, None])[0]]
        if keep.shape[1]:
            _, layers = self._run(tokens, keep)
            for past, (keys, values) in zip(self.layers, layers, strict=True):
                # Copied, because views would hold the queries too.
                past.append((keys.clone(), values.clone()))
            self.keep.append(keep)
        if self.scorer.config.novelty:
            block = _select(tokens, slice(self.blocks, self.blocks + 1))
            self.left = self.tokenizer.carry_over(self.tokenizer.embed(block), block.keep, self.left)[:, -1]
        self.blocks += 1
        self.tokens = _select(tokens, slice(self.blocks))

    def _run(self, tokens: BlockTokens, keep: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The first slots of the next block, of which `keep` (B, S) exist, through all layers.

        Returns their output (B, S, width), and their keys and values by layer.
        """
        block, slots = _select(tokens, slice(self.blocks, self.blocks + 1)), keep.shape[1]
        scorer_inputs = self.scorer.scorer_inputs(self.tokenizer, block, self.left)[:, :, :slots]
        x = self.scorer.embed(scorer_inputs, keep[:, None], self.blocks)[:, 0]
        mask = key_mask(torch.cat([*self.keep, keep], 1))
        layers: list[tuple[Tensor, Tensor]] = []
        for layer, past in zip(self.scorer.layers, self.layers, strict=True):
            x = layer(x, _after(past, mask, keep, layers))
        return x, layers


def _after(
    past: list[tuple[Tensor, Tensor]], mask: Tensor, keep: Tensor, record: list[tuple[Tensor, Tensor]]
) -> Attend:
    """One more block, of kept slots `keep`, attends to `past` and itself; its keys and values are added to `record`."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        record.append((keys, values))
        seen_keys, seen_values = (torch.cat(parts, 2) for parts in zip(*past, (keys, values), strict=True))
        return alone(scaled_dot_product_attention(queries, seen_keys, seen_values, attn_mask=mask), values, keep)

    return attend


def _select(tokens: BlockTokens, blocks: slice) -> BlockTokens:
    """Some blocks."""
    fields = (tokens.keep, tokens.codes, tokens.latents, tokens.features)
    return BlockTokens(*(None if field is None else field[:, blocks] for field in fields))  # type: ignore[arg-type]
