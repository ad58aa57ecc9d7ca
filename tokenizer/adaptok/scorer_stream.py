"""The scorer on one block after the other, with its inputs of earlier ones cached; predicted curves of clips."""

from __future__ import annotations

from dataclasses import replace
from threading import local
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genvid.replay import Graphs
from genvid.tokenizer.adaptok.cuts import Cut, few, kept_cut
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.packed import has_kernel
from genvid.tokenizer.adaptok.packed_past import PackedBlocks, PackedPast
from genvid.tokenizer.adaptok.past import PastBlocks
from genvid.tokenizer.adaptok.pooled_queries import carry_over
from genvid.tokenizer.adaptok.scorer import Scorer
from genvid.tokenizer.layers import dtype_of_products
from genvid.tokens import BlockTokens


class CutBlock(NamedTuple):
    """A block as it was cut."""

    features: Tensor
    """(B, 1, L, F)."""
    codes: Tensor
    """(B, 1, L)."""
    keep: Tensor
    """(B, 1, L)."""
    cut: Cut
    number: int
    """Of the block in the table of absolute positions."""


class BlockScorer:
    """The passes of a scorer over one block, given `PastBlocks`; and their graphs, which streams share.

    The weights must not change between calls.
    """

    def __init__(self, tokenizer: AdapTok, scorer: Scorer) -> None:
        self.tokenizer, self.scorer = tokenizer, scorer.at(tokenizer)
        self.graphs = Graphs()

    def score(self, past: PastBlocks, features: Tensor, codes: Tensor, number: int, last: CutBlock | None) -> Tensor:
        """Distortion (B, K) of the next block at each size, from all of its tokens; `last` comes before it, and is then
        a past block. `number`: of the block in the table of absolute positions."""
        every, capacity = torch.ones_like(codes, dtype=torch.bool), codes.shape[2]
        whole, layers = BlockTokens(every, codes, features=features), self.scorer.layers
        if last is None:
            x = self._layer_input(past, whole, number, capacity)
            place = self.scorer.placement([(0, capacity)], past.count)
            x = past.run(layers, x, every[:, 0], place, ragged=False, remember=False)
        else:
            cut, inputs = last.cut, self._kept_input(past, last)  # its latents are past ones of this block
            x = torch.cat([inputs, self._layer_input(past, whole, number, capacity)], 1)
            place = self.scorer.placement([(0, cut.length), (1, capacity)], past.count)
            keep = last.keep[:, 0, : cut.length]
            x = past.run(layers, x, keep, place, ragged=cut.ragged, ahead=True, room=cut.room)[:, cut.length :]
        return self.scorer.denormalize(self.scorer.read_out(x[:, None])[:, 0].float())

    def remember(self, past: PastBlocks, *last: Any) -> None:
        """The block of these fields of `CutBlock` is then a past one."""
        block = CutBlock(*last)
        cut, inputs = block.cut, self._kept_input(past, block)
        place = self.scorer.placement([(0, cut.length)], past.count)
        keep = block.keep[:, 0, : cut.length]
        past.run(self.scorer.layers, inputs, keep, place, ragged=cut.ragged, room=cut.room)

    def _kept_input(self, past: PastBlocks, block: CutBlock) -> Tensor:
        """Layer input (B, S, width) of the block, whose latents are then among the past ones."""
        tokens = BlockTokens(block.keep, block.codes, features=block.features)
        inputs = self._layer_input(past, tokens, block.number, block.cut.length)
        self.remember_latents(past, tokens, tokens.keep)
        return inputs

    def _layer_input(self, past: PastBlocks, tokens: BlockTokens, number: int, length: int) -> Tensor:
        """The first `length` tokens of the next block (B, 1, L), which has this `number` -> (B, length, width)."""
        scorer_inputs = self.scorer_inputs(past, tokens)[:, :, :length]
        return self.scorer.embed(scorer_inputs, tokens.keep[:, :, :length], number)[:, 0]

    def scorer_inputs(self, past: PastBlocks, tokens: BlockTokens) -> Tensor:
        """The next block (B, 1, L), after the latents of `past` -> (B, 1, L, E)."""
        carried = None
        if self.scorer.config.novelty:
            assert self.tokenizer.memory is not None
            known = past.latents_then(self.tokenizer.embed(tokens)[:, 0], tokens.keep[:, 0])
            carried = carry_over(*known, self.tokenizer.memory, self.scorer.config.window)[0][:, -1:]
        return self.scorer.scorer_inputs(self.tokenizer, tokens, carried)

    def remember_latents(self, past: PastBlocks, tokens: BlockTokens, keep: Tensor) -> None:
        """With novelty, the latents of the block (B, 1, L), kept where `keep`, on any device, are then past ones."""
        if self.scorer.config.novelty:
            past.append_latents(self.tokenizer.embed(tokens)[:, 0], keep[:, 0].to(tokens.keep.device))


