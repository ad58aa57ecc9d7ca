"""Rules that LIT is compared with, as allocators on the same codec with the same filler.

Both read the video, so an allocator is made for the clips it thins. Two departures: the first block is complete,
because fillers need a reference, and dropped latents are filled by LIT instead of by a decoder trained for that rule.
The times of the rules are thus measured on equal terms.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from genvid.tokenizer.lit.budget import check_floor
from genvid.tokenizer.lit.codecs.codec import Codec
from genvid.tokenizer.lit.model import LIT
from genvid.tokenizer.lit.redundancy import check_complete, distances, measured
from genvid.tokenizer.lit.reference import last_kept
from genvid.tokens import BlockTokens


class InfoTokRule:
    """InfoTok (arXiv 2512.16975): decode all tokens once, keep the positions with the largest errors."""

    def __init__(self, lit: LIT, video: Tensor, positions: int) -> None:
        """`positions` are kept in each clip of `video` (B, 3, T, H, W)."""
        self.lit, self.video, self.positions = lit, video, positions

    @torch.no_grad()
    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        check_complete(tokens)
        check_floor(self.positions, tokens.keep.shape[2])
        error = cell_errors(self.lit.codec, (self.lit.decode(tokens) - self.video).abs().mean(1))
        error[:, 0] = torch.inf
        rank = error.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return replace(tokens, keep=(rank < self.positions).view_as(tokens.keep))


class ElasticTokRule:
    """ElasticTok (arXiv 2410.08368): block by block, the fewest tokens that reach a target error, by binary search.

    ElasticTok drops the tail of an order that its encoder learned. A frozen codec has no such order: positions are
    ordered by their distance from the reference. Each probe fills and decodes the blocks so far. The encoder takes no
    mask here and runs once; ElasticTok's runs in every probe.
    """

    def __init__(self, lit: LIT, video: Tensor, target: float) -> None:
        """`target` is the mean squared error, of pixels in [0, 1], that every block of `video` is to reach."""
        geometry = lit.codec.geometry
        if geometry.chunk_frames != geometry.temporal_stride:
            raise ValueError(
                f"ElasticTok's rule decodes block by block, but {lit.codec.name} decodes "
                f"{geometry.chunk_frames // geometry.temporal_stride} at once: leave that rule out"
            )
        self.lit, self.video, self.target = lit, video, target

    @torch.no_grad()
    def __call__(self, tokens: BlockTokens) -> BlockTokens:
        latents = measured(tokens, self.lit.metric)
        keep = torch.ones_like(tokens.keep)
        capacity = keep.shape[2]
        for block in range(1, keep.shape[1]):
            reference = last_kept(latents[:, :block], keep[:, :block])[0][:, -1]
            rank = distances(latents[:, block], reference).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            low = torch.zeros(len(keep), dtype=torch.long, device=keep.device)
            high = torch.full_like(low, capacity)
            for _ in range(capacity.bit_length()):
                middle = (low + high) // 2
                keep[:, block] = rank < middle[:, None]
                passes = self._error(tokens, keep, block) <= self.target
                low, high = torch.where(passes, low, middle + 1).clamp(max=capacity), torch.where(passes, middle, high)
            keep[:, block] = rank < high[:, None]
        return replace(tokens, keep=keep)

    def _error(self, tokens: BlockTokens, keep: Tensor, block: int) -> Tensor:
        """(B,) error of the frames of `block`, from the blocks up to it filled and decoded."""
        assert tokens.latents is not None
        restored = self.lit.decode(BlockTokens(keep[:, : block + 1], latents=tokens.latents[:, : block + 1]))
        error = ((restored.clamp(-1, 1) - self.video[:, :, : restored.shape[2]]) / 2).square().mean(1)
        return cell_errors(self.lit.codec, error)[:, block].mean(1)


def cell_errors(codec: Codec, error: Tensor) -> Tensor:
    """(B, T, H, W) per pixel -> (B, G, L): the mean over the frames and pixels of each latent."""
    space, time = codec.geometry.spatial_stride, codec.geometry.temporal_stride
    pooled = F.avg_pool2d(error, space).flatten(2)
    blocks = []
    for window in torch.split(pooled, codec.codec_window or pooled.shape[1], 1):
        blocks.append(window[:, :1])
        if window.shape[1] > 1:
            blocks.append(torch.unflatten(window[:, 1:], 1, (-1, time)).mean(2))
    return torch.cat(blocks, 1)
