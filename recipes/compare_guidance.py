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

from genvid import config as configuration
from genvid.command import command
from genvid.eval.report import Report
from genvid.generation.guidance import ByBlock, ByTokens, Guidance, PowerCosine
from genvid.recipes.comparison import Comparison
from genvid.recipes.generate import CONTINUED, GenerationRun
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


def compare_guidance(comparison: Comparison) -> list[Report]:
    """The report of every guidance at every budget."""
    model = comparison.model()
    if not (model.null_context if model.context_blocks else model.layout.num_classes):
        raise ValueError(
            f"{comparison.run.model} has no condition to guide by: a class, or a context and objective.context_dropout"
        )
    free = comparison.measured("free").report
    reports = []
    spent = free.value(CONTINUED if model.context_blocks else "tokens per clip")
    for tokens in [int(share * spent) for share in SHARES]:
        budget = comparison.planned_together(tokens, free)
        for name, guidance in GUIDANCE.items():
            sampling = replace(comparison.run.sampling, guidance=guidance)
            reports.append(comparison.measured(f"{name} @ {tokens}", budget=budget, sampling=sampling).report)
    return reports


@command
def main(argv: Sequence[str]) -> None:
    usage = "accelerate launch recipes/compare_guidance.py CONFIG.yaml [--key value ...]"
    run = configuration.parse(GenerationRun, argv, usage=usage)
    comparison = Comparison(run, "guidance")
    reports = compare_guidance(comparison)
    if make_state().is_main_process:
        print(comparison.write(reports))


if __name__ == "__main__":
    main(sys.argv[1:])
