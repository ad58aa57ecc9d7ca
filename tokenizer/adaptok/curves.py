"""True distortion: the error of a decoded block as a function of its length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.losses import Distortion
from genvid.tokens import BlockTokens


@torch.no_grad()
def block_distortion(
    tokenizer: AdapTok, tokens: BlockTokens, video: Tensor, block: int, distortion: Distortion
) -> Tensor:
    """Distortion (B,) of the frames of `block` decoded from the tokens that `tokens.keep` keeps."""
    frames = tokenizer.spec.frames_per_block
    decoded = tokenizer.render_block(tokenizer.embed(tokens), tokens.keep, block).clamp(-1, 1)
    measured: Tensor = distortion(decoded, video[:, :, block * frames : (block + 1) * frames])
    return measured


def measure_curve(
    tokenizer: AdapTok, tokens: BlockTokens, video: Tensor, block: int, sizes: Sequence[int], distortion: Distortion
) -> Tensor:
    """Distortion (B, K) of `block` at each candidate size, from the kept tokens of earlier blocks."""
    rows = torch.arange(len(video), device=video.device).repeat_interleave(len(sizes))
    lengths = tokens.lengths[rows]
    lengths[:, block] = lengths.new_tensor(sizes).repeat(len(video))
    cut = tokens[rows].tail_drop(lengths)
    return block_distortion(tokenizer, cut, video[rows], block, distortion).view(len(video), -1)


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
        """Distortion (B, K) of `block` at each size, earlier blocks cut as `tokens.keep` says, `block` itself whole."""
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
