"""Training over ragged rows: every target counts the same, whatever stands beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.task import ARTask, ARTaskConfig
from genvid.sequence import BlockLayout

LENGTH = BlockLayout(codebook_size=13, num_classes=3, num_blocks=3, block_capacity=6, sizes=(1, 3, 6))
END = replace(LENGTH, sizes=(), framing="end")
PLAIN = ARTaskConfig(class_dropout=0.0)


def task_of(layout: BlockLayout, config: ARTaskConfig = PLAIN, context_blocks: int = 0) -> ARTask:
    torch.manual_seed(0)
    tiny = TransformerConfig(width=32, depth=2, heads=4, kv_heads=4, hidden=48, max_positions=32)
    model = BlockTransformer(ARConfig(layout, tiny, context_blocks))
    torch.nn.init.normal_(model.llama.lm_head.weight, std=0.1)
    return ARTask(model, config)


def batch_of(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "codes": torch.randint(13, (count, 3, 6), generator=generator),
        "lengths": torch.tensor([1, 3, 6])[torch.randint(3, (count, 3), generator=generator)],
        "label": torch.arange(count) % 3,
        "seed": torch.arange(count),
    }


def rows_of(batch: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in batch.items()}


@pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
@pytest.mark.parametrize("context", [0, 1])
def test_the_loss_of_a_batch_is_the_sum_of_its_rows(layout, context):
    """Rows alone have no padding, so padding changes nothing."""
    task, batch = task_of(layout, context_blocks=context), batch_of(5)
    whole = task(batch, "model", 0, {})
    alone = [rows_of(batch, slice(i, i + 1)) for i in range(5)]
    torch.testing.assert_close(whole.loss, sum(task(row, "model", 0, {}).loss for row in alone))
    targets = int((batch["lengths"][:, context:] + 1).sum())
    assert int(task.num_items(batch)) == targets == sum(int(task.num_items(row)) for row in alone)
    torch.testing.assert_close(whole.terms["nll_per_token"], whole.loss.detach() / targets)


def test_dropped_slots_are_never_read():
    task, batch = task_of(LENGTH), batch_of(4)
    loss = task(batch, "model", 0, {}).loss
    dropped = torch.arange(6) >= batch["lengths"][..., None]
    batch["codes"] = batch["codes"].masked_fill(dropped, 10**9)
    assert torch.equal(task(batch, "model", 0, {}).loss, loss)


def test_rounding_the_width_up_changes_nothing():
    batch = batch_of(3)
    loss = task_of(LENGTH)(batch, "model", 0, {}).loss
    for multiple in (8, 30):
        torch.testing.assert_close(
            task_of(LENGTH, replace(PLAIN, pad_multiple=multiple))(batch, "model", 0, {}).loss, loss
        )


@torch.no_grad()
def test_the_class_counts_and_is_dropped_by_seed_in_training_only():
    batch, other = batch_of(4), batch_of(4)
    other["label"] = (other["label"] + 1) % 3
    losses = {}
    for dropout in (0.0, 1.0):
        task = task_of(LENGTH, ARTaskConfig(class_dropout=dropout))
        losses[dropout] = [float(task(b, "model", 0, {}).loss) for b in (batch, other)]
        task.eval()
        assert float(task(batch, "model", 0, {}).loss) == pytest.approx(losses[0.0][0])
    assert losses[0.0][0] != losses[0.0][1]
    assert losses[1.0][0] == losses[1.0][1]


def test_the_context_conditions_but_is_no_target():
    task, batch = task_of(LENGTH, context_blocks=1), batch_of(2)
    loss = task(batch, "model", 0, {}).loss
    batch["codes"][:, 0, 0] = (batch["codes"][:, 0, 0] + 1) % 13
    assert not torch.equal(task(batch, "model", 0, {}).loss, loss)
    with pytest.raises(ValueError, match="leaves nothing to predict of 3 blocks"):
        task_of(LENGTH, context_blocks=3)


def test_accuracies_by_hand():
    task, batch = task_of(LENGTH), batch_of(3)
    with torch.no_grad():
        task.model.llama.model.norm.weight.zero_()  # all logits equal: the first id is always the most likely
        terms = task(batch, "model", 0, {}).terms
    kept = torch.arange(6) < batch["lengths"][..., None]
    zeros = ((batch["codes"] == 0) & kept).sum()
    assert terms["accuracy"] == pytest.approx(float(zeros / task.num_items(batch)))
    assert terms["length_accuracy"] == 0
    assert terms["bits_per_token"] == pytest.approx(4.0)  # 13 codes and 3 lengths
