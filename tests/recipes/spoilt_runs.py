"""Training under every launch file where two of six batches give a loss that is not finite.

python -m torch.distributed.run ... spoilt_runs.py FOLDER: a run folder for each launch file.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from launched_runs import run_all

sys.path.append(str(Path(__file__).resolve().parents[1] / "train"))
from test_faults import FragileTask, spoil
from test_trainer import train

LAUNCHES = ("ddp", "fsdp2", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")

if __name__ == "__main__":
    folder, batches = Path(sys.argv[1]), spoil(range(2, 4), float("nan"))
    run_all([(launch, partial(train, folder / launch, FragileTask, batches, steps=6)) for launch in LAUNCHES])
