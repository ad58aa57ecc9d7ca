"""The token budget of each tokenizer: of each clip by itself, or from the options of a command."""

from __future__ import annotations

from functools import singledispatch

from genvid.allocation import Budget, DistortionPredictor
from genvid.tokenizer.adaptok.budget import (
    PublishedBudget,
    ScorerBudget,
    StreamScorerBudget,
    UniformBudget,
    load_predictor,
)
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.lit.budget import ClipBudget
from genvid.tokenizer.lit.model import LIT
from genvid.tokens import VideoTokenizer


@singledispatch
def clip_budget(tokenizer: VideoTokenizer, predictor: DistortionPredictor | None, tokens: int) -> Budget:
    """At most `tokens` of every clip, whatever is encoded beside it, checked against the tokenizer.

    `predictor`: of AdapTok; None: as many tokens for every block.
    """
    raise _no_budget(tokenizer)


@clip_budget.register
def _(tokenizer: AdapTok, predictor: DistortionPredictor | None, tokens: int) -> Budget:
    full_length = tokenizer.spec.max_blocks
    if predictor is None:
        return UniformBudget(tokens, full_length)
    return ScorerBudget(predictor, tokens, full_length, group_size=1)


@clip_budget.register
def _(tokenizer: LIT, predictor: DistortionPredictor | None, tokens: int) -> Budget:
    return ClipBudget(tokens, tokenizer.metric, tokenizer.spec.block_capacity)


@singledispatch
def token_budget(tokenizer: VideoTokenizer, tokens: int | None, scorer: str | None, *, published: bool) -> Budget:
    """The budget of `tokens`, checked against the tokenizer; ValueError for options that it does not take.

    `scorer`: model folder or Hub id. `published`: share the tokens among blocks as the published evaluation does.
    """
    raise _no_budget(tokenizer)


@token_budget.register
def _(tokenizer: AdapTok, tokens: int | None, scorer: str | None, *, published: bool) -> Budget:
    if scorer is None or tokens is None:
        own = tokenizer.folder / "scorer" if tokenizer.folder and scorer is None else None
        hint = f" (that of this tokenizer is {own})" if own and own.is_dir() else ""
        raise ValueError(f"a token budget needs both --scorer{hint} and --tokens")
    predictor = load_predictor(tokenizer, scorer)
    if published:
        return PublishedBudget(predictor, tokens, tokenizer.spec)
    budget = ScorerBudget if tokenizer.window is None else StreamScorerBudget
    return budget(predictor, tokens, tokenizer.config.grid[0])


@token_budget.register
def _(tokenizer: LIT, tokens: int | None, scorer: str | None, *, published: bool) -> Budget:
    if scorer is not None or published or tokens is None:
        raise ValueError(f"{tokenizer.folder} is LIT, which needs no scorer: give --tokens alone")
    return clip_budget(tokenizer, None, tokens)


def _no_budget(tokenizer: VideoTokenizer) -> ValueError:
    return ValueError(f"a {type(tokenizer).__name__} keeps all of its tokens: leave out the token budget")
