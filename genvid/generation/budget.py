"""Token budgets of generation: hard limits, planned by the integer program from what the model itself would choose.

In "length" framing the model says how likely each length of the next block is. These log-probabilities, with the
Gumbel noise of the row, are scores: left alone, every row takes the size of the greatest score, which is a sample of
the model's own lengths (its likeliest one at temperature 0; top-k and top-p apply to lengths as to codes). Under a
budget the program takes the sizes of the greatest summed score that can be paid for, so a budget that is not short
changes nothing. What a block lacks, the later ones are drawn without: the scores of early blocks count more
(`block_weights`).

Blocks still to come compete for the same tokens. Scores of rows that were sampled before without a budget stand for
theirs: see `forecast`. Scores rise and fall along the sizes, so that the online controller of `genvid.allocation`, made
for curves that only fall, has no place here: one video alone is planned by dynamic programming over that forecast.
One video cannot give to another what its last block turns out not to want, so a token that stays unspent has a price.

A model whose rows begin with their budget is also told it: it aims at what it is told, and the plan is the limit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genvid.allocation import BudgetError, solve_budget
from genvid.ar.model import RowModel
from genvid.generation.engine.scheduler import Request, RowEngine
from genvid.generation.grammar import least_tokens
from genvid.tokens.rows import BlockLayout


@dataclass(frozen=True)
class BudgetConfig:
    """What generation may spend: tokens (codes) of the blocks that are generated. By default as many as it likes."""

    tokens_per_video: int | None = None
    """For every single video. Told to models whose rows tell it."""
    total: int | None = None
    """For all videos together. Told to none: how much of it a video will have is not known before."""
    group_size: int = 32
    """Videos that share a part of `total` and are planned together, in order; every group has its part."""
    plan: bool = True
    """False: lengths are drawn as without a budget and cut where it ends: worse, but all that "end" framing allows."""
    forecast_rows: int = 32
    """Videos that are sampled without a budget, so as to know what later blocks will want."""

    def __post_init__(self) -> None:
        if self.tokens_per_video is not None and self.total is not None:
            raise ValueError(f"a budget is either tokens_per_video or total, got {self}")
        if self.group_size < 1 or self.forecast_rows < 1:
            raise ValueError(f"group_size and forecast_rows are at least 1, got {self}")


USED = 0.99
"""Share that single videos are to use, on average, of the tokens that they want and may have."""

PRICES = (0.0, *(2.0**power for power in range(-14, 5)))
"""Weighted log-probability that a token left unspent may cost: the least of these at which `USED` is reached."""


def block_weights(blocks: int, layout: BlockLayout) -> Tensor:
    """(G,) what the scores of each block count: the square of how many blocks are drawn with it in view, its own among
    them. (By 1 each, the greatest joint probability, samples were worse: docs/results/sampling_budgets.md.)"""
    return torch.arange(blocks, 0, -1, dtype=torch.float64).clamp(max=layout.num_blocks) ** 2


class VideoPlanner:
    """At most `tokens` for one video, block after block: the best that can be expected.

    Worth of t tokens for blocks g, g + 1, ...: what the best size of block g, and then the rest for the others, gains
    on average over the forecast, less the price of what stays unspent. It is counted back from the last block, once for
    all videos of a budget. No block gets more than it wants: tokens are left where even the last one wants less.
    """

    rows = 1

    def __init__(self, tokens: int, worth: Tensor, layout: BlockLayout) -> None:
        """worth: (blocks + 1, tokens + 1), from `plan_worth`."""
        self._left, self._block, self._worth = torch.tensor([tokens]), 0, worth
        self._sizes, self._weights = torch.tensor(layout.sizes), block_weights(len(worth) - 1, layout)

    def choose(self, scores: Tensor) -> Tensor:
        scores = scores * self._weights[self._block]
        self._block += 1
        chosen = _best(scores, self._sizes, self._worth[self._block], self._left)[1]
        self._left = self._left - chosen
        return chosen


def plan_worth(tokens: int, blocks: int, layout: BlockLayout, scores: Tensor) -> Tensor:
    """`expected_worth` at the least price at which the rows of the forecast use their budget. scores: (R, G, K),
    weighted."""
    sizes = torch.tensor(layout.sizes)
    wanted = sizes[scores[:, :blocks].argmax(-1)].sum(1).clamp(max=tokens).sum()

    def is_used(price: float) -> bool:
        worth, left = expected_worth(tokens, blocks, layout, scores, price), torch.full((len(scores),), tokens)
        for block in range(blocks):
            left = left - _best(scores[:, block], sizes, worth[block + 1], left)[1]
        return bool((tokens - left).sum() >= USED * wanted)

    found = bisect_left(PRICES, True, key=is_used)
    return expected_worth(tokens, blocks, layout, scores, PRICES[min(found, len(PRICES) - 1)])


def expected_worth(tokens: int, blocks: int, layout: BlockLayout, scores: Tensor, price: float = 0.0) -> Tensor:
    """(blocks + 1, tokens + 1) worth of every number of tokens to blocks g, g + 1, ...; -inf where they do not
    suffice. scores: (R, G, K), weighted."""
    sizes, left = torch.tensor(layout.sizes), torch.arange(tokens + 1)
    worth = torch.zeros(blocks + 1, tokens + 1, dtype=torch.float64)
    worth[blocks] = -price * left
    for block in reversed(range(blocks)):
        worth[block] = _best(scores[:, block, None], sizes, worth[block + 1], left)[0].mean(0)
    return worth


def _best(scores: Tensor, sizes: Tensor, worth: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Greatest (...) sum of a size's score and the worth of what it leaves of (...) tokens; and those sizes, none above
    the one of the greatest score. scores: (..., K)."""
    rest = left[..., None] - sizes
    unwanted = sizes > sizes[scores.argmax(-1)][..., None]
    best = (scores.double() + worth[rest.clamp(min=0)]).masked_fill((rest < 0) | unwanted, -torch.inf).max(-1)
    return best.values, sizes[best.indices]


