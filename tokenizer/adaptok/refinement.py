"""Refined codes: those of each block are changed by steps on the latents that are quantized, straight through the
quantizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from genvid.tokenizer.adaptok.cuts import few, kept_cut
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.past import PastBlocks
from genvid.tokenizer.descent import check_steps, least_error
from genvid.tokenizer.quantizer import Quantizer
from genvid.tokens import BlockTokens


class CodeRefiner:
    """Refines one block after the other of B streams, given the refined blocks before it.

    It belongs to one stream of a tokenizer with rotary geometry. ValueError for fewer steps than 0.
    """

    def __init__(self, tokenizer: AdapTok, steps: int) -> None:
        check_steps(steps)
        self.tokenizer, self.steps = tokenizer, steps
        self._past = PastBlocks(tokenizer.window)

    def __call__(self, video: Tensor, tokens: BlockTokens) -> BlockTokens:
        """Frames (B, 3, T, H, W) of the next block and its tokens (B, 1, L) with features -> the tokens
        with better codes; the same are kept."""
        cut = kept_cut(tokens.keep, few(tokens.keep))

        def render(embeddings: Tensor) -> Tensor:
            return self.tokenizer.render_next(embeddings[:, 0], tokens.keep[:, 0], cut, self._past, remember=False)

        refined = _refined(self.tokenizer.quantizer, video, tokens, render, self.steps)
        self.tokenizer.decode_next(refined, self._past)
        return refined


def refine_codes(tokenizer: AdapTok, video: Tensor, tokens: BlockTokens, steps: int) -> BlockTokens:
    """Clips (B, 3, T, H, W) and their tokens with features -> the tokens with better codes, one block after the other;
    the same are kept."""
    frames = torch.split(video, tokenizer.spec.block_frames(tokens.keep.shape[1]), 2)
    blocks = [tokens.select_blocks(slice(block, block + 1)) for block in range(len(frames))]
    if tokenizer.window is not None:
        refine_next = CodeRefiner(tokenizer, steps)
        return BlockTokens.join_blocks([refine_next(*pair) for pair in zip(frames, blocks, strict=True)])
    for block, part in enumerate(frames):
        before = [tokenizer.embed(earlier) for earlier in blocks[:block]]
        keep = tokens.keep[:, : block + 1]

        def render(embeddings: Tensor, before: list[Tensor] = before, keep: Tensor = keep) -> Tensor:
            return tokenizer.render_block(torch.cat([*before, embeddings], 1), keep, keep.shape[1] - 1)

        blocks[block] = _refined(tokenizer.quantizer, part, blocks[block], render, steps)
    return BlockTokens.join_blocks(blocks)


def _refined(
    quantizer: Quantizer, video: Tensor, tokens: BlockTokens, render: Callable[[Tensor], Tensor], steps: int
) -> BlockTokens:
    """One block (B, 1, L) with the codes of least squared error that `steps` steps meet, of each video by itself.

    `render`: embeddings (B, 1, L, W) -> the frames of the block.
    """
    assert tokens.features is not None
    with torch.no_grad():
        latents = quantizer.latents(tokens.features)
    deviation = latents.flatten(1).std(1).view(-1, 1, 1, 1)

    def decoded(change: Tensor) -> tuple[Tensor, Tensor]:
        quantized = quantizer.quantize(latents + deviation * change, tokens.keep)
        frames = render(quantizer.project(quantized.vectors))
        return (frames.float().clamp(-1, 1) - video).square().mean((1, 2, 3, 4)), quantized.codes

    return replace(tokens, codes=least_error(torch.zeros_like(latents), decoded, steps))
