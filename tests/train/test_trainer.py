"""The training loop on a toy task: resume, accumulation, two phases, bad folders."""

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genvid import noise
from genvid.checkpoint import Model, load_weights, read_weights
from genvid.train import run
from genvid.train.config import TrainConfig, ValidationConfig
from genvid.train.muon import Muon
from genvid.train.optim import OptimizerConfig, make_optimizers, set_lr
from genvid.train.run import RunError
from genvid.train.stop import Stopped
from genvid.train.task import StepOutput, TrainingTask
from genvid.train.trainer import HeldOut, Shard, Trainer

pytestmark = pytest.mark.gpu


@dataclass(frozen=True)
class ToyConfig:
    width: int = 4


class Toy(Model):
    model_type = "toy"
    config_type = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.layer = nn.Linear(config.width, 1)
        self.register_buffer("offset", torch.zeros(1))


class ToyTask(TrainingTask):
    """Regression with noise per clip; rows count as many items as their label says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Toy(ToyConfig())

    def exportable(self) -> Toy:
        return self.model

    def num_items(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["label"].sum()

    def forward(self, batch, phase, step, carry):
        x = noise.uniform(batch["seed"], "x", 4).float()
        error = (self.model.layer(x)[:, 0] - x.sum(1)).square() * batch["label"]
        return StepOutput(error.sum(), {"error": (error / batch["label"]).mean().detach()})


class TwoPlayerTask(ToyTask):
    phases = ("generator", "discriminator")

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(4, 1)

    def trainable(self, phase):
        return self.model.parameters() if phase == "generator" else self.critic.parameters()

    def forward(self, batch, phase, step, carry):
        if phase == "discriminator":
            return StepOutput((self.critic(carry["x"])[:, 0] - 1).square().sum())
        output = super().forward(batch, phase, step, carry)
        return StepOutput(output.loss, output.terms, carry={"x": noise.uniform(batch["seed"], "x", 4).float()})


def stream(shard: Shard, batch_size: int = 8) -> Iterator[list[dict[str, Tensor]]]:
    step = shard.start_step
    while True:
        seeds = noise.sample_seeds(3, "clips", torch.arange(step * batch_size, (step + 1) * batch_size))
        batch = {"seed": seeds, "label": 1 + torch.arange(batch_size)}
        size = batch_size // shard.world_size
        own = {k: v[shard.rank * size : (shard.rank + 1) * size].to(shard.device) for k, v in batch.items()}
        chunk = size // shard.micro_batches
        yield [{k: v[i * chunk : (i + 1) * chunk] for k, v in own.items()} for i in range(shard.micro_batches)]
        step += 1


@dataclass(frozen=True)
class RunConfig:
    train: TrainConfig
    output_dir: str = ""
    other: int = 0


def train(
    folder: Path, task: type[TrainingTask] = ToyTask, batches=stream, *, other: int = 0, held_out=None, **settings
) -> list[dict]:
    optimizers = {phase: OptimizerConfig(lr=0.05, warmup_steps=2) for phase in task.phases}
    config = TrainConfig(**{"steps": 4, "batch_size": 8, "log_every": 1, "optimizers": optimizers, **settings})
    Trainer(task(), config, folder, run_config=RunConfig(config, str(folder), other), held_out=held_out).fit(batches)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def exported(folder: Path) -> dict[str, Tensor]:
    return read_weights(folder / "export")


def assert_equal_runs(first: Path, second: Path) -> None:
    for name, value in exported(first).items():
        assert torch.equal(value, exported(second)[name]), name


def test_the_loss_falls_and_the_average_is_exported(tmp_path):
    records = train(tmp_path / "run", steps=60)
    assert records[-1]["loss"] < 0.2 * records[0]["loss"]
    assert [r["step"] for r in records] == list(range(1, 61))
    load_weights(Toy(ToyConfig()), exported(tmp_path / "run"), source="export")


def test_an_export_in_bf16_has_rounded_weights_and_whole_statistics(tmp_path):
    train(tmp_path / "run")
    before = exported(tmp_path / "run")
    train(tmp_path / "run", export_precision="bf16")
    after = exported(tmp_path / "run")
    assert {name: value.dtype for name, value in after.items()} == {
        "layer.weight": torch.bfloat16,
        "layer.bias": torch.bfloat16,
        "offset": torch.float32,
    }
    model = Toy(ToyConfig())
    load_weights(model, after, source="export")
    assert torch.equal(model.layer.weight, before["layer.weight"].bfloat16().float())


@pytest.mark.parametrize("task", [ToyTask, TwoPlayerTask])
def test_four_steps_equal_two_and_resume_and_two(tmp_path, task):
    straight = train(tmp_path / "straight", task, steps=4)
    config = {"optimizers": {p: OptimizerConfig(lr=0.05, warmup_steps=2, final_lr=1.0) for p in task.phases}}
    straight = train(tmp_path / "constant", task, steps=4, **config)
    train(tmp_path / "resumed", task, steps=2, **config)
    resumed = train(tmp_path / "resumed", task, steps=4, **config)
    assert [r["step"] for r in resumed] == [1, 2, 3, 4]
    for a, b in zip(straight, resumed, strict=True):
        assert {k: v for k, v in a.items() if "loss" in k} == {k: v for k, v in b.items() if "loss" in k}
    assert_equal_runs(tmp_path / "constant", tmp_path / "resumed")


@pytest.mark.parametrize("task", [ToyTask, TwoPlayerTask])
def test_muon_trains_the_matrices_and_resumes_exactly(tmp_path, task):
    config = {"optimizers": {p: OptimizerConfig(lr=0.05, final_lr=1.0, muon=True) for p in task.phases}}
    records = train(tmp_path / "straight", task, steps=20, **config)
    losses = [record["loss" if task is ToyTask else "generator/loss"] for record in records]
    assert losses[-1] < 0.5 * losses[0]
    train(tmp_path / "resumed", task, steps=9, **config)
    train(tmp_path / "resumed", task, steps=20, **config)
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")


def test_what_muon_leaves_may_have_a_learning_rate_of_its_own():
    matrix, vector = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4))
    moved = []
    for scale in (1.0, 3.0):
        config = OptimizerConfig(lr=0.01, muon=True, adamw_scale=scale)
        before = [matrix.detach().clone(), vector.detach().clone()]
        matrix.grad, vector.grad = torch.ones(4, 4), torch.ones(4)
        for optimizer in make_optimizers([matrix, vector], config, {matrix}):
            set_lr(optimizer, 0.02)
            optimizer.step()
        moved.append([float((after - start).norm()) for after, start in zip((matrix, vector), before, strict=True)])
    assert moved[1] == pytest.approx([moved[0][0], 3 * moved[0][1]], rel=1e-3)
    with pytest.raises(ValueError, match="for AdamW beside Muon alone"):
        OptimizerConfig(adamw_scale=3.0)


def test_muon_is_that_of_torch():
    shapes = [(6, 4), (4, 6), (6, 4), (3, 3)]
    torch.manual_seed(0)
    start, steps = (
        [torch.randn(shape) for shape in shapes],
        [[torch.randn(shape) for shape in shapes] for _ in range(3)],
    )
    results = []
    for optimizer in (Muon, partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")):
        parameters = [torch.nn.Parameter(value.clone()) for value in start]
        made = optimizer(parameters, lr=0.1, weight_decay=0.01)
        for gradients in steps:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            made.step()
        results.append(parameters)
    for ours, theirs, before in zip(*results, start, strict=True):
        assert (ours - theirs).norm() < 0.02 * (theirs - before).norm()  # both iterate in bfloat16


def test_muon_takes_the_kernel_of_a_convolution_for_a_matrix():
    torch.manual_seed(0)
    start, gradient = torch.randn(2, 6, 4, 3, 1, 1)
    kernel, matrix = (torch.nn.Parameter(value) for value in (start.clone(), start.clone().flatten(1)))
    for parameter, grad in ((kernel, gradient), (matrix, gradient.flatten(1))):
        parameter.grad = grad
        Muon([parameter], lr=0.1, weight_decay=0.01).step()
    assert torch.equal(kernel.flatten(1), matrix)
    assert not torch.equal(kernel, start)


def test_accumulation_equals_one_large_batch(tmp_path):
    whole = train(tmp_path / "whole", accumulation=1)
    parts = train(tmp_path / "parts", accumulation=4)
    for a, b in zip(whole, parts, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)


class CompiledTask(TwoPlayerTask):
    compiled_across_layers = True

    def use_compiler(self, mode):
        self.compiled = torch.compile(super().forward, mode=mode)

    def forward(self, batch, phase, step, carry):
        output = self.compiled(batch, phase, step, carry)
        return replace(output, carry={name: value.clone() for name, value in output.carry.items()})


def test_accumulation_equals_one_large_batch_where_steps_are_graphs(gpu, tmp_path):
    """Every micro-batch's results and gradients are in the memory of those of the one before."""
    whole = train(tmp_path / "whole", TwoPlayerTask, steps=6)
    parts = train(tmp_path / "parts", CompiledTask, steps=6, accumulation=4, compile=True)
    for a, b in zip(whole, parts, strict=True):
        for name in ("generator/loss", "generator/grad_norm", "discriminator/loss", "discriminator/grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-5)


def test_a_folder_of_another_run_is_refused(tmp_path):
    train(tmp_path / "run", steps=1)
    with pytest.raises(RunError, match=r"already holds another run \(other is 0 there, 1 here\)"):
        train(tmp_path / "run", steps=1, other=1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thoughts.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and holds no run"):
        train(tmp_path / "notes")
    with pytest.raises(RunError, match=r"cannot write to .*thoughts\.txt \(Not a directory\)"):
        train(tmp_path / "notes" / "thoughts.txt")


def test_two_runs_are_never_in_one_folder_at_once(tmp_path, monkeypatch):
    def meanwhile(shard):
        with pytest.raises(RunError, match="another process trains in"):
            train(tmp_path / "run", steps=1, other=1)  # there is no checkpoint of the first run yet
        yield from stream(shard)

    monkeypatch.setattr(run, "PATIENCE", 0.1)
    train(tmp_path / "run", batches=meanwhile, steps=3)
    assert [record["step"] for record in train(tmp_path / "run", steps=3)] == [1, 2, 3]


def test_a_run_that_was_refused_before_its_first_step_may_be_mended(tmp_path):
    def refusing(shard):
        raise ValueError("no clips")

    with pytest.raises(ValueError, match="no clips"):
        train(tmp_path / "run", batches=refusing, other=1)
    assert (tmp_path / "run" / "config.yaml").exists()
    train(tmp_path / "run", steps=1)


def test_an_unfinished_checkpoint_is_not_resumed_from(tmp_path):
    train(tmp_path / "run", steps=2)
    torn = tmp_path / "run" / "checkpoints" / ".step_00000003.tmp"
    torn.mkdir()
    assert [r["step"] for r in train(tmp_path / "run", steps=3)] == [1, 2, 3]


def test_only_the_newest_checkpoints_stay(tmp_path):
    train(tmp_path / "run", steps=5, save_every=1, keep_checkpoints=2)
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_00000004", "step_00000005"]


def rates(records: list[dict]) -> list[float]:
    return [record["lr"] for record in records]


@pytest.mark.parametrize("steps", [3, 9])
def test_another_number_of_steps_is_refused_where_the_learning_rate_would_jump(tmp_path, steps):
    train(tmp_path / "run", steps=6)
    with pytest.raises(
        RunError, match=rf"model: train\.steps cannot become {steps} after 6 of 6 steps: .* would jump to"
    ):
        train(tmp_path / "run", steps=steps)
    assert len(train(tmp_path / "run", steps=6)) == 6
    assert (tmp_path / "run" / "export").is_dir()


def test_a_run_that_still_warms_up_may_get_another_number_of_steps(tmp_path):
    train(tmp_path / "run", steps=2)
    assert rates(train(tmp_path / "run", steps=6)) == rates(train(tmp_path / "straight", steps=6))
    assert_equal_runs(tmp_path / "straight", tmp_path / "run")


def test_a_constant_learning_rate_may_go_on_until_its_decay(tmp_path):
    settings = {"optimizers": {"model": OptimizerConfig(lr=0.05, warmup_steps=2, decay_steps=3, final_lr=0.0)}}
    straight = rates(train(tmp_path / "straight", steps=9, **settings))
    assert straight == pytest.approx([0.025, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.0375, 0.0125])

    def stopping(shard):
        for step, batch in enumerate(stream(shard), shard.start_step):
            if step == 3:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    with pytest.raises(Stopped):
        train(tmp_path / "run", batches=stopping, steps=7, **settings)
    assert rates(train(tmp_path / "run", steps=9, **settings)) == straight
    assert_equal_runs(tmp_path / "straight", tmp_path / "run")
    with pytest.raises(RunError, match=r"cannot become 12 after 9 of 9 steps"):
        train(tmp_path / "run", steps=12, **settings)
    constant = {"optimizers": {"model": OptimizerConfig(lr=0.05, final_lr=1.0)}}
    train(tmp_path / "constant", steps=4, **constant)
    with pytest.raises(RunError, match=r"has finished 4 steps: train\.steps cannot become 2"):
        train(tmp_path / "constant", steps=2, **constant)
    with pytest.raises(ValueError, match="decay_steps must be at least 0 or null, got -1"):
        OptimizerConfig(decay_steps=-1)


def test_phases_without_an_optimizer_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"needs train\.optimizers for generator, discriminator; got model"):
        train(tmp_path / "run", TwoPlayerTask, optimizers={"model": OptimizerConfig()})


def test_a_non_finite_loss_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"not finite in 10 steps in a row"):
        train(tmp_path / "run", optimizers={"model": OptimizerConfig(lr=1e30, clip_norm=None)}, steps=50)


