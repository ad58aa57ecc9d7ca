"""The scorer on one block after the other, with what it reads of earlier ones cached; predicted curves of clips."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genvid.replay import Graphs
from genvid.tokenizer.adaptok.cuts import Cut, kept_cut
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.past import PastBlocks
from genvid.tokenizer.adaptok.pooled_queries import carry_over
from genvid.tokenizer.adaptok.scorer import Scorer
from genvid.tokens import BlockTokens


class Last(NamedTuple):
    """The layer input (B, S, width) of a block, kept where (B, S), after a cut."""

    inputs: Tensor
    keep: Tensor
    cut: Cut


class BlockScorer:
    """The passes of a scorer over one block, given `PastBlocks`; and their graphs, which streams share.

    The weights must not change between calls.
    """

    def __init__(self, tokenizer: AdapTok, scorer: Scorer) -> None:
        self.tokenizer, self.scorer = tokenizer, scorer.at(tokenizer)
        self.graphs = Graphs()

    def score(self, past: PastBlocks, features: Tensor, codes: Tensor, index: int, last: Last | None) -> Tensor:
        """Distortion (B, K) of the next block at each size, from all of its tokens. `last` is then a past one.

        `index`: number of the block in the table of absolute positions.
        """
        every = torch.ones_like(codes, dtype=torch.bool)
        tokens, layers = BlockTokens(every, codes, features=features), self.scorer.layers
        x = self._layer_input(past, tokens, index, codes.shape[2])
        if last is None:
            place = self.scorer.placement([(0, x.shape[1])], past.count)
            x = past.run(layers, x, every[:, 0], place, ragged=False, remember=False)
        else:
            inputs, keep, cut = last
            place = self.scorer.placement([(0, cut.length), (1, x.shape[1])], past.count)
            both = torch.cat([inputs, x], 1)
            x = past.run(layers, both, keep, place, ragged=cut.ragged, ahead=True, room=cut.room)[:, cut.length :]
        return self.scorer.denormalize(self.scorer.read_out(x[:, None])[:, 0].float())

    def remember(self, past: PastBlocks, inputs: Tensor, keep: Tensor, cut: Cut) -> None:
        """The last block is then a past one."""
        place = self.scorer.placement([(0, cut.length)], past.count)
        past.run(self.scorer.layers, inputs, keep, place, ragged=cut.ragged, room=cut.room)

    def kept_input(
        self, past: PastBlocks, features: Tensor, codes: Tensor, keep: Tensor, cut: Cut, index: int
    ) -> Tensor:
        """Layer input (B, S, width) of the cut block, whose latents are then among the past ones."""
        tokens = BlockTokens(keep, codes, features=features)
        inputs = self._layer_input(past, tokens, index, cut.length)
        if self.scorer.config.novelty:
            past.append_latents(self.tokenizer.embed(tokens)[:, 0], keep[:, 0])
        return inputs

    def _layer_input(self, past: PastBlocks, tokens: BlockTokens, index: int, length: int) -> Tensor:
        """The first `length` tokens of the next block (B, 1, L), which is number `index` -> (B, length, width)."""
        carried = None
        if self.scorer.config.novelty:
            assert self.tokenizer.memory is not None
            known = past.latents_then(self.tokenizer.embed(tokens)[:, 0], tokens.keep[:, 0])
            carried = carry_over(*known, self.tokenizer.memory, self.scorer.config.window)[0][:, -1:]
        scorer_inputs = self.scorer.scorer_inputs(self.tokenizer, tokens, carried)[:, :, :length]
        return self.scorer.embed(scorer_inputs, tokens.keep[:, :, :length], index)[:, 0]


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
        self._last: Last | None = None
        """The last block, until it is among the past ones."""

    @torch.no_grad()
    def score(self, tokens: BlockTokens) -> Tensor:
        """Distortion (B, K) of the next block (B, 1, L) at each size, from all of its tokens."""
        last, self._last = self._last, None
        return self._past.step(self._scorer.score, tokens.features, tokens.codes, self._index(), last)

    @torch.no_grad()
    def append(self, tokens: BlockTokens) -> None:
        """Go on to the block after this one (B, 1, L), of which later scores read the kept tokens."""
        if self._last is not None:
            self._past.step(self._scorer.remember, *self._last)
        cut, scorer = kept_cut(tokens.keep), self._scorer
        inputs = self._past.step(scorer.kept_input, tokens.features, tokens.codes, tokens.keep, cut, self._index())
        self._last = Last(inputs, tokens.keep[:, 0, : cut.length], cut)
        self.count += 1

    def _index(self) -> int:
        """Of the next block; rotary positions, of blocks without end, need none."""
        return self.count if self._scorer.scorer.pyramid is None else 0


class ScorerPredictor:
    """A tokenizer and its scorer as a `genvid.allocation.DistortionPredictor`.

    In a pass over the blocks, the earlier ones are cached (`ScorerStream`). The cache is used only for a call whose
    earlier blocks equal the cached ones, so results do not depend on earlier calls. The weights must not change between
    calls.
    """

    def __init__(self, tokenizer: AdapTok, scorer: Scorer) -> None:
        self.passes = BlockScorer(tokenizer, scorer)
        self.tokenizer, self.scorer = tokenizer, self.passes.scorer
        self.sizes = self.scorer.sizes.cpu()
        self._stream: ScorerStream | None = None
        self._cached: BlockTokens | None = None
        """The blocks of `_stream`."""

    @torch.no_grad()
    def predict(self, tokens: BlockTokens, block: int) -> Tensor:
        """Distortion (B, K) of `block` at each size, given the tokens of earlier blocks that `tokens.keep` keeps.

        All tokens of `block` are read, kept or not; later blocks are not read.
        """
        if tokens.features is None or tokens.codes is None:
            raise ValueError("the scorer reads codes and encoder features, and these tokens lack one: encode the video")
        stream = self._stream
        if stream is None or not self._precedes(tokens, block):
            stream = ScorerStream(self.passes)
        while stream.count < block:
            stream.append(tokens.select_blocks(slice(stream.count, stream.count + 1)))
        goes_on = block + 1 < tokens.keep.shape[1]
        self._stream, self._cached = (stream, tokens.select_blocks(slice(block))) if goes_on else (None, None)
        return stream.score(tokens.select_blocks(slice(block, block + 1)))

    def _precedes(self, tokens: BlockTokens, block: int) -> bool:
        """Whether the cached blocks are the first ones of `tokens`, and none of them is `block` or later."""
        ours = self._cached
        if ours is None or not 0 < ours.keep.shape[1] <= block:
            return False
        theirs = tokens.select_blocks(slice(ours.keep.shape[1]))
        pairs = ((ours.keep, theirs.keep), (ours.codes, theirs.codes), (ours.features, theirs.features))
        return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)
