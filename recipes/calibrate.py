"""Calibrate the allocators of a tokenizer: python recipes/calibrate.py CONFIG.yaml [--key value ...]

Writes calibration.json (tables, multipliers and typical gains per budget, which allocators read) and a page with the
expected distortion of every allocator against tokens. One process. After an interruption the same command goes on
behind the batches and budgets that are done.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from genvid import config as configuration
from genvid import noise
from genvid.allocation import (
    Calibration,
    CalibrationOrigin,
    calibrate,
    close_loop,
    fit_block_weights,
    predict_all_curves,
    with_expected,
)
from genvid.allocation.allocators import largest_size
from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.command import command
from genvid.data.dataset import ClipDataset, VideoData
from genvid.data.loader import numbered_batches
from genvid.device import device
from genvid.eval.pages.charts import LineChart, Series
from genvid.eval.pages.page import Page
from genvid.pieces import Piece, Pieces
from genvid.tokenizer.adaptok.curves import MeasuredCurves
from genvid.tokenizer.adaptok.loading import load_scorer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokenizer.losses import Distortion, DistortionSpec
from genvid.tokens import BlockTokens

logger = logging.getLogger(__name__)

CURVES = ("predicted", "measured")
"""Parts of a piece that hold curves."""


@dataclass(frozen=True, kw_only=True)
class CalibrationRun:
    """A tokenizer, its scorer, the clips they are measured on, and the budgets."""

    output_dir: str
    tokenizer: str
    scorer: str
    data: VideoData
    budgets: tuple[float, ...]
    """Mean tokens per video."""
    distortion: DistortionSpec = field(default_factory=DistortionSpec)
    """The distortion that the scorer predicts."""
    cost_to_go: bool = True
    """Weight each block's gain by the distortion it saves in later blocks, measured on one batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of tokenizer and scorer."""
    clips: int = 256
    """Number of clips, drawn from all clips of the data."""
    seed: int = 0
    """Seed of that draw."""
    batch_size: int = 32
    workers: int = 2

    def __post_init__(self) -> None:
        configuration.check_counts(self, "clips", "batch_size")
        if not self.budgets or len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"budgets are one or more numbers of tokens, all different, got {self.budgets}")