class GroupPlanner:
    """At most `tokens` for `rows` videos together: the integer program over them and what is to come."""

    def __init__(self, tokens: int, rows: int, blocks: int, layout: BlockLayout, scores: Tensor) -> None:
        """scores: (R, G, K) of the forecast, weighted."""
        self.rows = rows
        self._left, self._block, self._blocks = tokens, 0, blocks
        self._sizes, self._weights = torch.tensor(layout.sizes), block_weights(blocks, layout)
        self._later = scores[torch.arange(rows) % len(scores)]  # (rows, G, K): each row's double in the forecast

    def choose(self, scores: Tensor) -> Tensor:
        scores = scores * self._weights[self._block]
        self._block += 1
        later = self._later[:, self._block : self._blocks].flatten(0, 1)
        sizes = solve_budget(-torch.cat([scores, later]), self._sizes, self._left)[: self.rows]
        self._left -= int(sizes.sum())
        return sizes


def with_budget(engine: RowEngine, requests: Sequence[Request], budget: BudgetConfig) -> list[Request]:
    """The requests under a budget, which they cannot exceed together or apart; all of as many blocks.

    ValueError for requests whose lengths are planned or limited already. BudgetError for a budget that the shortest
    videos exceed. Both before anything is sampled. May sample
    `forecast_rows` of the requests. The result depends on the whole list: processes that share a run
    must all pass all of it, and may then sample any groups of it.
    """
    if not requests or (budget.tokens_per_video is None and budget.total is None):
        return list(requests)
    layout, blocks = engine.model.layout, _common_blocks(requests)
    shares = _shares(layout, blocks, len(requests), budget)
    if budget.tokens_per_video is not None and layout.budget_bins:
        requests = _with_budget_prefix(engine.model, requests, shares[0][0])
    if budget.plan and layout.framing != "length":
        raise ValueError('only models of "length" framing plan a budget; use plan: false, or plan the lengths yourself')
    if not budget.plan:
        parts = [share // count for share, count in shares for _ in range(count)]
        return [replace(request, limit=part) for request, part in zip(requests, parts, strict=True)]
    scores = forecast(engine, requests[: budget.forecast_rows]) * block_weights(blocks, layout)[:, None]
    worth = {share: plan_worth(share, blocks, layout, scores) for share, count in set(shares) if count == 1}
    planned: list[Request] = []
    for share, count in shares:
        planner: VideoPlanner | GroupPlanner
        if count == 1:
            planner = VideoPlanner(share, worth[share], layout)
        else:
            planner = GroupPlanner(share, count, blocks, layout, scores)
        planned += [replace(request, planner=planner) for request in requests[len(planned) : len(planned) + count]]
    return planned


def groups(requests: Sequence[Request]) -> list[range]:
    """Numbers of the requests that must be sampled together: those that share a planner, else each alone."""
    found: list[range] = []
    for number, request in enumerate(requests):
        alone = request.planner is None or not number or requests[number - 1].planner is not request.planner
        found.append(range(number, number + 1) if alone else range(found.pop().start, number + 1))
    return found


def missing(requests: Sequence[Request], done: Collection[int]) -> list[int]:
    """Numbers of the requests that are not done, and of all that share their planners."""
    return [number for group in groups(requests) if not all(n in done for n in group) for number in group]


def forecast(engine: RowEngine, requests: Sequence[Request]) -> Tensor:
    """(R, G, K) scores of every block's sizes, in requests sampled without a budget."""
    sizes = torch.tensor(engine.model.layout.sizes)
    recorders = [_ScoreRecorder(sizes) for _ in requests]
    watched = [
        replace(request, planner=recorder, planned=None, limit=None)
        for request, recorder in zip(requests, recorders, strict=True)
    ]
    for _ in engine.run(watched):
        pass
    return torch.stack([torch.cat(recorder.seen) for recorder in recorders])


class _ScoreRecorder:
    """A planner that lets the row have its way, and remembers the scores."""

    rows = 1

    def __init__(self, sizes: Tensor) -> None:
        self._sizes = sizes
        self.seen: list[Tensor] = []

    def choose(self, scores: Tensor) -> Tensor:
        self.seen.append(scores)
        return self._sizes[scores.argmax(1)]


def _common_blocks(requests: Sequence[Request]) -> int:
    """Blocks of every request; ValueError unless they are free to be put under a budget together."""
    if any((request.planned, request.limit, request.planner) != (None, None, None) for request in requests):
        raise ValueError("the lengths of these requests are planned or limited already: leave out these, or the budget")
    blocks = {request.num_blocks for request in requests}
    if len(blocks) > 1:
        raise ValueError(f"requests that share a budget have as many blocks, these have {sorted(blocks)}")
    return blocks.pop()


def _with_budget_prefix(model: RowModel, requests: Sequence[Request], tokens: int) -> list[Request]:
    """The requests with prefixes that tell the budget: in tokens of as many blocks as in training."""
    layout = model.layout
    blocks = layout.num_blocks - model.config.context_blocks
    budgets = torch.tensor([tokens * blocks // request.num_blocks for request in requests])
    return [
        replace(request, prefix=tuple(layout.set_budget(torch.tensor([request.prefix]), budget[None])[0].tolist()))
        for request, budget in zip(requests, budgets, strict=True)
    ]


def _shares(layout: BlockLayout, blocks: int, count: int, budget: BudgetConfig) -> list[tuple[int, int]]:
    """(tokens, videos) of every group. Together they are the budget, or as much of it as can be spent."""
    videos, tokens = (1, budget.tokens_per_video) if budget.total is None else (count, budget.total)
    assert tokens is not None
    least, most = videos * least_tokens(layout, blocks), videos * blocks * layout.largest
    if tokens < least:
        raise BudgetError(
            f"{tokens} tokens cannot pay for {videos} videos of {blocks} blocks, which need at least "
            f"{least // videos} each; allow {least} or more"
        )
    tokens = min(tokens, most)
    if budget.total is None:
        return [(tokens, 1)] * count
    spans = [(start, min(start + budget.group_size, count)) for start in range(0, count, budget.group_size)]
    return [(tokens * end // count - tokens * start // count, end - start) for start, end in spans]