class ScorerStream:
    """The scorer on one block after the other, with the keys and values of earlier ones cached.

    Each block runs twice: with all its tokens for its own scores, and with its kept tokens for the keys and values that
    later blocks attend to. The second run and the first one of the next block are one pass over the layers.
    """

    def __init__(self, scorer: BlockScorer) -> None:
        self.count = 0
        """Blocks so far."""
        self._scorer = scorer
        self._past = PastBlocks(scorer.scorer.config.window, graphs=scorer.graphs)
        self._last: CutBlock | None = None
        """The last block, until it is among the past ones."""

    @torch.no_grad()
    def score(self, tokens: BlockTokens) -> Tensor:
        """Distortion (B, K) of the next block (B, 1, L) at each size, from all of its tokens."""
        last, self._last = self._last, None
        return self._past.step(self._scorer.score, tokens.features, tokens.codes, self._number(), last)

    @torch.no_grad()
    def append(self, tokens: BlockTokens, keep: Tensor) -> None:
        """Go on to the block after this one (B, 1, L), of which later scores read the tokens in `keep` (B, 1, L), on
        the CPU."""
        assert tokens.features is not None
        assert tokens.codes is not None
        if self._last is not None:
            self._past.step(self._scorer.remember, *self._last)
        cut, kept = kept_cut(keep, few(tokens.codes)), keep.to(tokens.codes.device, non_blocking=True)
        self._last = CutBlock(tokens.features, tokens.codes, kept, cut, self._number())
        self.count += 1

    def _number(self) -> int:
        """Of the next block; rotary positions, of blocks without end, need none."""
        return self.count if self._scorer.scorer.pyramid is None else 0


class PackedScorerStream:
    """`ScorerStream` of many clips on a GPU in half precision: kept tokens alone, without padding or masks."""

    def __init__(self, scorer: BlockScorer) -> None:
        self.count = 0
        """Blocks so far."""
        window = scorer.scorer.config.window
        self._scorer, self._past, self._latents = scorer, PackedPast(window), PastBlocks(window)
        self._inputs: Tensor | None = None
        """Layer input (B, L, width) of the next block, if it has been scored."""
        self._last: tuple[Tensor, Tensor] | None = None
        """That of the last block, and its kept tokens (B, L) on the CPU, until these are among the past ones."""

    @torch.no_grad()
    def score(self, tokens: BlockTokens) -> Tensor:
        """Distortion (B, K) of the next block (B, 1, L) at each size, from all of its tokens."""
        scorer, last, self._last = self._scorer.scorer, self._last, None
        self._inputs = inputs = self._layer_input(tokens)
        clips, capacity = inputs.shape[:2]
        packed = PackedBlocks(None if last is None else last[1], clips, capacity)
        chosen = packed.chosen.to(inputs.device, non_blocking=True)
        blocks = torch.stack([inputs] if last is None else [last[0], inputs], 1)
        runs = [(block, capacity) for block in range(blocks.shape[1])]
        place = scorer.placement(runs, self.count + 1 - len(runs), chosen % (len(runs) * capacity))
        x = blocks.flatten(0, 2)[chosen][None]
        x = self._past.run(scorer.layers, x, packed, place, scorer.read)
        return scorer.denormalize(scorer.scores(x[:, None])[:, 0].float())

    @torch.no_grad()
    def append(self, tokens: BlockTokens, keep: Tensor) -> None:
        """Go on to the block after this one (B, 1, L), of which later scores read the tokens in `keep` (B, 1, L), on
        the CPU. If the next block has been scored, it is this one."""
        if self._last is not None:
            self.score(tokens)  # the last block is then among the past ones
        self._last = self._layer_input(tokens) if self._inputs is None else self._inputs, keep[:, 0]
        self._inputs = None
        self._scorer.remember_latents(self._latents, tokens, keep)
        self.count += 1

    def _layer_input(self, tokens: BlockTokens) -> Tensor:
        """All tokens of the next block (B, 1, L) -> (B, L, width). It does not depend on which of them are kept."""
        whole = replace(tokens, keep=torch.ones_like(tokens.keep))
        inputs = self._scorer.scorer_inputs(self._latents, whole)
        return self._scorer.scorer.embed(inputs, whole.keep, self.count)[:, 0]