@torch.no_grad()
def run_calibration(run: CalibrationRun) -> Path:
    """Returns the path of calibration.json. Finished batches and budgets are kept beside it until it is written."""
    tokenizer = load_model(run.tokenizer, AdapTok).to(device())
    scorer = load_scorer(run.scorer, tokenizer).to(device())
    distortion = run.distortion.build().to(device())
    if distortion.name != scorer.config.metric:
        raise ValueError(f"the scorer predicts {scorer.config.metric}, but distortion is {distortion.name}")
    predictor = ScorerPredictor(tokenizer, scorer)
    dataset, sizes = run.data.open(), predictor.sizes
    blocks = tokenizer.spec.num_blocks(run.data.clip.frames)
    if min(run.budgets) < blocks * int(sizes[0]):
        raise ValueError(
            f"a budget of {min(run.budgets)} tokens is too small for videos of {blocks} blocks, which take at least "
            f"{blocks * int(sizes[0])}"
        )
    if len(dataset) < run.clips:
        logger.warning("calibrating on %d clips: the data has no more, and clips is %d", len(dataset), run.clips)
    middle = largest_size(sizes, sorted(run.budgets)[len(run.budgets) // 2] / blocks)
    provenance = CalibrationOrigin(
        tokenizer=fingerprint(resolve(run.tokenizer)),
        scorer=fingerprint(resolve(run.scorer)),
        data=dataset.fingerprint(),
        clips=min(run.clips, len(dataset)),
        seed=run.seed,
        earlier_blocks=f"cut to {int(middle)} tokens; tables and multipliers as the threshold rule realises them",
        date=date.today().isoformat(),
    )
    folder = Path(run.output_dir)
    pieces = Pieces(folder / "unfinished", _about(run, provenance))
    with torch.autocast(device().type, torch.bfloat16, enabled=run.precision == "bf16"):
        batches = _measure(run, dataset, tokenizer, predictor, distortion, middle, pieces)
        curves, measured = (torch.cat([pieces.load(name)[part] for name in batches.names]) for part in CURVES)
        weights = pieces.load(batches.names[0])["weights"].tolist() if run.cost_to_go else None
        result = calibrate(curves, sizes.cpu(), run.budgets, provenance, block_weights=weights)
        result = with_expected(_close_loop(result, predictor, batches, pieces), curves, measured=measured)
    result.save(folder / "calibration.json")
    write_page(result, distortion.name, folder / "calibration.html")
    pieces.remove()
    return folder / "calibration.json"


def _about(run: CalibrationRun, provenance: CalibrationOrigin) -> dict[str, Any]:
    """Everything that the pieces depend on: no paths, and not the number of workers."""
    free = {"output_dir", "tokenizer", "scorer", "data", "workers"}
    config = {key: value for key, value in configuration.encode(run).items() if key not in free}
    made_from = {key: value for key, value in asdict(provenance).items() if key != "date"}
    return {**config, **made_from, "clips": run.clips}


def _measure(
    run: CalibrationRun,
    dataset: ClipDataset,
    tokenizer: AdapTok,
    predictor: ScorerPredictor,
    distortion: Distortion,
    middle: Tensor,
    pieces: Pieces,
) -> StoredTokens:
    """The tokens of all clips, with their predicted and measured curves (N, G, K), batch by batch; the block weights
    are measured on the first."""
    drawn = noise.permutation(run.seed, "calibration", len(dataset))[: run.clips].tolist()
    names = [f"batch-{number:05d}" for number in range(-(-len(drawn) // run.batch_size))]
    missing = [number for number, name in enumerate(names) if name not in pieces]
    size, workers = run.batch_size, run.workers
    clips = numbered_batches(dataset, missing, batch_size=size, items=drawn, workers=workers, device=device())
    bar = tqdm(missing, initial=len(names) - len(missing), total=len(names), desc="measuring", unit="batch")
    for number, batch in zip(bar, clips, strict=True):
        video = batch["video"]
        tokens = tokenizer.encode(video)
        lengths = middle.expand(tokens.lengths.shape)
        truth = MeasuredCurves(tokenizer, video, predictor.sizes, distortion, batch_size=run.batch_size)
        piece = {
            "predicted": predict_all_curves(predictor, tokens, lengths),
            "measured": predict_all_curves(truth, tokens, lengths),
        }
        if number == 0 and run.cost_to_go:
            weights = fit_block_weights(truth, [tokens], [int(middle)] * lengths.shape[1])
            piece["weights"] = torch.tensor(weights, dtype=torch.float64)
        assert tokens.codes is not None
        assert tokens.features is not None
        pieces.save(names[number], {**piece, "codes": tokens.codes, "features": tokens.features})
    return StoredTokens(pieces, names)


class StoredTokens(Sequence[BlockTokens]):
    """Batches of tokens, all kept, that are read from their pieces one at a time."""

    def __init__(self, pieces: Pieces, names: list[str]) -> None:
        self.pieces, self.names = pieces, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> BlockTokens:  # type: ignore[override]
        piece = self.pieces.load(self.names[number])
        keep = torch.ones_like(piece["codes"], dtype=torch.bool)
        return BlockTokens(keep, codes=piece["codes"], features=piece["features"]).to(device())


def _close_loop(
    result: Calibration, predictor: ScorerPredictor, batches: Sequence[BlockTokens], pieces: Pieces
) -> Calibration:
    """`close_loop`, budget by budget."""
    tables, multipliers = [], []
    found = zip(result.budgets, result.tables, result.multipliers, strict=True)
    for number, (budget, table, multiplier) in enumerate(tqdm(found, total=len(result.budgets), desc="closing")):
        alone = replace(result, budgets=(budget,), tables=(table,), multipliers=(multiplier,))

        def close(alone: Calibration = alone) -> Piece:
            closed = close_loop(alone, predictor, batches)
            numbers = {"table": closed.tables[0], "multiplier": closed.multipliers}
            return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

        piece = pieces.once(f"budget-{number}", close)
        tables.append(tuple(piece["table"].tolist()))
        multipliers.append(float(piece["multiplier"]))
    return replace(result, tables=tuple(tables), multipliers=tuple(multipliers))


def write_page(calibration: Calibration, metric: str, path: Path) -> None:
    """Expected distortion against tokens, one line for each allocator, and the table of budgets."""
    series = [Series(name, calibration.budgets, values) for name, values in calibration.expected.items()]
    page = Page("Calibration", lead="Expected distortion of each allocator at each budget, on measured curves.")
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