def shifted(shard: Shard) -> Iterator[list[dict[str, Tensor]]]:
    """Other clips than those of `stream`."""
    return stream(replace(shard, start_step=shard.start_step + 100))


@pytest.mark.parametrize("task", [ToyTask, TwoPlayerTask])
def test_held_out_losses_change_nothing_of_the_run(tmp_path, task):
    constant = {p: OptimizerConfig(lr=0.05, warmup_steps=2, final_lr=1.0) for p in task.phases}
    held_out = HeldOut(shifted, ValidationConfig(every=2, batches=3))
    measured = train(tmp_path / "with", task, steps=5, held_out=held_out, optimizers=constant)
    measured = train(tmp_path / "with", task, steps=6, held_out=held_out, optimizers=constant)
    without = train(tmp_path / "plain", task, steps=6, optimizers=constant)
    assert_equal_runs(tmp_path / "plain", tmp_path / "with")
    for plain, record in zip(without, measured, strict=True):
        named = {name for name in record if name.startswith("held_out/")}
        due = record["step"] in (2, 4, 5, 6)
        assert ("held_out/loss" if task is ToyTask else "held_out/generator/loss") in named or not due
        assert bool(named) == due
        assert {n: v for n, v in plain.items() if "loss" in n} == {
            n: v for n, v in record.items() if "loss" in n and n not in named
        }


