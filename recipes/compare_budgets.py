"""Quality of samples against their token budget.

accelerate launch recipes/compare_budgets.py CONFIG.yaml [--key value ...]

CONFIG is a recipe of `generate.py` for a model of classes. The same requests are sampled without a budget, and at
shares of the tokens spent then: planned over all videos, planned for each, and cut where the budget ends. Everything
stays below the folder `budgets` of `output_dir`; running it again resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from genvid import config as configuration
from genvid.command import command
from genvid.eval.pages.charts import LineChart
from genvid.eval.pages.page import Page
from genvid.eval.pages.rate_distortion import curves, quality_chart
from genvid.eval.report import Report
from genvid.generation.budget import BudgetConfig
from genvid.recipes.comparison import Comparison
from genvid.recipes.generate import GenerationRun
from genvid.train.accelerator import make_state

SHARES = (0.4, 0.55, 0.7, 0.85)
"""Budgets, in parts of the tokens that free samples have on average."""

COST = "tokens per clip"


def compare_budgets(comparison: Comparison) -> list[Report]:
    """The report of free samples, then those of every budget."""
    if comparison.model().context_blocks:
        raise ValueError(f"{comparison.run.model} predicts frames; this recipe compares samples of classes")
    free = comparison.measured("free").report
    reports = [free]
    for tokens in sorted({int(share * free.value(COST)) for share in SHARES}):
        for name, budget in budgets(tokens, comparison, free).items():
            reports.append(comparison.measured(f"{name} @ {tokens}", budget=budget).report)
    return reports


def budgets(tokens: int, comparison: Comparison, free: Report) -> dict[str, BudgetConfig]:
    """Ways to spend as many tokens per video."""
    return {
        "planned together": comparison.planned_together(tokens, free),
        "planned each": BudgetConfig(tokens_per_video=tokens),
        "cut": BudgetConfig(tokens_per_video=tokens, plan=False),
    }


def charts(reports: Sequence[Report]) -> list[LineChart]:
    """Class accuracy and Frechet distance against the tokens that were spent; every line ends at the free samples."""
    free, *others = reports
    drawn = []
    distance = next(number.name for number in free.numbers if number.better == "lower")
    for measure in ("class as asked", distance):
        end = (free.value(COST), free.value(measure))
        lines = {name: [*line, end] for name, line in curves(others, COST, measure).items()}
        drawn.append(quality_chart(lines, COST, measure))
    return drawn


@command
def main(argv: Sequence[str]) -> None:
    usage = "accelerate launch recipes/compare_budgets.py CONFIG.yaml [--key value ...]"
    run = configuration.parse(GenerationRun, argv, usage=usage)
    comparison = Comparison(run, "budgets")
    reports = compare_budgets(comparison)
    if not make_state().is_main_process:
        return
    print(comparison.write(reports))
    page = Page("Budgets of generation", lead=run.protocol)
    page.section("Quality against cost").charts(*charts(reports)).numbers(reports)
    print(f"wrote {page.write(comparison.folder / 'page.html')}")


if __name__ == "__main__":
    main(sys.argv[1:])
