"""Packed rows: training batches from a token cache.

Rows of a micro-batch lie one after another in a single sequence, whose only padding fills it up to a round number of
tokens. It is made where data is loaded, in the workers; the model's side is `genvid.ar.attention`.

N tokens of R rows; row r holds the tokens `starts[r]` to `starts[r + 1] - 1`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from genvid import noise
from genvid.ar.config import ARConfig
from genvid.batch import Batch
from genvid.tokens import BlockTokens
from genvid.tokens.blocks import first_tokens
from genvid.tokens.rows import TokenSequence

IGNORED = -100
"""In the place of a target where nothing is predicted."""


@dataclass(frozen=True)
class RowConfig:
    """How rows are made of cached tokens."""

    IMPLIED: ClassVar[Mapping[str, Any]] = {"context_dropout": 0.0}

    class_dropout: float = 0.1
    """Share of clips with neither class nor budget in the prefix, for guidance."""
    budget_dropout: float = 0.1
    """Share of clips without a budget in the prefix, in layouts with budget bins."""
    context_dropout: float = 0.0
    """Share of clips of a frame predictor with neither context nor budget in the prefix, for guidance."""
    token_multiple: int = 128
    """Tokens of a micro-batch are filled up to a multiple, so that a compiled model has few input shapes. A multiple
    above every micro-batch makes every shape the same, at the cost of the filling."""

    def __post_init__(self) -> None:
        shares = (self.class_dropout, self.budget_dropout, self.context_dropout)
        if not all(0 <= share <= 1 for share in shares) or self.token_multiple < 1:
            raise ValueError(f"shares of dropped conditions are in [0, 1] and token_multiple is at least 1, got {self}")


class CachedTokens(Protocol):
    """Source of rows, such as `genvid.tokens.cache.TokenCache`."""

    @property
    def lengths(self) -> Tensor:
        """(items, G) kept codes of every block."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        """(index, clip seed) -> "codes" (G, L), "lengths" (G,), "label" and "seed" ()."""
        ...


class PackedRows(torch.utils.data.Dataset[Batch]):
    """The micro-batches of a cache: {"tokens", "targets" (1, N), "starts" (1, R + 1) int32, "seed" (1, B)}.

    `targets` holds the id that follows each token, or IGNORED; every block's codes and framing are predicted, the last
    END as well. The B rows come first. Rows of PAD fill up the sequence; they are as long as the longest row at most,
    or empty, so R does not depend on the lengths.
    """

    def __init__(self, cache: CachedTokens, config: ARConfig, rows: RowConfig) -> None:
        if config.context_blocks >= config.layout.num_blocks:
            raise ValueError(
                f"context_blocks {config.context_blocks} leaves nothing to predict of {config.layout.num_blocks} blocks"
            )
        cached = cache.lengths.shape[1]
        if cached < config.layout.num_blocks or (cached > config.layout.num_blocks and not config.context_blocks):
            raise ValueError(
                f"rows of {config.layout.num_blocks} blocks cannot be made of {cached} cached ones: windows of longer "
                "videos are for frame predictors, which have context_blocks above 0"
            )
        if config.null_context != (rows.context_dropout > 0):
            raise ValueError(
                f"null_context of the model is {config.null_context}, but context_dropout of its rows is "
                f"{rows.context_dropout}: a model with null_context needs a share above 0, any other a share of 0"
            )
        self.cache, self.config, self.rows = cache, config, rows
        self.sizes = cache.lengths.sum(1)
        """(items,): cost of a row, up to a constant. Micro-batches of a step are dealt equal sums of it."""

    def __len__(self) -> int:
        return len(self.cache)

    def __getitems__(self, items: list[tuple[int, int]]) -> list[Batch]:
        """A complete micro-batch as a list of one item; DataLoader's method for a list of indices."""
        return [self.pack(default_collate([self.cache[item] for item in items]))]

    def pack(self, batch: Batch) -> Batch:
        """{"codes" (B, G, L), "lengths" (B, G), "label", "seed" (B,)} -> the above without its dimension of 1."""
        layout = self.config.layout
        rows = self.framed(batch)
        counts = (rows.tokens != layout.pad_id).sum(1) - 1  # the last token of a row is predicted and never read
        read = torch.arange(rows.tokens.shape[1] - 1) < counts[:, None]
        tokens = rows.tokens[:, :-1][read]
        targets = rows.tokens[:, 1:].where(rows.is_target[:, 1:], IGNORED)[read]
        size = -(-len(tokens) // self.rows.token_multiple) * self.rows.token_multiple
        filling = size - len(tokens)
        longest = self.config.longest_input
        fillers = 1 + torch.arange((self.rows.token_multiple + longest - 2) // longest)
        ends = torch.cat([counts.cumsum(0), (len(tokens) + longest * fillers).clamp(max=size)])
        return {
            "tokens": torch.nn.functional.pad(tokens, (0, filling), value=layout.pad_id),
            "targets": torch.nn.functional.pad(targets, (0, filling), value=IGNORED),
            "starts": torch.nn.functional.pad(ends, (1, 0)).int(),
            "seed": batch["seed"],
        }

    def framed(self, batch: Batch) -> TokenSequence:
        """The same rows beside one another, padded to the longest."""
        lengths, codes = self._window(batch)
        keep = first_tokens(lengths, codes.shape[-1])
        layout, given = self.config.layout, self.config.context_blocks
        if given:
            prefix = self._context_prefix(BlockTokens(keep[:, :given], codes[:, :given]), batch["seed"])
        else:
            prefix = self._class_prefix(batch)
        if layout.budget_bins:
            prefix = self._with_budget(prefix, lengths[:, given:].sum(1), batch["seed"])
        return layout.pack(BlockTokens(keep[:, given:], codes[:, given:]), prefix)

    def _window(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Lengths (B, G) and codes (B, G, L) of the blocks of a row, drawn by its seed from a stream of more: the
        first `sink_blocks` of the stream, and consecutive ones after them."""
        lengths, codes, blocks = batch["lengths"], batch["codes"].long(), self.config.layout.num_blocks
        spare = lengths.shape[1] - blocks
        if not spare:
            return lengths, codes
        starts = (noise.uniform(batch["seed"], "window", 1) * (spare + 1)).long()
        places = torch.arange(blocks)
        window = torch.where(places < self.config.sink_blocks, places, starts + places)
        return lengths.gather(1, window), codes.take_along_dim(window[..., None], 1)

    def _context_prefix(self, context: BlockTokens, seeds: Tensor) -> Tensor:
        layout = self.config.layout
        prefix, dropped = layout.frame_prediction_prefix(context), self._context_dropped(seeds)
        prefix[:, layout.num_starts :] = prefix[:, layout.num_starts :].masked_fill(dropped[:, None], layout.pad_id)
        return prefix

    def _context_dropped(self, seeds: Tensor) -> Tensor:
        return noise.uniform(seeds, "context_dropout") < self.rows.context_dropout

    def _class_prefix(self, batch: Batch) -> Tensor:
        layout, seeds = self.config.layout, batch["seed"]
        null = layout.null_prefix(len(seeds))
        if not layout.num_classes:
            return null
        dropped = noise.uniform(seeds, "class_dropout") < self.rows.class_dropout
        return null.where(dropped[:, None], layout.class_prefix(batch["label"]))

    def _with_budget(self, prefix: Tensor, tokens: Tensor, seeds: Tensor) -> Tensor:
        """Prefixes with a row's own (B,) tokens, except where the budget or the class is dropped."""
        layout = self.config.layout
        dropped = noise.uniform(seeds, "budget_dropout") < self.rows.budget_dropout
        if layout.num_classes:
            dropped |= prefix[:, 0] == layout.null_id
        if self.config.context_blocks:
            dropped |= self._context_dropped(seeds)
        return prefix.where(dropped[:, None], layout.set_budget(prefix, tokens))
