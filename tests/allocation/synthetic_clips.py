"""Clips with a known rate-distortion law, where every block also suffers from what the block before it lost.

python tests/allocation/synthetic_clips.py prints the table of docs/allocation.md.
"""

import torch

from genvid.allocation import (
    CalibrationOrigin,
    GroupAllocator,
    JointAllocator,
    OnlineBudgetAllocator,
    TableAllocator,
    ThresholdAllocator,
    UniformAllocator,
    calibrate,
    close_loop,
    fit_block_weights,
    predict_all_curves,
)
from genvid.noise import sample_seeds, uniform
from genvid.tokens import BlockTokens


class SyntheticClips:
    """A DistortionPredictor over made-up clips; `codes` carry the index of the clip.

    Block g keeping n tokens: activity x (1 + n / 32)^-decay, plus a share of the loss of block g - 1, which falls as
    more tokens of block g are kept.
    """

    def __init__(self, clips=48, blocks=4, sizes=range(64, 513, 64), dependence=0.4):
        seeds = sample_seeds(0, "synthetic", torch.arange(clips))
        first = torch.where(torch.arange(blocks) == 0, 2.0, 0.5)
        busy = torch.exp(3.6 * uniform(seeds, "busy", 1) - 1.8)
        self.activity = busy * first * torch.exp(1.6 * uniform(seeds, "block", blocks) - 0.8)
        self.decay = 0.3 + uniform(seeds, "decay", blocks)
        self.sizes, self.dependence = torch.tensor(list(sizes)), dependence

    def tokens(self):
        clips, blocks = self.activity.shape
        keep = torch.ones(clips, blocks, int(self.sizes[-1]), dtype=torch.bool)
        return BlockTokens(keep, codes=torch.arange(clips)[:, None, None].expand(keep.shape))

    def predict(self, tokens, block):
        rows = tokens.codes[:, 0, 0]
        curves = self._loss(rows, block, self.sizes[None])
        if block:
            before = self._loss(rows, block - 1, tokens.lengths[:, block - 1, None])
            curves = curves + self.dependence * before * (1 + self.sizes / 64) ** -0.5
        return curves

    def distortion(self, tokens):
        """(B,) true distortion of cut clips, summed over blocks."""
        total = 0
        for block in range(tokens.keep.shape[1]):
            index = torch.searchsorted(self.sizes, tokens.lengths[:, block].contiguous())
            total = total + self.predict(tokens, block).gather(1, index[:, None])[:, 0]
        return total

    def _loss(self, rows, block, lengths):
        return self.activity[rows, block, None] * (1 + lengths / 32) ** -self.decay[rows, block, None]


def print_gap_table(clips, budgets=(512, 1024, 1536)):
    """Per budget: the share of the gap from uniform to oracle that each allocator closes."""
    tokens, count = clips.tokens(), len(clips.activity)
    curves = predict_all_curves(clips, tokens, torch.full_like(tokens.lengths, 256))
    weights = fit_block_weights(clips, [tokens], [256] * 4)
    provenance = CalibrationOrigin("synthetic", "true curves", "synthetic", count, "256 tokens each", "today")
    calibration = calibrate(curves, clips.sizes, budgets, provenance, block_weights=weights)
    calibration = close_loop(calibration, clips, [tokens])
    print("weights", [round(weight, 2) for weight in weights])
    for budget in budgets:
        table = calibration.table(budget)
        allocators = {
            "uniform": UniformAllocator(budget // 4),
            "oracle": JointAllocator(clips, budget, count, block_weights=weights, rounds=6),
            "table": TableAllocator(table, clips.sizes),
            "group": GroupAllocator(clips, table, 64),
            "joint": JointAllocator(clips, budget, 64, block_weights=weights),
            "threshold": ThresholdAllocator(clips, calibration.multiplier(budget), block_weights=weights),
            "online": OnlineBudgetAllocator(clips, budget, typical=calibration.typical(), block_weights=weights),
            "clip alone": JointAllocator(clips, budget, 1, block_weights=weights),
        }
        cut = {name: allocator(tokens) for name, allocator in allocators.items()}
        loss = {name: float(clips.distortion(kept).mean()) for name, kept in cut.items()}
        for name in allocators:
            closed = (loss["uniform"] - loss[name]) / (loss["uniform"] - loss["oracle"])
            spent = cut[name].lengths.sum(1).double().mean()
            print(f"{budget} {name:10s} distortion {loss[name]:.4f}, mean tokens {spent:.1f}, closes {closed:.1%}")


if __name__ == "__main__":
    print_gap_table(SyntheticClips(256))
