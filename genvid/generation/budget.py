"""Token budgets of generation: hard limits, planned from the length distribution of the model.

In "length" framing the model predicts the distribution of the length of the next block. A size scores its
log-probability plus the Gumbel noise of the row. Without a budget every row takes the size of the greatest score, which
is a sample of the model's lengths (the likeliest at temperature 0; top-k and top-p apply to lengths as to codes). Under
a budget the sizes are those of the greatest summed score within it, so a budget that is not short changes nothing.
Cutting an early block also shortens the context of every later block, so early blocks get larger weights
(`block_weights`).

Future blocks compete for the same tokens. Their scores are estimated by those of rows sampled without a budget
(`forecast`). A group of videos is planned by the integer program. A single video is planned by dynamic programming over
the forecast: scores are not monotone in size, which the online controller of `genvid.allocation` requires. A single
video cannot pass unspent tokens to another, so unspent tokens have a price.

In models with budget bins the prefix carries the budget as well: it conditions the model, and the plan is the limit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genvid.allocation import BudgetError, solve_budget
from genvid.ar.row_model import RowModel
from genvid.generation.engine.scheduler import Request, RowEngine
from genvid.generation.grammar import least_tokens
from genvid.tokens.rows import BlockLayout


@dataclass(frozen=True)
class BudgetConfig:
    """Most tokens (codes) of the generated blocks. By default there is no limit."""

    tokens_per_video: int | None = None
    """For each video. In models with budget bins the prefix carries it."""
    total: int | None = None
    """For all videos together. The prefix carries no budget, because the share of a video is not known in advance."""
    group_size: int = 32
    """Consecutive videos that are planned together; every group has its share of `total`."""
    plan: bool = True
    """False: sample lengths as without a budget and cut the last blocks. Worse, but the only way in "end" framing."""
    forecast_rows: int = 32
    """Videos sampled without a budget, whose scores estimate those of future blocks."""

    def __post_init__(self) -> None:
        if self.tokens_per_video is not None and self.total is not None:
            raise ValueError(f"a budget is either tokens_per_video or total, not both; got {self}")
        if self.group_size < 1 or self.forecast_rows < 1:
            raise ValueError(f"group_size and forecast_rows are at least 1, got {self}")


USED = 0.99
"""Share of the tokens that single videos would take within their budget, which they use on average."""

PRICES = (0.0, *(2.0**power for power in range(-14, 5)))
"""Prices of an unspent token, in weighted log-probability. The least at which `USED` is reached applies."""


def block_weights(blocks: int, layout: BlockLayout) -> Tensor:
    """(G,) weight of the scores of each block: the squared number of blocks that are sampled with it in their context,
    itself included. (Samples were worse with weights of 1: docs/results/sampling_budgets.md.)"""
    return torch.arange(blocks, 0, -1, dtype=torch.float64).clamp(max=layout.num_blocks) ** 2


class VideoPlanner:
    """At most `tokens` for one video, of the greatest expected score.

    The worth of t tokens for blocks g, g + 1, ... is the mean over the forecast of the best score of block g plus the
    worth of the rest, less the price of unspent tokens. It is computed from the last block backwards, once for all
    videos of a budget. No block is longer than its own greatest score, so tokens may stay unspent.
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
    """`expected_worth` at the least price at which the rows of the forecast use their budget. scores: (R, G, K)
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
    """(blocks + 1, tokens + 1): worth of each number of tokens for blocks g, g + 1, ...; -inf where there are too few.
    scores: (R, G, K) weighted."""
    sizes, left = torch.tensor(layout.sizes), torch.arange(tokens + 1)
    worth = torch.zeros(blocks + 1, tokens + 1, dtype=torch.float64)
    worth[blocks] = -price * left
    for block in reversed(range(blocks)):
        worth[block] = _best(scores[:, block, None], sizes, worth[block + 1], left)[0].mean(0)
    return worth


def _best(scores: Tensor, sizes: Tensor, worth: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """(greatest score of a size plus worth of the tokens left after it, that size), each (...). Sizes above that of the
    greatest score are excluded. scores: (..., K); left: (...)."""
    rest = left[..., None] - sizes
    unwanted = sizes > sizes[scores.argmax(-1)][..., None]
    best = (scores.double() + worth[rest.clamp(min=0)]).masked_fill((rest < 0) | unwanted, -torch.inf).max(-1)
    return best.values, sizes[best.indices]


class GroupPlanner:
    """At most `tokens` for `rows` videos together: the integer program over their next and future blocks."""

    def __init__(self, tokens: int, rows: int, blocks: int, layout: BlockLayout, scores: Tensor) -> None:
        """scores: (R, G, K) weighted, of the forecast."""
        self.rows = rows
        self._left, self._block, self._blocks = tokens, 0, blocks
        self._sizes, self._weights = torch.tensor(layout.sizes), block_weights(blocks, layout)
        self._later = scores[torch.arange(rows) % len(scores)]  # (rows, G, K): a row of the forecast for each row

    def choose(self, scores: Tensor) -> Tensor:
        scores = scores * self._weights[self._block]
        self._block += 1
        later = self._later[:, self._block : self._blocks].flatten(0, 1)
        sizes = solve_budget(-torch.cat([scores, later]), self._sizes, self._left)[: self.rows]
        self._left -= int(sizes.sum())
        return sizes


def with_budget(engine: RowEngine, requests: Sequence[Request], budget: BudgetConfig) -> list[Request]:
    """The requests, all of the same number of blocks, under a hard budget.

    Before anything is sampled: ValueError for requests with planned or limited lengths, BudgetError for a budget below
    the shortest videos. A plan samples `forecast_rows` of the requests. The result depends on the complete list, so
    every process of a run passes all requests, and then samples any of the `groups`.
    """
    if not requests or (budget.tokens_per_video is None and budget.total is None):
        return list(requests)
    layout, blocks = engine.model.layout, _common_blocks(requests)
    shares = _shares(layout, blocks, len(requests), budget)
    if budget.tokens_per_video is not None and layout.budget_bins:
        requests = _with_budget_prefix(engine.model, requests, shares[0][0])
    if budget.plan and layout.framing != "length":
        raise ValueError(
            'planning a budget needs a model of "length" framing; use plan: false, or give planned lengths'
        )
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
    """Indices of requests that must be sampled together: those that share a planner, else each alone."""
    found: list[range] = []
    for number, request in enumerate(requests):
        alone = request.planner is None or not number or requests[number - 1].planner is not request.planner
        found.append(range(number, number + 1) if alone else range(found.pop().start, number + 1))
    return found


def missing(requests: Sequence[Request], done: Collection[int]) -> list[int]:
    """Indices of requests that are not done, and of all that share a planner with one."""
    return [number for group in groups(requests) if not all(n in done for n in group) for number in group]


def forecast(engine: RowEngine, requests: Sequence[Request]) -> Tensor:
    """(R, G, K) scores of the sizes of every block, of requests sampled without a budget."""
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
    """A planner that takes the greatest score, as without a budget, and records all scores."""

    rows = 1

    def __init__(self, sizes: Tensor) -> None:
        self._sizes = sizes
        self.seen: list[Tensor] = []

    def choose(self, scores: Tensor) -> Tensor:
        self.seen.append(scores)
        return self._sizes[scores.argmax(1)]


def _common_blocks(requests: Sequence[Request]) -> int:
    """Number of blocks of every request; ValueError unless they can share a budget."""
    if any((request.planned, request.limit, request.planner) != (None, None, None) for request in requests):
        raise ValueError("these requests have planned or limited lengths: leave out these, or the budget")
    blocks = {request.num_blocks for request in requests}
    if len(blocks) > 1:
        raise ValueError(f"requests that share a budget must have the same number of blocks, got {sorted(blocks)}")
    return blocks.pop()


def _with_budget_prefix(model: RowModel, requests: Sequence[Request], tokens: int) -> list[Request]:
    """The requests with the budget in their prefixes, scaled to the number of blocks of training rows."""
    layout = model.layout
    budgets = torch.tensor([tokens * model.generated_blocks // request.num_blocks for request in requests])
    return [
        replace(request, prefix=tuple(layout.set_budget(torch.tensor([request.prefix]), budget[None])[0].tolist()))
        for request, budget in zip(requests, budgets, strict=True)
    ]


def _shares(layout: BlockLayout, blocks: int, count: int, budget: BudgetConfig) -> list[tuple[int, int]]:
    """(tokens, videos) of every group. They add up to the budget, or to the most that can be spent."""
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
