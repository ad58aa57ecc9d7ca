"""What a recipe makes does not depend on the number of processes, nor on an interruption."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from tiny_recipes import STRATEGIES, Stages, launch_two, records

from genvid import config
from genvid.checkpoint import load_model, read_weights
from genvid.eval.report import Report
from genvid.frozen import Frozen
from genvid.recipes import cache_tokens, calibrate
from genvid.recipes.runs import RUNS
from genvid.tokens.cache import TokenCache
from genvid.train.accelerator import LaunchError, adapt
from genvid.train.task import TrainingTask

pytestmark = pytest.mark.gpu
TRAINED = {"tokenizer": "generator/loss", "scorer": "loss", "ar": "loss"}


def losses(folder):
    return [{k: v for k, v in record.items() if k.endswith("loss")} for record in records(folder)]


def assert_same_run(one: Path, two: Path, *, rounding: float) -> None:
    """Equal losses and weights, but for `rounding` on a GPU, where some kernels add in an order of their own."""
    if not torch.cuda.is_available():
        rounding = 0.0
    for a, b in zip(losses(one), losses(two), strict=True):
        assert a == pytest.approx(b, rel=rounding, abs=0)
    assert weights_differ(one, two) <= rounding


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
    assert_same_run(straight, halves, rounding=1e-4)


def weights_differ(one: Path, two: Path) -> float:
    """Largest difference between exported weights."""
    a, b = read_weights(one / "export"), read_weights(two / "export")
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a if a[name].is_floating_point())


CROSSINGS = [("ddp", "fsdp2"), ("fsdp2", "ddp"), ("fsdp2", "fsdp2"), ("zero2", "zero2"), ("zero3", "zero3")]
"""Saved under one, resumed under the other."""


def with_muon(train: dict[str, Any]) -> dict[str, Any]:
    return {**train, "optimizers": {phase: {**o, "muon": True} for phase, o in train["optimizers"].items()}}


def unmoved(stages: Stages, stage: str) -> dict[str, Any]:
    """Training of one step whose learning rate is 0 in float32: what is exported are the first weights."""
    train = stages.configs[stage]["train"]
    return {**train, "steps": 1, "optimizers": {phase: {"lr": 1e-50} for phase in train["optimizers"]}}


@pytest.fixture(scope="module")
def alone(stages):
    """What the runs of two processes are to equal."""
    train = stages.configs["ar"]["train"]
    stages.run("ar", "ar_alone", train={**train, "steps": 4})
    stages.run("ar", "ar_alone_muon", train=with_muon(train))
    stages.run("tokenizer", "tokenizer_alone", train={**stages.configs["tokenizer"]["train"], "steps": 4})
    return stages


@pytest.fixture(scope="module")
def launched(alone):
    """Every strategy in one launch: Python takes long to start."""
    pytest.importorskip("deepspeed")
    ar = alone.configs["ar"]["train"]
    runs = [(strategy, alone.write("ar", f"ar_{strategy}")) for strategy in STRATEGIES]
    runs += [(strategy, alone.write("scorer", f"scorer_{strategy}")) for strategy in ("fsdp2", "zero3")]
    runs += [("fsdp2", alone.write("tokenizer", "tokenizer_fsdp2"))]
    compiled = {stage: {**alone.configs[stage]["train"], "compile": True} for stage in ("tokenizer", "scorer")}
    runs += [("fsdp2", alone.write("scorer", "scorer_fsdp2_compiled", train=compiled["scorer"]))]
    runs += [("fsdp2", alone.write("ar", "ar_fsdp2_muon", train=with_muon(ar)))]
    runs += [("ddp", alone.write("ar", "ar_ddp_bf16", train={**ar, "precision": "bf16"}))]
    runs += [("fsdp2", alone.write(stage, f"{stage}_first", train=unmoved(alone, stage))) for stage in TRAINED]
    for strategy in ("fsdp2", "zero2"):
        train = {**ar, "precision": "bf16", "accumulation": 2, "activation_checkpointing": True}
        runs.append((strategy, alone.write("ar", f"ar_{strategy}_bf16", train=train)))
    halves = [(one, other, alone.write("ar", f"ar_{one}_{other}")) for one, other in CROSSINGS]
    first = alone.write("tokenizer", "tokenizer_fsdp2_compiled", train=compiled["tokenizer"])
    halves.append(("fsdp2", "fsdp2", first))
    for one, other, first in halves:
        second = first.with_suffix(".resumed.yaml")
        longer = yaml.safe_load(first.read_text())
        longer["train"]["steps"] = 4
        second.write_text(yaml.safe_dump(longer))
        runs += [(one, first), (other, second)]
    alone.launch_all(runs)
    return alone.folder


@pytest.mark.parametrize(
    "name", [*(f"ar_{strategy}" for strategy in STRATEGIES), "scorer_fsdp2", "scorer_zero3", "tokenizer_fsdp2"]
)
def test_every_strategy_trains_as_one_process_does(alone, launched, name):
    reference = alone.folder / name.partition("_")[0]
    for one, two in zip(losses(reference), losses(launched / name), strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    assert weights_differ(reference, launched / name) < 1e-4


def build(stages: Stages, stage: str) -> TrainingTask:
    run = config.decode(RUNS[stages.configs[stage]["task"]], {**stages.configs[stage], "output_dir": "unused"})
    torch.manual_seed(run.seed)
    return run.build()[0]


@pytest.mark.parametrize("stage", TRAINED)
def test_sharded_runs_begin_with_the_weights_of_one_process(alone, launched, stage):
    exported = dict(load_model(launched / f"{stage}_first/export").named_parameters())
    for name, value in build(alone, stage).exportable().named_parameters():
        assert torch.equal(value, exported[name]), name


@pytest.mark.parametrize("stage", TRAINED)
def test_weights_to_be_sharded_are_created_on_the_first_process_alone(stages, stage, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("RANK", "0")
    first = build(stages, stage)
    assert not any(parameter.is_meta for parameter in first.parameters())
    monkeypatch.setenv("RANK", "1")
    second = build(stages, stage)
    assert all(parameter.is_meta for parameter in second.parameters())
    for (name, value), expected in zip(second.named_buffers(), first.buffers(), strict=True):
        assert torch.equal(value, expected), name
    frozen = [[m.network.state_dict() for m in task.modules() if isinstance(m, Frozen)] for task in (first, second)]
    for one, other in zip(*frozen, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_steps_that_are_not_finite_are_skipped_under_every_strategy(tmp_path):
    pytest.importorskip("deepspeed")
    launch_two(Path(__file__).with_name("spoilt_runs.py"), tmp_path)
    for strategy in STRATEGIES:
        assert [record["skipped"] for record in records(tmp_path / strategy)] == [0, 0, 1, 2, 2, 2]
        for one, two in zip(losses(tmp_path / strategy), losses(tmp_path / "ddp"), strict=True):
            assert one == pytest.approx(two, rel=1e-5)
        assert weights_differ(tmp_path / strategy, tmp_path / "ddp") < 1e-6


@pytest.mark.parametrize("strategy", ["fsdp2", "zero2"])
def test_bf16_is_that_of_ddp(alone, launched, strategy):
    reference = losses(launched / "ar_ddp_bf16")
    assert reference != losses(alone.folder / "ar")
    for one, two in zip(reference, losses(launched / f"ar_{strategy}_bf16"), strict=True):
        assert one == pytest.approx(two, rel=1e-3)


def test_muon_under_fsdp2_is_that_of_one_process(alone, launched):
    one, two = alone.folder / "ar_alone_muon", launched / "ar_fsdp2_muon"
    for a, b in zip(losses(one), losses(two), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert weights_differ(one, two) < 0.1 * weights_differ(one, alone.folder / "ar")


@pytest.mark.parametrize(("one", "other"), CROSSINGS)
def test_saved_under_one_strategy_and_resumed_under_another(alone, launched, one, other):
    resumed = records(launched / f"ar_{one}_{other}")
    assert [record["step"] for record in resumed] == [1, 2, 3, 4]
    for a, b in zip(losses(alone.folder / "ar_alone"), losses(launched / f"ar_{one}_{other}"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert weights_differ(alone.folder / "ar_alone", launched / f"ar_{one}_{other}") < 1e-4


def test_one_process_goes_on_where_two_stopped(alone, launched):
    train = {**alone.configs["ar"]["train"], "steps": 4}
    alone.run("ar", "ar_fsdp2", train=train)
    for a, b in zip(losses(alone.folder / "ar_alone"), losses(launched / "ar_fsdp2"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("stage", TRAINED)
def test_activation_checkpointing_changes_nothing(stages, stage):
    train = {**stages.configs[stage]["train"], "activation_checkpointing": True}
    again = stages.run(stage, f"{stage}_checkpointed", train=train)
    assert_same_run(again, stages.folder / stage, rounding=1e-4)


@pytest.mark.parametrize("stage", TRAINED)
def test_compiled_steps_are_those_of_the_plain_path(stages, gpu, stage):
    train = {**stages.configs[stage]["train"], "compile": True}
    compiled = stages.run(stage, f"{stage}_compiled", train=train)
    for one, two in zip(losses(compiled), losses(stages.folder / stage), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    assert weights_differ(compiled, stages.folder / stage) < 2e-3  # two steps of Adam, whose first have one size


@pytest.mark.parametrize(("stage", "reference"), [("tokenizer", "tokenizer_alone"), ("scorer", "scorer")])
def test_steps_compiled_across_layers_under_fsdp2_are_those_of_one_process(alone, launched, stage, reference):
    """Those of the tokenizer with an interruption."""
    for one, two in zip(losses(alone.folder / reference), losses(launched / f"{stage}_fsdp2_compiled"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    assert weights_differ(alone.folder / reference, launched / f"{stage}_fsdp2_compiled") < 2e-3


@pytest.mark.parametrize(
    ("stage", "muon", "reason"),
    [("tokenizer", False, "two networks in turn"), ("ar", True, "Muon, which needs complete matrices")],
)
def test_what_deepspeed_cannot_train_is_refused(stages, stage, muon, reason):
    recipe = {**stages.configs[stage], "output_dir": "unused"}
    recipe["train"] = {**recipe["train"], "optimizers": {p: {"muon": muon} for p in recipe["train"]["optimizers"]}}
    run = config.decode(RUNS[recipe["task"]], recipe)
    task, _ = run.build()
    accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    with pytest.raises(LaunchError, match=rf"{type(task).__name__} .*{reason}.*launch with DDP or FSDP2"):
        adapt(accelerator, task, run.train)


def contents(cache: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in cache.iterdir()}


def test_two_processes_write_the_cache_that_one_does(stages):
    assert len(TokenCache.open(stages.folder / "cache")) == 64
    assert contents(stages.folder / "cache") == contents(stages.launch("cache", "cache_two"))


def test_an_interrupted_cache_goes_on_to_the_same_bytes(stages, monkeypatch, capsys):
    """Two of four shards, then one more process than before."""
    encoded = []

    def interrupted(*arguments):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(arguments)
        return encode(*arguments)

    encode = cache_tokens.encode
    with monkeypatch.context() as patch:
        patch.setattr(cache_tokens, "encode", interrupted)
        with pytest.raises(SystemExit, match="130"):
            stages.run("cache", "cache_halves")
    assert sorted(contents(stages.folder / "cache_halves")) == [
        "tokens-00000-of-00004.arrow",
        "tokens-00001-of-00004.arrow",
        "unfinished.json",
    ]
    with pytest.raises(SystemExit):
        stages.run("cache", "cache_halves", passes=2)
    assert "clips is 64 there, 128 here" in capsys.readouterr().err
    whole = stages.launch("cache", "cache_halves")
    assert contents(stages.folder / "cache") == contents(whole)


def test_an_interrupted_calibration_goes_on_to_the_same_bytes(stages, monkeypatch, capsys):
    """Once in the second batch of two, once in the second budget of two."""
    for name in ("MeasuredCurves", "close_loop"):
        once = iter([getattr(calibrate, name)])

        def interrupted(*arguments, once=once, **options):
            try:
                return next(once)(*arguments, **options)
            except StopIteration:
                raise KeyboardInterrupt from None

        with monkeypatch.context() as patch:
            patch.setattr(calibrate, name, interrupted)
            with pytest.raises(SystemExit, match="130"):
                stages.run("calibration", "calibration_halves")
        assert next(once, None) is None
    with pytest.raises(SystemExit):
        stages.run("calibration", "calibration_halves", clips=31)
    assert "clips is 32 there, 31 here" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(calibrate, "MeasuredCurves", None)
        halves = stages.run("calibration", "calibration_halves")
    straight = stages.folder / "calibration"
    assert (halves / "calibration.json").read_bytes() == (straight / "calibration.json").read_bytes()
    assert sorted(path.name for path in halves.iterdir()) == sorted(path.name for path in straight.iterdir())


def test_two_processes_score_as_one_does(stages):
    changes = {"allocators": ["uniform", "joint"], "shown": 0}
    one = stages.run("evaluation", "evaluation_one", **changes)
    two = stages.launch("evaluation", "evaluation_two", **changes)
    names = sorted(path.name for path in one.glob("*.json"))
    assert names == sorted(path.name for path in two.glob("*.json"))
    for name in set(names) - {"summary.json"}:
        a, b = Report.load(one / name).numbers, Report.load(two / name).numbers
        assert [n.count for n in a] == [n.count for n in b]
        assert [n.value for n in a] == pytest.approx([n.value for n in b], rel=1e-6)
