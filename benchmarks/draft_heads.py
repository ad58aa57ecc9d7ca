"""Tokens a step of draft heads: python benchmarks/draft_heads.py --model MODEL --draft HEADS

For each number of heads up to the trained one, and several ways to draw tokens: tokens and rows' steps a video, and the
share of guesses that the model accepts. Rows of all classes in turn, without a tokenizer.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor

from genvid import noise
from genvid.ar.draft import DraftHeads
from genvid.ar.row_model import RowModel
from genvid.checkpoint import load_model
from genvid.device import device
from genvid.generation.engine.scheduler import Engine
from genvid.generation.engine.slots import INPUTS
from genvid.generation.engine.speculative import SpeculativeSlots
from genvid.generation.pipeline import class_job
from genvid.generation.sampler import SamplingConfig

SETTINGS = {
    "temperature 1": SamplingConfig(),
    "greedy": SamplingConfig(temperature=0),
    "guidance 2": SamplingConfig(guidance=2.0),
    "demo: 0.8, top-p 0.95, guidance 2": SamplingConfig(temperature=0.8, top_p=0.95, guidance=2.0),
}


class CountingSlots(SpeculativeSlots):
    """Counts guesses, and those that stay."""

    made = stayed = 0

    def _kept(self, wanted: Tensor, seeds: Tensor) -> Tensor:
        kept, going = super()._kept(wanted, seeds), ~self._grammar.finished
        self.made += int((self._state[INPUTS] - 1)[going].sum())
        self.stayed += int(kept[going].sum())
        return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--count", type=int, default=256, help="rows of a setting")
    options = parser.parse_args()
    model, heads = load_model(options.model, RowModel).to(device()), load_model(options.draft, DraftHeads)
    labels = torch.arange(options.count) % max(model.layout.num_classes, 1)
    requests = class_job(model, labels, noise.sample_seeds(0, "samples", torch.arange(options.count))).requests
    print(f"{'':36}{'heads':>8}{'tokens a step':>16}{'steps a video':>16}{'guesses accepted':>18}")
    for name, sampling in SETTINGS.items():
        for number in range(1, heads.config.heads + 1):
            engine = Engine(model, sampling, compiled=False)
            engine.slots = slots = CountingSlots(model, sampling, 64, heads=first(heads, number), compiled=False)
            for _ in engine.run(requests):
                pass
            tokens, steps = engine.tokens / engine.row_steps, engine.row_steps / len(requests)
            print(f"{name:36}{number:8}{tokens:16.2f}{steps:16.1f}{slots.stayed / slots.made:18.1%}", flush=True)


def first(heads: DraftHeads, number: int) -> DraftHeads:
    """The first of the heads."""
    fewer = DraftHeads(replace(heads.config, heads=number))
    fewer.load_state_dict({name: heads.state_dict()[name] for name in fewer.state_dict()})
    fewer.origin, fewer.folder = heads.origin, heads.folder
    return fewer.eval()


if __name__ == "__main__":
    main()
