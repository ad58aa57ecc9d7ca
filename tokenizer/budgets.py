"""The token budget of each tokenizer, from the options that a user gives."""

from __future__ import annotations

from functools import singledispatch

from genvid.allocation import Budget
from genvid.tokenizer.adaptok.budget import PublishedBudget, ScorerBudget
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.lit.budget import ClipBudget
from genvid.tokenizer.lit.model import LIT
from genvid.tokens import VideoTokenizer


@singledispatch
def token_budget(tokenizer: VideoTokenizer, tokens: int | None, scorer: str | None, *, published: bool) -> Budget:
    """The budget of `tokens`, checked against the tokenizer; ValueError for options that it does not take.

    `scorer`: model folder or Hub id. `published`: share the tokens among blocks as the published evaluation does.
    """
    raise ValueError(f"a {type(tokenizer).__name__} keeps all of its tokens: leave out the token budget")


@token_budget.register
def _(tokenizer: AdapTok, tokens: int | None, scorer: str | None, *, published: bool) -> Budget:
    if scorer is None or tokens is None:
        raise ValueError("a token budget needs both --scorer and --tokens")
    return (PublishedBudget if published else ScorerBudget)(tokenizer, scorer, tokens)


@token_budget.register
def _(tokenizer: LIT, tokens: int | None, scorer: str | None, *, published: bool) -> Budget:
    if scorer is not None or published or tokens is None:
        raise ValueError(f"{tokenizer.folder} is LIT, which needs no scorer: give --tokens alone")
    return ClipBudget(tokens, tokenizer.metric, tokenizer.spec.block_capacity)
