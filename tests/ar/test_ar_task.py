"""Training over packed rows: every target counts the same, whatever lies beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.published import PublishedConfig, PublishedTransformer
from genvid.ar.rows import IGNORED, PackedRows, RowConfig
from genvid.ar.task import ARTask
from genvid.tokens.rows import BlockLayout

LENGTH = BlockLayout(codebook_size=13, num_classes=3, num_blocks=3, block_capacity=6, sizes=(1, 3, 6))
END = replace(LENGTH, sizes=(), framing="end")
TINY = TransformerConfig(width=32, depth=2, heads=4, kv_heads=2, hidden=48, max_positions=32)
PLAIN = RowConfig(class_dropout=0.0, token_multiple=1)


class Tokens:
    """A token cache in memory."""

    def __init__(self, count: int, blocks: int = 3) -> None:
        generator = torch.Generator().manual_seed(1)
        self.codes = torch.randint(13, (count, blocks, 6), generator=generator)
        self.lengths = torch.tensor([1, 3, 6])[torch.randint(3, (count, blocks), generator=generator)]
        self.labels = torch.arange(count) % 3

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        i, seed = item
        return {
            "codes": self.codes[i],
            "lengths": self.lengths[i],
            "label": self.labels[i],
            "seed": torch.tensor(seed),
        }


def task_of(layout: BlockLayout, context_blocks: int = 0) -> ARTask:
    torch.manual_seed(0)
    model = BlockTransformer(ARConfig(layout, TINY, context_blocks))
    torch.nn.init.normal_(model.llama.lm_head.weight, std=0.1)
    return ARTask(model)


def rows_of(task: ARTask, tokens: Tokens | int = 5, config: RowConfig = PLAIN) -> PackedRows:
    return PackedRows(Tokens(tokens) if isinstance(tokens, int) else tokens, task.model.config, config)


def batch_of(rows: PackedRows, *items: int) -> dict[str, Tensor]:
    """As a loader gives it: these items, or all, with their numbers as seeds."""
    chosen = [(i, i) for i in items or range(len(rows))]
    (batch,) = DataLoader(rows, batch_sampler=[chosen])
    return batch


def padded_loss(task: ARTask, rows: PackedRows) -> Tensor:
    """The obvious way: rows beside one another, each as wide as the longest, through transformers' causal attention."""
    items = [rows.cache[i, i] for i in range(len(rows))]
    framed = rows.framed({name: torch.stack([item[name] for item in items]) for name in items[0]})
    targets = framed.tokens[:, 1:].masked_fill(~framed.is_target[:, 1:], IGNORED)
    logits = task.model(framed.tokens[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def gradients(task: ARTask, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*task.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("multiple", [1, 50, 64])
@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
def test_loss_and_gradients_are_those_of_padded_rows(layout, context, multiple):
    task = task_of(layout, context)
    rows = rows_of(task, 7, RowConfig(class_dropout=0.5, token_multiple=multiple))
    batch = batch_of(rows)
    assert batch["tokens"].shape[1] % multiple == 0
    packed, padded = task(batch, "model", 0, {}).loss, padded_loss(task, rows)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)
    ours, theirs = gradients(task, packed), gradients(task, padded)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_learned_positions_start_anew_with_every_row():
    torch.manual_seed(0)
    model = PublishedTransformer(PublishedConfig(END, replace(TINY, rope_theta=None)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    task = ARTask(model)
    rows = rows_of(task, config=replace(PLAIN, token_multiple=64))
    torch.testing.assert_close(task(batch_of(rows), "model", 0, {}).loss, padded_loss(task, rows))


@pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
@pytest.mark.parametrize("context", [0, 1])
def test_the_loss_of_a_batch_is_the_sum_of_its_rows(layout, context):
    task = task_of(layout, context)
    rows = rows_of(task)
    batch, alone = batch_of(rows), [batch_of(rows, i) for i in range(5)]
    whole = task(batch, "model", 0, {})
    torch.testing.assert_close(whole.loss, sum(task(row, "model", 0, {}).loss for row in alone))
    targets = int((rows.cache.lengths[:, context:] + 1).sum())
    assert int(task.num_items(batch)) == targets == sum(int(task.num_items(row)) for row in alone)
    torch.testing.assert_close(whole.terms["nll_per_token"], whole.loss.detach() / targets)


def test_rows_see_nothing_of_each_other():
    task = task_of(LENGTH)
    tokens, other = Tokens(4), Tokens(4)
    other.codes[1] = (other.codes[1] + 1) % 13
    one, two = (batch_of(rows_of(task, t)) for t in (tokens, other))
    first, last = one["starts"][0, 1:3].tolist()
    with torch.no_grad():
        change = (task.logits(one) - task.logits(two))[0].abs().amax(1)
    assert change[first:last].max() > 1e-3
    assert change[:first].max() == change[last:].max() == 0


def test_the_last_end_of_every_row_is_a_target():
    rows = rows_of(task_of(END))
    batch = batch_of(rows)
    ends = (batch["targets"] == END.codebook_size).nonzero()[:, 1]
    assert len(ends) == 5 * 3
    assert set((batch["starts"][0, 1:] - 1).tolist()) <= set(ends.tolist())


@pytest.mark.parametrize("multiple", [1, 40, 1000])
def test_every_piece_is_as_long_as_the_longest_row_at_most(multiple):
    """What attention is promised, of the filling too; and one shape for every micro-batch of as many rows."""
    rows = rows_of(task_of(LENGTH), config=replace(PLAIN, token_multiple=multiple))
    shapes = set()
    for items in ((0, 1), (2, 3), (1, 4)):
        batch = batch_of(rows, *items)
        lengths = batch["starts"][0].diff()
        assert lengths.min() >= 0
        assert lengths.max() <= rows.config.longest_input
        assert batch["starts"][0, -1] == batch["tokens"].shape[1]
        shapes.add(batch["starts"].shape)
    assert len(shapes) == 1


def test_dropped_slots_are_never_read():
    task, tokens = task_of(LENGTH), Tokens(4)
    loss = task(batch_of(rows_of(task, tokens)), "model", 0, {}).loss
    tokens.codes[torch.arange(6) >= tokens.lengths[..., None]] = 10**9
    assert torch.equal(task(batch_of(rows_of(task, tokens)), "model", 0, {}).loss, loss)


def test_the_class_is_dropped_by_seed():
    task = task_of(LENGTH)
    told, untold = (rows_of(task, 200, RowConfig(class_dropout=dropout)) for dropout in (0.0, 1.0))
    some, again = (batch_of(rows_of(task, 200, RowConfig(class_dropout=0.3))) for _ in range(2))
    first = some["starts"][0, :200].long()
    classes = LENGTH.num_outputs + torch.arange(200) % 3
    assert torch.equal(batch_of(told)["tokens"][0, first], classes)
    assert (batch_of(untold)["tokens"][0, first] == LENGTH.null_id).all()
    dropped = some["tokens"][0, first] == LENGTH.null_id
    assert 0.2 < dropped.double().mean() < 0.4
    assert torch.equal(some["tokens"], again["tokens"])


def test_the_context_conditions_but_is_no_target():
    task, tokens = task_of(LENGTH, context_blocks=1), Tokens(2)
    loss = task(batch_of(rows_of(task, tokens)), "model", 0, {}).loss
    tokens.codes[:, 0, 0] = (tokens.codes[:, 0, 0] + 1) % 13
    assert not torch.equal(task(batch_of(rows_of(task, tokens)), "model", 0, {}).loss, loss)
    with pytest.raises(ValueError, match="leaves nothing to predict of 3 blocks"):
        rows_of(task_of(LENGTH, context_blocks=3))


def test_accuracies_by_hand():
    task, tokens = task_of(LENGTH), Tokens(3)
    batch = batch_of(rows_of(task, tokens))
    with torch.no_grad():
        task.model.llama.model.norm.weight.zero_()  # all logits equal: the first id is always the most likely
        terms = task(batch, "model", 0, {}).terms
    kept = torch.arange(6) < tokens.lengths[..., None]
    zeros = ((tokens.codes == 0) & kept).sum()
    assert terms["accuracy"] == pytest.approx(float(zeros / task.num_items(batch)))
    assert terms["length_accuracy"] == 0
    assert terms["bits_per_token"] == pytest.approx(4.0)  # 13 codes and 3 lengths


def test_rows_of_a_frame_predictor_are_windows_of_longer_streams():
    tokens = Tokens(4)
    layout = replace(LENGTH, num_classes=0, num_blocks=2)
    rows = rows_of(task_of(layout, context_blocks=1), tokens)
    starts = set()
    for seed in range(12):
        lengths, codes = rows._window({name: value[None] for name, value in tokens[1, seed].items()})
        (start,) = [s for s in (0, 1) if codes[0].equal(tokens.codes[1, s : s + 2])]
        assert lengths[0].equal(tokens.lengths[1, start : start + 2])
        starts.add(start)
        row = rows.framed({name: value[None] for name, value in tokens[1, seed].items()})
        assert layout.unpack(row.tokens).lengths.equal(lengths)
    assert starts == {0, 1}
    with pytest.raises(ValueError, match="rows of 2 blocks cannot be made of 3 cached ones: windows of longer videos"):
        rows_of(task_of(replace(LENGTH, num_blocks=2)), tokens)


def test_the_first_blocks_of_a_stream_stay_in_its_windows():
    tokens, layout = Tokens(1, blocks=7), replace(LENGTH, num_classes=0, num_blocks=5)
    sizes = replace(TINY, max_positions=40)
    rows = PackedRows(tokens, ARConfig(layout, sizes, context_blocks=3, sink_blocks=2), PLAIN)
    expected = {start: [0, 1, start + 2, start + 3, start + 4] for start in (0, 1, 2)}
    found = set()
    for seed in range(20):
        lengths, codes = rows._window({name: value[None] for name, value in tokens[0, seed].items()})
        (start,) = [s for s, blocks in expected.items() if codes[0].equal(tokens.codes[0, blocks])]
        assert lengths[0].equal(tokens.lengths[0, expected[start]])
        found.add(start)
    assert found == {0, 1, 2}
    for sinks in (-1, 3):
        with pytest.raises(ValueError, match=f"at least one is recent, got {sinks}"):
            ARConfig(layout, sizes, context_blocks=3, sink_blocks=sinks)
