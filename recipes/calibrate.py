"""Measure what budgets buy: python recipes/calibrate.py CONFIG.yaml [--key value ...]

Writes calibration.json (tables, multipliers and typical gains per budget, which allocators read) and a page with the
expected distortion of every allocator against tokens. One process.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm

from genvid import config as configuration
from genvid.allocation import (
    Calibration,
    Provenance,
    calibrate,
    close_loop,
    fit_block_weights,
    predict_all_curves,
    with_expected,
)
from genvid.allocation.allocators import largest_size
from genvid.checkpoint import fingerprint, resolve
from genvid.data.loader import one_pass
from genvid.eval.charts import LineChart, Series
from genvid.eval.page import Page
from genvid.recipes.command import command
from genvid.recipes.loading import DistortionSpec, VideoData, device, load_adaptok, load_scorer
from genvid.recipes.oracle import MeasuredCurves
from genvid.tokenizer.adaptok.scorer import ScorerPredictor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CalibrationRun:
    """What is measured, on which clips, for which budgets."""

    output_dir: str
    tokenizer: str
    scorer: str
    data: VideoData
    budgets: tuple[float, ...]
    """Mean tokens per video."""
    distortion: DistortionSpec = field(default_factory=DistortionSpec)
    """Must be the one that the scorer predicts."""
    cost_to_go: bool = True
    """Weigh each block's gain by what it saves in later blocks, measured on one batch."""
    clips: int = 256
    batch_size: int = 32
    workers: int = 2


@torch.no_grad()
def run_calibration(run: CalibrationRun) -> Path:
    """Returns the path of calibration.json."""
    tokenizer = load_adaptok(run.tokenizer).to(device())
    scorer = load_scorer(run.scorer, tokenizer).to(device())
    distortion = run.distortion.build().to(device())
    if distortion.name != scorer.config.metric:
        raise ValueError(f"the scorer predicts {scorer.config.metric}, but distortion is {distortion.name}")
    predictor = ScorerPredictor(tokenizer, scorer)
    sizes = predictor.sizes
    dataset = run.data.open()
    spec = tokenizer.spec
    blocks = spec.num_blocks(run.data.clip.frames)
    if min(run.budgets) < blocks * int(sizes[0]):
        raise ValueError(
            f"a budget of {min(run.budgets)} tokens is too small for videos of {blocks} blocks, which take at least "
            f"{blocks * int(sizes[0])}"
        )
    if len(dataset) < run.clips:
        logger.warning("calibrating on %d clips, which is all there are of the %d asked for", len(dataset), run.clips)
    middle = largest_size(sizes, run.budgets[len(run.budgets) // 2] / blocks)
    batches, predicted, measured, weights = [], [], [], None
    total = -(-min(run.clips, len(dataset)) // run.batch_size)
    clips = one_pass(dataset, batch_size=run.batch_size, workers=run.workers, device=device())
    for _, batch in zip(tqdm(range(total), desc="measuring", unit="batch"), clips, strict=False):
        tokens = tokenizer.encode(batch["video"])
        lengths = middle.to(tokens.keep.device).expand_as(tokens.lengths)
        truth = MeasuredCurves(tokenizer, batch["video"], sizes, distortion, batch_size=run.batch_size)
        predicted.append(predict_all_curves(predictor, tokens, lengths).cpu())
        measured.append(predict_all_curves(truth, tokens, lengths).cpu())
        if weights is None and run.cost_to_go:
            weights = fit_block_weights(truth, [tokens], [int(middle)] * blocks)
        batches.append(tokens)
    provenance = Provenance(
        tokenizer=fingerprint(resolve(run.tokenizer)),
        scorer=fingerprint(resolve(run.scorer)),
        data=dataset.fingerprint(),
        clips=sum(len(tokens.keep) for tokens in batches),
        earlier_blocks=f"cut to {int(middle)} tokens; tables and multipliers as the threshold rule realises them",
        date=date.today().isoformat(),
    )
    curves = torch.cat(predicted)
    result = calibrate(curves, sizes.cpu(), run.budgets, provenance, block_weights=weights)
    result = close_loop(result, predictor, batches)
    result = with_expected(result, curves, measured=torch.cat(measured))
    folder = Path(run.output_dir)
    result.save(folder / "calibration.json")
    write_page(result, distortion.name, folder / "calibration.html")
    return folder / "calibration.json"


def write_page(calibration: Calibration, metric: str, path: Path) -> None:
    """Expected distortion against tokens, one line for each allocator, and the table of budgets."""
    series = [Series(name, calibration.budgets, values) for name, values in calibration.expected.items()]
    page = Page("Calibration", lead="What each allocator is expected to make of a budget, on measured curves.")
    section = page.section("Distortion against tokens")
    section.charts(LineChart("Expected distortion", series, x_label="tokens per video", y_label=metric, markers=True))
    section.table(
        ["tokens per video", *(f"block {g}" for g in range(calibration.blocks)), "multiplier"],
        [
            [budget, *table, multiplier]
            for budget, table, multiplier in zip(
                calibration.budgets, calibration.tables, calibration.multipliers, strict=True
            )
        ],
    )
    page.write(path)


@command
def main(argv: Sequence[str]) -> None:
    usage = "python recipes/calibrate.py CONFIG.yaml [--key value ...]"
    print(f"calibrated {run_calibration(configuration.parse(CalibrationRun, argv, usage=usage))}")


if __name__ == "__main__":
    main(sys.argv[1:])