class _Pass(local):
    """Over the blocks of the clips that a thread is at."""

    stream: ScorerStream | PackedScorerStream | None = None
    cached: tuple[Tensor, ...] = ()
    """Kept tokens of the blocks of `stream`, on the CPU; codes and features of these, and of blocks after them."""


class ScorerPredictor:
    """A tokenizer and its scorer as a `genvid.allocation.DistortionPredictor`.

    In a pass over the blocks, the earlier ones are cached (`ScorerStream`, or of many clips on a GPU in half precision
    `PackedScorerStream`). The cache is used only for a call whose earlier blocks equal the cached ones, so results do
    not depend on earlier calls, and each thread has its own. The weights must not change between calls.
    """

    def __init__(self, tokenizer: AdapTok, scorer: Scorer) -> None:
        self.passes = BlockScorer(tokenizer, scorer)
        self.tokenizer, self.scorer = tokenizer, self.passes.scorer
        self.sizes = self.scorer.sizes.cpu()
        self._pass = _Pass()

    @torch.no_grad()
    def predict(self, tokens: BlockTokens, block: int) -> Tensor:
        """Distortion (B, K) of `block` at each size, given the tokens of earlier blocks that `tokens.keep` keeps.

        All tokens of `block` are read, kept or not; later blocks are not read.
        """
        if tokens.features is None or tokens.codes is None:
            raise ValueError("the scorer reads codes and encoder features, and these tokens lack one: encode the video")
        stream, earlier = self._pass.stream, (tokens.keep[:, :block].cpu(), tokens.codes, tokens.features)
        if stream is None or not self._precedes(earlier):
            stream = (PackedScorerStream if self._packs(tokens) else ScorerStream)(self.passes)
        while stream.count < block:
            following = slice(stream.count, stream.count + 1)
            stream.append(tokens.select_blocks(following), earlier[0][:, following])
        goes_on = block + 1 < tokens.keep.shape[1]
        self._pass.stream, self._pass.cached = (stream, earlier) if goes_on else (None, ())
        return stream.score(tokens.select_blocks(slice(block, block + 1)))

    def _packs(self, tokens: BlockTokens) -> bool:
        """Whether kept tokens alone are computed, in the precision of this moment."""
        config, device = self.scorer.config, tokens.keep.device
        dtype = dtype_of_products(self.scorer.layers, device)
        return not few(tokens.keep) and has_kernel(device, dtype, config.width // config.heads)

    def _precedes(self, earlier: tuple[Tensor, ...]) -> bool:
        """Whether `earlier`, as in `_Pass.cached`, begins with the cached blocks."""
        blocks = self._pass.cached[0].shape[1]
        if blocks > earlier[0].shape[1]:
            return False
        (keep, *known), (kept, *values) = self._pass.cached, earlier
        # Between calls allocators change the kept tokens alone. The block after the earlier ones has been scored.
        same = (a is b or a[:, : blocks + 1].equal(b[:, : blocks + 1]) for a, b in zip(known, values, strict=True))
        return keep.equal(kept[:, :blocks]) and all(same)
