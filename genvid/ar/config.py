"""Shape of the autoregressive model, and the usual sizes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from genvid.config import check_counts
from genvid.tokens.rows import BlockLayout


@dataclass(frozen=True)
class TransformerConfig:
    """A Llama: pre-norm, SwiGLU, no biases, separate input and output embeddings."""

    width: int = 1280
    depth: int = 30
    heads: int = 20
    kv_heads: int = 20
    """Fewer than `heads`: grouped-query attention, for a smaller cache."""
    hidden: int = 3584
    """Width of the SwiGLU layer."""
    max_positions: int = 4096
    """Longest sequence of inputs."""
    dropout: float = 0.0
    """On the input embeddings and on the residual updates of each layer."""
    rope_theta: float | None = 10000.0
    """Base of the rotary positions. None: learned absolute positions, which only the published checkpoints have."""
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_counts(self, "width", "depth", "heads", "kv_heads", "hidden", section="model.")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be heads ({self.heads}) times an even number")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is at least 0 and below 1, got {self.dropout}")


@dataclass(frozen=True)
class ARConfig:
    """An autoregressive model over the rows of a layout."""

    layout: BlockLayout
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    context_blocks: int = 0
    """Above 0: a frame predictor, whose rows start with that many given blocks and no class."""
    IMPLIED: ClassVar[Mapping[str, Any]] = {"null_context": False, "sink_blocks": 0}

    null_context: bool = False
    """Whether rows without their context were trained as well: the null condition of a guided frame prediction."""
    sink_blocks: int = 0
    """Of the given blocks, those that are the first of a stream and stay when the window moves on (attention sinks,
    arXiv 2309.17453)."""

    def __post_init__(self) -> None:
        needed, given = self.longest_input, self.transformer.max_positions
        if needed > given:
            raise ValueError(f"rows of this layout have up to {needed} inputs, but max_positions is {given}")
        if self.context_blocks < 0:
            raise ValueError(f"context_blocks is at least 0, got {self.context_blocks}")
        if self.null_context and not self.context_blocks:
            raise ValueError("null_context is for frame predictors, which have context_blocks above 0")
        if self.sink_blocks and not 0 < self.sink_blocks < self.context_blocks:
            raise ValueError(
                f"sink_blocks are some of the context_blocks ({self.context_blocks}), of which at least one is recent, "
                f"got {self.sink_blocks}"
            )

    @property
    def longest_input(self) -> int:
        """Tokens of the longest row that are read: the last one is only predicted."""
        return self.layout.longest_row - 1


PRESETS = {
    "S": TransformerConfig(width=384, depth=12, heads=6, kv_heads=6, hidden=1024),
    "B": TransformerConfig(width=768, depth=12, heads=12, kv_heads=12, hidden=2048),
    "L": TransformerConfig(width=1024, depth=24, heads=16, kv_heads=16, hidden=2816),
    "LP": TransformerConfig(width=1280, depth=30, heads=20, kv_heads=20, hidden=3584),
    "XL": TransformerConfig(width=1280, depth=36, heads=20, kv_heads=20, hidden=3584),
}
"""The sizes of LlamaGen (arXiv 2406.06525) that LARP and AdapTok use; "LP" is the published 633 M model."""


def is_published(config: Mapping[str, Any]) -> bool:
    """Whether this is the config.json of a published autoregressive model."""
    return {"n_layer", "n_head", "vocab_size", "max_seq_len"} <= config.keys()
