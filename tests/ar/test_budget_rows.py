"""Rows that tell their budget: in training, in the folder, and to a model that learns to spend what it is told."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.rows import PackedRows, RowConfig
from genvid.checkpoint import load_model
from genvid.tokens.rows import BlockLayout

LAYOUT = BlockLayout(13, 3, num_blocks=2, block_capacity=6, sizes=(1, 3, 6), budget_bins=4)
TINY = TransformerConfig(width=32, depth=1, heads=4, kv_heads=2, hidden=48, max_positions=40)


class Cache:
    """400 clips of 2 to 12 tokens."""

    lengths = torch.tensor([1, 3, 6])[torch.randint(3, (400, 2), generator=torch.Generator().manual_seed(0))]

    def __len__(self) -> int:
        return len(self.lengths)


def batch() -> dict[str, torch.Tensor]:
    lengths = Cache.lengths
    codes = torch.zeros(len(lengths), 2, 6, dtype=torch.long)
    return {"codes": codes, "lengths": lengths, "label": torch.arange(400) % 3, "seed": torch.arange(400)}


def starts(config: ARConfig, rows: RowConfig) -> torch.Tensor:
    return PackedRows(Cache(), config, rows).framed(batch()).tokens[:, :2]


def test_rows_tell_their_own_tokens_and_drop_them_at_random():
    first = LAYOUT.frame_prediction_id + 1
    bins = first + Cache.lengths.sum(1) * 4 // 13
    told = starts(ARConfig(LAYOUT, TINY), RowConfig(class_dropout=0.0, budget_dropout=0.0))
    assert torch.equal(told[:, 1], bins)
    dropped = starts(ARConfig(LAYOUT, TINY), RowConfig(class_dropout=0.2, budget_dropout=0.25))
    untold, unclassed = dropped[:, 1] == LAYOUT.any_budget_id, dropped[:, 0] == LAYOUT.null_id
    assert torch.equal(dropped[:, 1][~untold], bins[~untold])
    assert untold[unclassed].all()  # the condition that guidance is measured against
    assert abs(unclassed.float().mean() - 0.2) < 0.06
    assert abs(untold[~unclassed].float().mean() - 0.25) < 0.07
    predicted = starts(ARConfig(LAYOUT, TINY, context_blocks=1), RowConfig(budget_dropout=0.0))
    assert torch.equal(predicted[:, 1], first + Cache.lengths[:, 1] * 4 // 13)  # of the block that is generated


def test_folders_hold_budgets_and_older_ones_have_none(tmp_path):
    torch.manual_seed(0)
    model = BlockTransformer(ARConfig(LAYOUT, TINY)).eval()
    model.save(tmp_path / "new")
    ours, theirs = load_model(tmp_path / "new"), AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert ours.config == model.config
    rows = LAYOUT.set_budget(LAYOUT.class_prefix(torch.tensor([2])), torch.tensor([9]))
    with torch.no_grad():
        torch.testing.assert_close(theirs(rows).logits[..., : LAYOUT.num_outputs], ours(rows))
    plain = BlockTransformer(ARConfig(replace(LAYOUT, budget_bins=0), TINY))
    plain.save(tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    data = json.loads(file.read_text())
    del data["genvid"]["layout"]["budget_bins"]
    file.write_text(json.dumps(data))
    assert load_model(tmp_path / "old").layout.budget_bins == 0
