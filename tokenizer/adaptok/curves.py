"""True distortion: what a block of real clips looks like with the tokens that it keeps."""

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
    """Distortion (B,) of the frames of `block` when blocks up to it are decoded as `tokens.keep` cuts them."""
    frames = tokenizer.spec.frames_per_block
    decoded = tokenizer.render_block(tokenizer.embed(tokens), tokens.keep, block).clamp(-1, 1)
    measured: Tensor = distortion(decoded, video[:, :, block * frames : (block + 1) * frames])
    return measured


def measure_curve(
    tokenizer: AdapTok, tokens: BlockTokens, video: Tensor, block: int, sizes: Sequence[int], distortion: Distortion
) -> Tensor:
    """Distortion (B, K) of the whole `block` at each candidate size; earlier blocks stay as they are cut."""
    rows = torch.arange(len(video), device=video.device).repeat_interleave(len(sizes))
    lengths = tokens.lengths[rows]
    lengths[:, block] = lengths.new_tensor(sizes).repeat(len(video))
    cut = tokens[rows].tail_drop(lengths)
    return block_distortion(tokenizer, cut, video[rows], block, distortion).view(len(video), -1)
