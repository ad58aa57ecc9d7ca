"""Refined latents: the kept ones are changed by steps through the inpainter and the codec's decoder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from genvid.tokenizer.descent import least_error
from genvid.tokenizer.lit.model import LIT, Filler
from genvid.tokens import BlockTokens


def refine_latents(lit: LIT, video: Tensor, tokens: BlockTokens, steps: int, fill: Filler | None = None) -> BlockTokens:
    """Clips (B, 3, T, H, W) and their tokens -> the tokens with better latents; the same are kept. `fill`: in place of
    the inpainter.

    A step of 1 is as long in each channel as the present error of a clip, by the metric, so that clips that are nearly
    right already are not disturbed.
    """
    assert tokens.latents is not None
    fill = lit.fill if fill is None else fill
    latents, kept = tokens.latents.float(), tokens.keep[..., None]
    deviation = lit.inverse.norm(dim=0)

    def restored(sent: Tensor) -> Tensor:
        """(B,) mean squared errors of pixels in [0, 1]."""
        frames = lit.render(fill(replace(tokens, latents=sent)))
        return (frames.float().clamp(-1, 1) - video).square().mean((1, 2, 3, 4)) / 4

    with torch.no_grad():
        unit = deviation * (restored(latents) / lit.pixel_error).sqrt().view(-1, 1, 1, 1)

    def decoded(change: Tensor) -> tuple[Tensor, Tensor]:
        sent = torch.where(kept, latents + unit * change, latents)
        return restored(sent), sent

    return replace(tokens, latents=least_error(torch.zeros_like(latents), decoded, steps))
