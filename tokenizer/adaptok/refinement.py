"""Refined codes: when a video is encoded, the codes of each block are changed so that the decoder comes nearer to it.

An encoder computes codes in one pass. Gradient steps on the latents that are quantized, straight through the quantizer,
find better ones, as those of other learned codecs are refined (arXiv 2006.04240). Decoder, format and number of tokens
stay as they are. A step takes the time of about three decodings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from genvid.tokenizer.adaptok.cuts import kept_cut
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.past import PastBlocks
from genvid.tokenizer.quantizer import Quantizer
from genvid.tokens import BlockTokens, VideoTokenizer

_RATE = 0.2
"""Of the first step, in standard deviations of a video's latents; it falls to zero as a cosine."""
_BETAS = (0.5, 0.9)
"""Of Adam: short memories, since there are few steps."""


class CodeRefiner:
    """Refines one block after the other of B streams, given the refined blocks before it.

    It belongs to one stream of a tokenizer with rotary geometry. ValueError as from `check_steps`.
    """

    def __init__(self, tokenizer: AdapTok, steps: int) -> None:
        check_steps(tokenizer, steps)
        self.tokenizer, self.steps = tokenizer, steps
        self._past = PastBlocks(tokenizer.window)

    def __call__(self, video: Tensor, tokens: BlockTokens) -> BlockTokens:
        """Frames (B, 3, T, H, W) of the next block and its tokens (B, 1, L) with features -> the tokens
        with better codes; the same are kept."""
        cut = kept_cut(tokens.keep)

        def render(embeddings: Tensor) -> Tensor:
            return self.tokenizer.render_next(embeddings[:, 0], tokens.keep[:, 0], cut, self._past, remember=False)

        refined = _refined(self.tokenizer.quantizer, video, tokens, render, self.steps)
        self.tokenizer.decode_next(refined, self._past)
        return refined


def check_steps(tokenizer: VideoTokenizer, steps: int) -> None:
    """ValueError for fewer steps than 0, or for any with a tokenizer other than AdapTok."""
    if steps < 0:
        raise ValueError(f"codes are refined by at least 0 steps, got {steps}")
    if steps and not isinstance(tokenizer, AdapTok):
        raise ValueError(f"only the codes of AdapTok can be refined, not the tokens of {type(tokenizer).__name__}")


def refine_clips(
    tokenizer: VideoTokenizer, video: Tensor, tokens: BlockTokens, steps: int, batch_size: int | None = None
) -> BlockTokens:
    """Clips (B, 3, T, H, W) and their tokens with features -> the tokens with better codes, one block after the other;
    the same are kept. `batch_size`: clips at a time: memory, not results. ValueError as from `check_steps`."""
    check_steps(tokenizer, steps)
    if not steps or not isinstance(tokenizer, AdapTok):
        return tokens
    parts = torch.split(torch.arange(len(video)), batch_size or len(video))
    return BlockTokens.concatenate([_refine_together(tokenizer, video[part], tokens[part], steps) for part in parts])


def _refine_together(tokenizer: AdapTok, video: Tensor, tokens: BlockTokens, steps: int) -> BlockTokens:
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
    assert tokens.codes is not None
    with torch.no_grad():
        latents = quantizer.latents(tokens.features)
    scale = latents.flatten(1).std(1).view(-1, 1, 1, 1)
    change = torch.zeros_like(latents, requires_grad=True)
    optimizer = torch.optim.Adam([change], betas=_BETAS)
    best, least = tokens.codes, latents.new_full((len(latents),), math.inf)
    for step in range(steps + 1):
        with torch.enable_grad():
            quantized = quantizer.quantize(latents + scale * change, tokens.keep)
            frames = render(quantizer.project(quantized.vectors))
            errors = (frames.float().clamp(-1, 1) - video).square().mean((1, 2, 3, 4))
            total = errors.sum()
        better = errors.detach() < least
        least = torch.where(better, errors.detach(), least)
        best = torch.where(better[:, None, None], quantized.codes, best)
        if step < steps:
            (change.grad,) = torch.autograd.grad(total, change)
            optimizer.param_groups[0]["lr"] = _RATE * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.step()
    return replace(tokens, codes=best)
