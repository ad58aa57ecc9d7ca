"""What a recipe makes does not depend on the number of processes, nor on an interruption."""

import pytest
import torch
from tiny_recipes import records

from genvid.checkpoint import read_weights
from genvid.data.token_cache import TokenCache
from genvid.eval.report import Report

TRAINED = {"tokenizer": "generator/loss", "scorer": "loss", "ar": "loss"}


def losses(folder):
    return [{k: v for k, v in record.items() if k.endswith("loss")} for record in records(folder)]


def test_two_processes_train_the_tokenizer_as_one_does(stages):
    two = losses(stages.launch("tokenizer", "tokenizer_two"))
    one = losses(stages.folder / "tokenizer")
    assert [set(record) for record in one] == 2 * [{"generator/loss", "discriminator/loss"}]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    trained = read_weights(stages.folder / "tokenizer_two/export")
    for name, value in read_weights(stages.folder / "tokenizer/export").items():
        assert torch.allclose(value, trained[name], atol=2e-3), name


@pytest.mark.parametrize("stage", TRAINED)
def test_four_steps_equal_two_and_two_more_after_a_stop(stages, stage):
    train = {**stages.configs[stage]["train"], "steps": 4}
    straight = stages.run(stage, f"{stage}_straight", train=train)
    halves = stages.run(stage, f"{stage}_halves", train={**train, "steps": 2})
    assert len(records(halves)) == 2
    stages.run(stage, f"{stage}_halves", train=train)
    assert [r["step"] for r in records(halves)] == [1, 2, 3, 4]
    assert TRAINED[stage] in losses(straight)[0]
    assert losses(straight) == losses(halves)
    again = read_weights(halves / "export")
    for name, value in read_weights(straight / "export").items():
        assert torch.equal(value, again[name]), name


def test_two_processes_write_the_cache_that_one_does(stages):
    one = TokenCache.open(stages.folder / "cache")
    two = TokenCache.open(stages.launch("cache", "cache_two"))
    assert one.info == two.info
    assert len(one) == len(two) == 64
    for i in range(len(one)):
        assert one.source(i) == two.source(i)
        for name, value in one[i].items():
            assert torch.equal(value, two[i][name]), name


def test_two_processes_score_as_one_does(stages):
    changes = {"allocators": ["uniform", "joint"], "shown": 0}
    one = stages.run("evaluation", "evaluation_one", **changes)
    two = stages.launch("evaluation", "evaluation_two", **changes)
    names = sorted(path.name for path in one.glob("*.json"))
    assert names == sorted(path.name for path in two.glob("*.json"))
    for name in names:
        a, b = Report.load(one / name).numbers, Report.load(two / name).numbers
        assert [n.count for n in a] == [n.count for n in b]
        assert [n.value for n in a] == pytest.approx([n.value for n in b], rel=1e-6)
