"""Reconstruction: clips through a tokenizer, cut by a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genvid.allocation import Budget
from genvid.batch import Batch
from genvid.eval.evaluation import Output
from genvid.tokens import BlockTokens, TokenizerSpec, VideoTokenizer
from genvid.tokens.coding import decode, encode
from genvid.tokens.frame_blocks import repeat_last

DECODED = 16
"""Clips that go through a tokenizer at a time: memory, not results."""
Refinement = Callable[[Tensor, BlockTokens], BlockTokens]
"""Videos (B, 3, T, H, W) and their tokens, cut, with features -> the tokens with other codes."""

T = TypeVar("T")


class PerBatch(Generic[T]):
    """A function of a batch of videos, computed once for all candidates: the value of the last batch is kept."""

    def __init__(self, compute: Callable[[Tensor], T]) -> None:
        self.compute = compute
        self._last: tuple[Tensor, T] | None = None

    def __call__(self, video: Tensor) -> T:
        if self._last is None or self._last[0] is not video:
            self._last = None  # frees the last value before the next is computed
            self._last = (video, self.compute(video))
        return self._last[1]


class PieceEncoder(PerBatch[list[BlockTokens]]):
    """Videos (B, 3, T, H, W) -> the tokens of their consecutive pieces, each as long as the tokenizer takes.

    A last piece that does not fill its blocks is filled with its last frame.
    """

    def __init__(self, tokenizer: VideoTokenizer) -> None:
        super().__init__(self._encode)
        self.tokenizer = tokenizer

    def pieces(self, video: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, T, H, W) -> the same, cut in time."""
        spec = self.tokenizer.spec
        longest = video.shape[2] if spec.max_blocks is None else spec.longest_clip(spec.max_blocks)
        return torch.split(video, longest, 2)

    def _encode(self, video: Tensor) -> list[BlockTokens]:
        return [encode(self.tokenizer, self.filled(piece), DECODED) for piece in self.pieces(video)]

    def filled(self, piece: Tensor) -> Tensor:
        """The piece with its last frame repeated to fill its blocks."""
        return repeat_last(piece, self.tokenizer.spec.filled(piece.shape[2]) - piece.shape[2])


class Reconstruction:
    """A `VideoModel`: clips through a tokenizer, cut by a budget, with refined codes or without."""

    def __init__(
        self,
        encoder: PieceEncoder,
        budget: Budget | None,
        about: Mapping[str, Any],
        *,
        refine: Refinement | None = None,
    ) -> None:
        """`encoder` may serve several candidates. `budget` None: nothing is cut. `refine` changes codes afterwards.
        `about`: everything that the reconstructions depend on, hashes of the weights among it."""
        self.encoder, self.tokenizer, self.budget, self.about = encoder, encoder.tokenizer, budget, about
        self.refine = refine
        self.spec: TokenizerSpec | None = encoder.tokenizer.spec

    def describe(self) -> Mapping[str, Any]:
        return self.about

    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        """Fillings are cut off again; their tokens are counted."""
        video = conditioning["video"]
        pieces = self.encoder.pieces(video)
        kept = [self._kept(piece, tokens) for piece, tokens in zip(pieces, self.encoder(video), strict=True)]
        restored = [
            decode(self.tokenizer, tokens, DECODED)[:, :, : piece.shape[2]]
            for tokens, piece in zip(kept, pieces, strict=True)
        ]
        codes = [tokens.codes for tokens in kept if tokens.codes is not None]
        keep = torch.cat([tokens.keep for tokens in kept], 1)
        return Output(torch.cat(restored, 2), BlockTokens(keep, torch.cat(codes, 1) if codes else None))

    def _kept(self, piece: Tensor, tokens: BlockTokens) -> BlockTokens:
        cut = tokens if self.budget is None else self.budget.allocator(tokens.keep.shape[1])(tokens)
        return cut if self.refine is None else self.refine(self.encoder.filled(piece), cut)


class SizedReconstruction:
    """A `VideoModel` for frames of any size: each video by a reconstruction of its size, in multiples of 16 pixels.

    Frames are padded with black on both sides and cut again, as by the inference code of Cosmos and InfoTok.
    """

    def __init__(self, at: Callable[[tuple[int, int]], Reconstruction], size: tuple[int, int]) -> None:
        """`at` gives the reconstruction of frames (height, width); `size` is one of theirs."""
        self.at, self._last = at, at(size)
        self.about, self.spec = self._last.about, self._last.spec

    def describe(self) -> Mapping[str, Any]:
        return self.about

    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        video = conditioning["video"]
        height, width = video.shape[3:]
        (top, bottom), (left, right) = _filling(height), _filling(width)
        padded = F.pad(video, (left, right, top, bottom), value=-1.0)
        if self._last.tokenizer.spec.resolution != tuple(padded.shape[3:]):
            self._last = self.at((padded.shape[3], padded.shape[4]))
        output = self._last({**conditioning, "video": padded}, seeds)
        cut = output.video[..., top : top + height, left : left + width]
        return replace(output, video=cut, spec=self._last.spec)


def _filling(side: int) -> tuple[int, int]:
    """Pixels before and after a side that make it a multiple of 16."""
    missing = -side % 16
    return missing // 2, missing - missing // 2
