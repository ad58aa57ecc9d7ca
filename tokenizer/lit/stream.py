"""LIT on a video that comes in chunks: the result of one call, in memory that does not grow.

The sender (`StreamEncoder`) needs the last kept latents, C_sel. The receiver (`StreamDecoder`) needs these and what the
inpainter remembers of the last filled frames, C_fill.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from genvid.tokenizer.lit.inpainter import Memory
from genvid.tokenizer.lit.model import LIT, as_grid, as_tokens
from genvid.tokenizer.lit.reference import Reference, last_reference
from genvid.tokens import BlockTokens


class StreamAllocator(Protocol):
    """An allocator that can go on where it stopped: a threshold, a price, or a budget of every chunk."""

    def allocate_chunk(self, tokens: BlockTokens, start: Reference | None) -> BlockTokens:
        """The next blocks, thinned; `start` is what the receiver has of those before."""
        ...


class StreamEncoder:
    """Chunks of frames -> tokens, thinned: by a threshold as they come, by a price or budget on the cheapest paths to
    the end of the chunk.

    Only the first chunk keeps its first block whole: later ones are compared with what was kept before.
    """

    def __init__(self, lit: LIT, allocator: StreamAllocator) -> None:
        self.lit, self.allocator = lit, allocator
        self.codec = lit.codec.stream()
        self.selected: Reference | None = None
        """C_sel."""

    @torch.no_grad()
    def __call__(self, video: Tensor) -> BlockTokens:
        """The next frames (B, 3, T, H, W) in [-1, 1]; T as the codec's stream takes it."""
        self.lit.spec.check_frames(video)
        tokens = self.allocator.allocate_chunk(as_tokens(self.codec.encode(video)), self.selected)
        assert tokens.latents is not None
        self.selected = last_reference(tokens.latents, tokens.keep, self.selected)
        return tokens


class StreamDecoder:
    """Tokens of one chunk after the other -> frames."""

    def __init__(self, lit: LIT) -> None:
        if not lit.config.inpainter.causal:
            raise ValueError("this inpainter looks ahead, so it cannot stream: train one with inpainter.causal true")
        self.lit = lit
        self.codec = lit.codec.stream()
        self.selected: Reference | None = None
        """C_sel, normalised."""
        self.memory: Memory | None = None
        """C_fill."""

    @torch.no_grad()
    def __call__(self, tokens: BlockTokens) -> Tensor:
        """The next tokens -> (B, 3, T, H, W)."""
        latents, self.selected, self.memory = self.lit.restore(tokens, self.selected, self.memory)
        return self.codec.decode(as_grid(latents, self.lit.grid))