def test_a_held_out_loss_is_that_of_the_weights_after_the_step(tmp_path):
    held_out = HeldOut(shifted, ValidationConfig(every=4, batches=2))
    records = train(tmp_path / "run", steps=4, held_out=held_out, ema_decay=None)
    task = ToyTask()
    load_weights(task.model, exported(tmp_path / "run"), source="export")
    clips = shifted(Shard(0, 1, 0, 1, torch.device("cpu")))
    batches = [next(clips)[0] for _ in range(2)]
    with torch.no_grad():
        total = sum(float(task(batch, "model", 3, {}).loss) for batch in batches)
    expected = total / sum(int(task.num_items(batch)) for batch in batches)
    assert records[-1]["held_out/loss"] == pytest.approx(expected, rel=1e-6)
    split = train(tmp_path / "split", steps=4, held_out=held_out, accumulation=4)
    assert split[-1]["held_out/loss"] == pytest.approx(expected, rel=1e-5)


def test_held_out_losses_belong_to_a_record(tmp_path):
    with pytest.raises(ValueError, match=r"validation\.every must be a multiple of train\.log_every, 20 steps"):
        train(tmp_path / "run", held_out=HeldOut(shifted, ValidationConfig(every=30)), log_every=20)
    assert not (tmp_path / "run").exists()
