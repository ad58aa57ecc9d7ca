"""True distortion: the error of a decoded block as a function of its length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genvid.tokenizer.adaptok.attention import lengths_then_pixels
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.pooled_queries import carry_over, cell_means
from genvid.tokenizer.losses import Distortion
from genvid.tokens import BlockTokens


def measure_curve(
    tokenizer: AdapTok, tokens: BlockTokens, video: Tensor, block: int, sizes: Sequence[int], distortion: Distortion
) -> Tensor:
    """Distortion (B, K) of `block` cut to each candidate size, from the kept tokens of earlier blocks."""
    original = video[:, :, tokenizer.spec.span(block)]
    return distortion_of_each(decode_sizes(tokenizer, tokens, block, sizes), original, distortion)


@torch.no_grad()
def decode_sizes(tokenizer: AdapTok, tokens: BlockTokens, block: int, sizes: Sequence[int]) -> Tensor:
    """Frames (B, K, 3, T, H, W) in [-1, 1] of `block` cut to each of K sizes, from the kept tokens of
    earlier blocks: `AdapTok.render_block` of each.

    Only the cut block is computed for every size: no latent of an earlier block attends to it.
    """
    upto, capacity = slice(block + 1), tokens.keep.shape[2]
    embeddings, keep = tokenizer.embed(tokens.select_blocks(upto)), tokens.keep[:, upto]
    earlier, before, blocks = keep[:, :block].flatten(1), (capacity,) * block, [block] * len(sizes)
    runs = [*enumerate(before), *zip(blocks, sizes, strict=True)]
    latents = torch.cat([embeddings[:, g, :n] for g, n in runs], 1)
    pooled = None
    if tokenizer.memory is not None:
        carried, present = carry_over(embeddings, keep, tokenizer.memory, tokenizer.window)
        cut = torch.stack([torch.arange(capacity, device=keep.device) < size for size in sizes])
        filled = torch.where(cut[..., None], embeddings[:, block, None], carried[:, -1:])
        pooled = cell_means(filled, cut | present[:, -1:], tokenizer.pyramid.cells)
    mask = torch.cat([earlier, keep.new_ones(len(keep), sum(sizes))], 1)
    x = tokenizer.decoder_input(latents, mask, runs, blocks, pooled)
    pixels = (x.shape[1] - latents.shape[1]) // len(blocks)
    attend = lengths_then_pixels(before, sizes, pixels, earlier, tokenizer.window)
    attend = tokenizer.decoder_positions.placement(runs, blocks, tokenizer.pyramid)(attend)
    for decode in tokenizer.decoder:
        x = decode(x, attend)
    frames = tokenizer.frames(x[:, latents.shape[1] :], blocks)
    return torch.stack(frames.chunk(len(sizes), 2), 1).clamp(-1, 1)


@torch.no_grad()
def distortion_of_each(decoded: Tensor, original: Tensor, distortion: Distortion) -> Tensor:
    """Distortion (B, K) of each of K decodings (B, K, 3, T, H, W) of the frames of a block (B, 3, T, H, W)."""
    measured: Tensor = distortion(decoded.flatten(0, 1), original[:, None].expand_as(decoded).flatten(0, 1))
    return measured.view(decoded.shape[:2])


class MeasuredCurves:
    """A `genvid.allocation.DistortionPredictor` for the tokens of `video` (B, 3, T, H, W), and for no others.

    A curve depends on its clip and on the cut of earlier blocks alone. Allocators read the same ones repeatedly (the
    first block has no earlier ones), so every curve is measured once. Each clip is decoded at all sizes together:
    `batch_size` counts these decodings, and is at least those of one clip.
    """

    def __init__(
        self, tokenizer: AdapTok, video: Tensor, sizes: Tensor, distortion: Distortion, *, batch_size: int
    ) -> None:
        self.sizes = sizes
        self._tokenizer, self._video, self._distortion, self._batch_size = tokenizer, video, distortion, batch_size
        self._measured: dict[tuple[int, ...], Tensor] = {}
        """(clip, lengths of all earlier blocks) -> (K,) curve of the next block."""

    def predict(self, tokens: BlockTokens, block: int) -> Tensor:
        """Distortion (B, K) of `block` at each size, earlier blocks cut to `tokens.keep`, `block` itself whole."""
        keys = [(clip, *cut) for clip, cut in enumerate(tokens.lengths[:, :block].tolist())]
        unknown = [clip for clip, key in enumerate(keys) if key not in self._measured]
        sizes: list[int] = self.sizes.tolist()
        at_once = max(1, self._batch_size // len(sizes))
        for start in range(0, len(unknown), at_once):
            clips = unknown[start : start + at_once]
            rows = torch.tensor(clips, device=self._video.device)
            curves = measure_curve(self._tokenizer, tokens[rows], self._video[rows], block, sizes, self._distortion)
            self._measured |= {keys[clip]: curve for clip, curve in zip(clips, curves, strict=True)}
        return torch.stack([self._measured[key] for key in keys])
