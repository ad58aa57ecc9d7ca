"""Training under every launch file where two of six batches give a loss that is not finite.

python -m torch.distributed.run ... spoilt_runs.py FOLDER: a run folder for each launch file.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from launched_runs import run_all
from tiny_recipes import STRATEGIES

sys.path.append(str(Path(__file__).resolve().parents[1] / "train"))
from test_faults import FragileTask, spoil
from test_trainer import train

if __name__ == "__main__":
    folder, batches = Path(sys.argv[1]), spoil(range(2, 4), float("nan"))
    run_all([(name, partial(train, folder / name, FragileTask, batches, steps=6)) for name in ("ddp", *STRATEGIES)])
