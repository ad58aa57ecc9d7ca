"""Samples of one recipe of `generate.py` under several settings: the same requests, a folder for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genvid.ar.config import ARConfig
from genvid.ar.row_model import RowModel
from genvid.checkpoint import load_model
from genvid.eval.report import Report, write_table
from genvid.generation.budget import BudgetConfig
from genvid.recipes.generate import GenerationRun, generate
from genvid.recipes.samples_page import Samples


@dataclass(frozen=True)
class Comparison:
    """A recipe whose settings are compared; ValueError where it has a budget of its own."""

    run: GenerationRun
    name: str
    """Of the folder of `output_dir` that holds everything."""

    def __post_init__(self) -> None:
        if self.run.budget.tokens_per_video is not None or self.run.budget.total is not None:
            raise ValueError("this recipe sets the budgets itself: leave out budget.tokens_per_video and budget.total")

    def model(self) -> ARConfig:
        """Config of the model; ValueError where its lengths cannot be planned."""
        config = load_model(self.run.model, RowModel).config
        if config.layout.framing != "length":
            raise ValueError(f'{self.run.model} has rows of "end" framing, whose lengths cannot be planned')
        return config

    @property
    def folder(self) -> Path:
        return Path(self.run.output_dir) / self.name

    def measured(self, title: str, **settings: Any) -> Samples:
        """Samples with these fields of the recipe changed, and their report of this title; resumes what is there."""
        samples = generate(replace(self.run, output_dir=str(self.folder / _file_name(title)), **settings))
        return replace(samples, report=replace(samples.report, title=title))

    def planned_together(self, tokens: int, free: Report) -> BudgetConfig:
        """Lengths planned over groups of the videos of a report, which have so many tokens a video."""
        videos = int(free.value("generated clips"))
        group = min(self.run.budget.group_size, self.run.slots, videos)
        return BudgetConfig(total=tokens * videos, group_size=group)

    def write(self, reports: Sequence[Report]) -> str:
        """Write the reports and their table; returns the table."""
        for report in reports:
            report.save(self.folder / f"{_file_name(report.title)}.json")
        return write_table(self.folder / "table.md", reports)


def _file_name(title: str) -> str:
    return title.replace(" ", "_")
