"""Refined tokens: when a video is encoded, its tokens are changed so that the decoder comes nearer to it.

An encoder computes tokens in one pass. Gradient steps find better ones, as those of other learned codecs are refined
(arXiv 2006.04240). Decoder, format and number of tokens stay as they are. A step takes the time of about three
decodings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.refinement import refine_codes
from genvid.tokenizer.descent import check_steps
from genvid.tokenizer.lit.model import LIT
from genvid.tokenizer.lit.refinement import refine_latents
from genvid.tokens import BlockTokens, VideoTokenizer


def check_refined(tokenizer: VideoTokenizer, steps: int) -> None:
    """ValueError for fewer steps than 0, or for any with a tokenizer other than AdapTok and LIT."""
    check_steps(steps)
    if steps and not isinstance(tokenizer, AdapTok | LIT):
        raise ValueError(f"tokens of AdapTok and LIT can be refined, not those of {type(tokenizer).__name__}")


def refine_clips(
    tokenizer: VideoTokenizer, video: Tensor, tokens: BlockTokens, steps: int, batch_size: int | None = None
) -> BlockTokens:
    """Clips (B, 3, T, H, W) and their tokens, of AdapTok with features -> better tokens; the same are kept.
    `batch_size`: clips at a time: memory, not results. ValueError as from `check_refined`."""
    check_refined(tokenizer, steps)
    if not steps:
        return tokens
    refined = []
    for part in torch.split(torch.arange(len(video)), batch_size or len(video)):
        if isinstance(tokenizer, AdapTok):
            refined.append(refine_codes(tokenizer, video[part], tokens[part], steps))
        elif isinstance(tokenizer, LIT):
            refined.append(refine_latents(tokenizer, video[part], tokens[part], steps))
    return BlockTokens.concatenate(refined)
