"""Hours and memory of the recipes of UCF-101 and Kinetics-600, from measured speeds: the table of docs/training.md.

python benchmarks/hours.py --tokenizer 20.7 --ar 47100 [--scorer ... --cache ...] [--scaling 0.95]

Speeds are of one GPU: clips per second for tokenizer, scorer and cache; useful tokens per second for the AR model. What
is not given is left out. Hours are work / (speed * GPUs * scaling), work = steps * batch_size clips, or as many rows of
1,028 tokens (1,024 codes and 4 ends); `--scaling` is the speed of a GPU among several beside that of one alone.

Memory is that of the state alone, per GPU, computed and not measured: 4 bytes a weight for each of weights, gradients,
two moments, the moving average and, under ZeRO, the optimizer's own copy of the weights. Activations come on top:
`train.accumulation` and `train.activation_checkpointing` decide on them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from genvid import config
from genvid.recipes.cache_tokens import CacheRun
from genvid.recipes.runs import RUNS

CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "configs"
GPUS = (1, 8, 64)
TOKENS = 1028
CLIPS = {"ucf101": 9_537, "k600": 390_000}
"""Training videos; the number of those of Kinetics-600 that are still available varies."""
MILLIONS = {"tokenizer": 195.1 + 38.2, "scorer": 89.0, "ar": 633.3}
"""Trained parameters, the discriminator among them."""
SHARDED = {
    "DDP": (0, 0),
    "FSDP2": (20, 0),
    "ZeRO-1": (8, 4),
    "ZeRO-2": (12, 4),
    "ZeRO-3": (20, 4),
}
"""Of the 20 bytes a weight, those sharded over the GPUs; and the further bytes of ZeRO, sharded too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for stage in ("tokenizer", "scorer", "cache", "ar"):
        parser.add_argument(f"--{stage}", type=float, help="items per second on one GPU")
    parser.add_argument("--scaling", type=float, default=1.0, help="speed of one of several GPUs beside one alone")
    options = parser.parse_args()
    print("| recipe | work | " + " | ".join(f"{n} GPU, hours" for n in GPUS) + " |")
    print("|---|---|" + "---|" * len(GPUS))
    for folder in ("k600", "ucf101"):
        for stage in ("tokenizer", "scorer", "cache", "ar"):
            amount, speed = work(folder, stage), getattr(options, stage)
            if speed is None:
                hours = ["not measured"] * len(GPUS)
            else:
                scalings = [1.0 if n == 1 else options.scaling for n in GPUS]
                hours = [f"{amount / (speed * n * s) / 3600:,.0f}" for n, s in zip(GPUS, scalings, strict=True)]
            unit = "tokens" if stage == "ar" else "clips"
            print(f"| {folder}/{stage} | {amount:.3g} {unit} | " + " | ".join(hours) + " |")
    print("\n| state, GB per GPU, on 8 / on 64 | " + " | ".join(SHARDED) + " |")
    print("|---|" + "---|" * len(SHARDED))
    for stage, millions in MILLIONS.items():
        cells = []
        for name, (spread, beside) in SHARDED.items():
            held = [millions / 1e3 * (20 - spread + (spread + beside) / n) for n in GPUS[1:]]
            refused = stage == "tokenizer" and name.startswith("ZeRO")
            cells.append("refused" if refused else " / ".join(f"{value:.1f}" for value in held))
        print(f"| {stage}, {millions:.0f} M | " + " | ".join(cells) + " |")


def work(folder: str, stage: str) -> float:
    """Clips of a recipe, or tokens of the AR model."""
    file = CONFIGS / folder / f"{stage}.yaml"
    if stage == "cache":
        return float(CLIPS[folder] * config.load(CacheRun, file).passes)
    train = config.load(RUNS["adaptok" if stage == "tokenizer" else stage], file).train
    return float(train.steps * train.batch_size * (TOKENS if stage == "ar" else 1))


if __name__ == "__main__":
    main()
