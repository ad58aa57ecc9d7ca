"""Quality of samples against their guidance, at several token budgets.

accelerate launch recipes/compare_guidance.py CONFIG.yaml [--key value ...]

CONFIG is a recipe of `generate.py` for a model with a condition to guide by. The same requests are sampled with every
guidance of `GUIDANCE` at every share of the tokens that samples of the recipe have, planned over all videos. Everything
stays below the folder `guidance` of `output_dir`; running it again resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from genvid import config as configuration
from genvid.command import command
from genvid.eval.report import Report, write_table
from genvid.generation.budget import BudgetConfig
from genvid.generation.guidance import ByBlock, ByTokens, Guidance, PowerCosine
from genvid.recipes.generate import GenerationRun, generate
from genvid.train.accelerator import make_state

SHARES = (0.4, 0.6, 0.85)
"""Budgets, in parts of the tokens that samples have without one."""

GUIDANCE: dict[str, float | Guidance] = {
    "1": 1.0,
    "1.5": 1.5,
    "2": 2.0,
    "2.5": 2.5,
    "3": 3.0,
    "by tokens 2, 3": ByTokens((2.0, 3.0), (2,)),
    "by tokens 3, 2, 1": ByTokens((3.0, 2.0, 1.0), (2, 4)),
    "by block 2.5, 2": ByBlock((2.5, 2.0)),
    "power cosine 4": PowerCosine(4.0),
}
"""Constants, then schedules for blocks of a few codes."""


def compare_guidance(run: GenerationRun) -> list[Report]:
    """The report of every guidance at every budget."""
    if run.budget.tokens_per_video is not None or run.budget.total is not None:
        raise ValueError("this recipe sets the budgets itself: leave out budget.tokens_per_video and budget.total")
    folder = Path(run.output_dir) / "guidance"

    def measured(title: str, run: GenerationRun) -> Report:
        return replace(generate(replace(run, output_dir=str(folder / title.replace(" ", "_")))).report, title=title)

    free = measured("free", run)
    group = min(run.budget.group_size, run.slots, run.count)
    reports = []
    for tokens in [int(share * free.value("tokens per clip")) for share in SHARES]:
        budget = BudgetConfig(total=tokens * run.count, group_size=group)
        for name, guidance in GUIDANCE.items():
            sampling = replace(run.sampling, guidance=guidance)
            reports.append(measured(f"{name} @ {tokens}", replace(run, budget=budget, sampling=sampling)))
    return reports


@command
def main(argv: Sequence[str]) -> None:
    usage = "accelerate launch recipes/compare_guidance.py CONFIG.yaml [--key value ...]"
    run = configuration.parse(GenerationRun, argv, usage=usage)
    reports = compare_guidance(run)
    if not make_state().is_main_process:
        return
    folder = Path(run.output_dir) / "guidance"
    for report in reports:
        report.save(folder / f"{report.title.replace(' ', '_')}.json")
    print(write_table(folder / "table.md", reports))


if __name__ == "__main__":
    main(sys.argv[1:])
