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
    lengths, curve = tokens.lengths, []
    for size in sizes:
        lengths[:, block] = size
        curve.append(block_distortion(tokenizer, tokens.tail_drop(lengths), video, block, distortion))
    return torch.stack(curve, 1)
