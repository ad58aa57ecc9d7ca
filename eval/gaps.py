"""Allocation rules between uniform lengths and their oracle, from the reports of one evaluation.

A report is titled `rule @ budget`. Rules that keep every clip within the budget (`online`, `clip`) cannot move tokens
between clips: their oracle is `clip_oracle`, the program of each clip alone on measured curves. That of the others is
`oracle`, the program of a whole group.

Rules are compared at the tokens that they spent, with uniform lengths and oracles linear between their budgets: a rule
that keeps its budget in the mean of other clips spends more or less than that here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from genvid.eval.pages.rate_distortion import curves, split_title
from genvid.eval.report import Report

UNIFORM, RATE = "uniform", "tokens per clip"
WITHIN_CLIPS = ("online", "clip")
"""Rules that keep every single clip within the budget."""
OVERSPENT = 0.01
"""Part of the largest budget by which a rule may spend more than that and still be compared."""
TIE = 1e-3
"""Part of its value by which uniform lengths may lie above the oracle without a gap that could be closed."""

Curve = Sequence[tuple[float, float]]
"""(tokens of a clip, distortion), cheapest first."""


@dataclass(frozen=True)
class Gap:
    """One rule at one budget."""

    rule: str
    budget: float
    """Mean tokens of a clip."""
    spent: float
    value: float
    """Its distortion: lower is better."""
    closed: float | None
    """Part of the way from uniform lengths to the oracle of the rule, in %. None without an oracle, where there is no
    way (`TIE`), and where the rule spends more than the largest budget (`OVERSPENT`)."""
    uniform: float | None
    """Tokens with which uniform lengths reach the same value, as a multiple of the tokens spent. None outside the range
    of the budgets."""


def gaps(reports: Sequence[Report], metric: str) -> list[Gap]:
    """Every report beside uniform lengths and the oracle; `metric` is a number whose lower values are better."""
    lines = {rule: sorted(dict(line).items()) for rule, line in curves(reports, RATE, metric).items()}
    uniform, rows = lines.get(UNIFORM, []), []
    for report in reports:
        rule, budget = split_title(report.title)
        spent, value = report.value(RATE), report.value(metric)
        closed = _closed(value, _value_at(spent, uniform), _value_at(spent, lines.get(_oracle(rule), [])))
        tokens = _tokens_for(value, uniform)
        rows.append(Gap(rule, float(budget), spent, value, closed, None if tokens is None else tokens / spent))
    return rows


def _oracle(rule: str) -> str:
    return "clip_oracle" if rule in (*WITHIN_CLIPS, "clip_oracle") else "oracle"


def _closed(value: float, worst: float | None, best: float | None) -> float | None:
    if worst is None or best is None or worst - best <= TIE * abs(worst):
        return None
    return 100 * (worst - value) / (worst - best)


def _value_at(tokens: float, curve: Curve) -> float | None:
    """Linear between the points of a curve and below the first; None without points and beyond the last."""
    if not curve or tokens > (1 + OVERSPENT) * curve[-1][0]:
        return None
    if len(curve) == 1:
        return curve[0][1]
    (few, high), (many, low) = next((pair for pair in pairwise(curve) if tokens <= pair[1][0]), (curve[-2], curve[-1]))
    return high + (low - high) * (tokens - few) / (many - few)


def _tokens_for(value: float, curve: Curve) -> float | None:
    """Tokens at which a curve has `value`; None outside its range."""
    for (few, high), (many, low) in pairwise(curve):
        if low <= value <= high and low < high:
            return few + (many - few) * (high - value) / (high - low)
    return None


def gap_table(rows: Sequence[Gap], metric: str) -> tuple[list[str], list[list[str | float | None]]]:
    """Header and rows of a table; columns without any value are left out."""
    columns: dict[str, list[str | float | None]] = {
        "mean budget": [f"{row.budget:g}" for row in rows],
        "allocator": [row.rule for row in rows],
        "tokens spent": [round(row.spent, 1) for row in rows],
        metric: [row.value for row in rows],
        "gap closed, %": [None if row.closed is None else round(row.closed, 1) for row in rows],
        "uniform tokens for the same": [None if row.uniform is None else round(row.uniform, 2) for row in rows],
    }
    shown = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    return list(shown), [list(row) for row in zip(*shown.values(), strict=True)]
