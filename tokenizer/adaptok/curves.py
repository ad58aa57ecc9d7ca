"""True distortion curves: what a block would look like with each candidate number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.losses import Distortion
from genvid.tokens import BlockTokens


@torch.no_grad()
def measure_curve(
    tokenizer: AdapTok, tokens: BlockTokens, video: Tensor, block: int, sizes: Sequence[int], distortion: Distortion
) -> Tensor:
    """Distortion of the frames of `block` for each of its candidate sizes, (B, K).

    Earlier blocks stay as `tokens.keep` cuts them; later ones cannot matter. One decode of one block per size.
    """
    frames = tokenizer.spec.frames_per_block
    target = video[:, :, block * frames : (block + 1) * frames]
    embeddings = tokenizer.embed(tokens)
    lengths = tokens.lengths
    full = BlockTokens(torch.ones_like(tokens.keep))
    curve = []
    for size in sizes:
        lengths[:, block] = size
        keep = full.tail_drop(lengths).keep
        curve.append(distortion(tokenizer.render_block(embeddings, keep, block).clamp(-1, 1), target))
    return torch.stack(curve, 1)


class MeasuredDistortion:
    """The oracle in the place of a scorer: curves measured on the very clips that are to be allocated."""

    def __init__(self, tokenizer: AdapTok, video: Tensor, sizes: Sequence[int], distortion: Distortion) -> None:
        self.tokenizer, self.video, self.distortion = tokenizer, video, distortion
        self.sizes = torch.tensor(sizes, device=video.device)

    def predict(self, tokens: BlockTokens, block: int) -> Tensor:
        """(B, K) distortion of `block`; the clips must be those given at construction, in their order."""
        return measure_curve(self.tokenizer, tokens, self.video, block, self.sizes.tolist(), self.distortion)
