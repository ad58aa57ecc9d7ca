"""Kills, signals, damage, full disks and numbers that are not finite: nothing is lost, and the weights are the same."""

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import safetensors.torch
import torch
from faulty_runs import SETTINGS, Runs, moments
from test_trainer import ToyTask, TwoPlayerTask, exported, stream, train

from genvid.data.loader import step_batches
from genvid.train import checkpoints
from genvid.train.optim import OptimizerConfig
from genvid.train.run import RunError, damage, newest_complete, read_journal
from genvid.train.stop import STOPPED, LookAhead, Stopped, StopRequest

pytestmark = pytest.mark.gpu
MEASURED = {"items_per_second", "clips_per_second", "data_wait", "memory"}


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(folder, **SETTINGS)
    return folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in the newest checkpoint."""
    return safetensors.torch.load_file(newest_complete(folder) / "state.safetensors")


def assert_same_states(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_same_runs(first: Path, second: Path) -> None:
    """Weights, moments, averages, exports and journals, to the bit."""
    assert_same_states(state(first), state(second))
    assert_same_states(exported(first), exported(second))
    journals = [[{k: v for k, v in r.items() if k not in MEASURED} for r in read_journal(f)] for f in (first, second)]
    assert journals[0] == journals[1]


@pytest.mark.timeout(900)
def test_twenty_kills_change_nothing(tmp_path, runs):
    straight, run = tmp_path / "straight" / "run", tmp_path / "run"
    began = time.perf_counter()
    assert runs.attempt(straight, steps=180) == [0]
    seconds = time.perf_counter() - began
    codes = [runs.attempt(run, steps=180, kill_at=1 + int(at)) for at in moments(0, 12, 50)]
    codes += [runs.attempt(run, steps=180, kill_after=after) for after in moments(1, 8, seconds / 12)]
    assert codes == 20 * [[-signal.SIGKILL]]
    assert runs.attempt(run, steps=180) == [0]
    assert_same_runs(run, straight)
    assert not [path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("step_")]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_stops_after_the_step(tmp_path, straight, stop):
    def signalled(shard):
        for step, batch in enumerate(stream(shard), shard.start_step):
            if step == 6:
                signal.raise_signal(stop)
            yield batch

    before = signal.getsignal(stop)
    with pytest.raises(Stopped) as ended:
        train(tmp_path / "run", ToyTask, signalled, **SETTINGS)
    assert ended.value.code == STOPPED == 75
    assert signal.getsignal(stop) is before
    assert newest_complete(tmp_path / "run").name == "step_00000007"
    train(tmp_path / "run", **SETTINGS)
    assert_same_states(state(tmp_path / "run"), state(straight))
    assert_same_states(exported(tmp_path / "run"), exported(straight))


def test_a_second_interrupt_ends_a_run_at_once(tmp_path, straight, capsys):
    def interrupted(shard):
        for step, batch in enumerate(stream(shard), shard.start_step):
            if step == 6:
                signal.raise_signal(signal.SIGINT)
                assert "saved after this step; a second one ends it at once" in capsys.readouterr().err
                signal.raise_signal(signal.SIGINT)
            yield batch

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", ToyTask, interrupted, **SETTINGS)
    assert signal.getsignal(signal.SIGINT) is before
    train(tmp_path / "run", **SETTINGS)
    assert_same_states(state(tmp_path / "run"), state(straight))


@pytest.mark.parametrize("task", [ToyTask, TwoPlayerTask])
def test_two_processes_equal_one(tmp_path, runs, task):
    assert runs.attempt(tmp_path / "two", processes=2, task=task.__name__, steps=4, log_every=1) == [0, 0]
    two = read_journal(tmp_path / "two")
    for a, b in zip(train(tmp_path / "one", task), two, strict=True):
        for name in a:
            if "loss" in name or "grad_norm" in name:
                assert a[name] == pytest.approx(b[name], rel=1e-5), name


def test_a_signal_to_one_of_two_processes_stops_both_and_one_goes_on(tmp_path, runs, straight):
    assert runs.attempt(tmp_path / "run", processes=2, signal_at=6) == [STOPPED, STOPPED]
    # Batch 6, with which the signal comes, is loaded LAG + 1 steps ahead; all agree LAG steps later.
    assert newest_complete(tmp_path / "run").name == "step_00000006"
    assert runs.attempt(tmp_path / "run") == [0]
    for name, value in exported(tmp_path / "run").items():
        assert torch.allclose(value, exported(straight)[name], atol=1e-6), name


def failing(step: int, error: Exception):
    """Clips that can no longer be loaded from a step on."""

    def batches(shard):
        for index, batch in enumerate(stream(shard), shard.start_step):
            if index == step:
                raise error
            yield batch

    return batches


@pytest.mark.parametrize(
    "error", [OSError(2, "No such file or directory", "clips"), ValueError("9 clips are unreadable")]
)
def test_data_that_fails_ends_the_run_in_one_sentence_when_all_is_saved(tmp_path, straight, error):
    with pytest.raises(RunError) as ended:
        train(tmp_path / "run", ToyTask, failing(7, error), **SETTINGS)
    assert str(ended.value) == (f"{error}; step 7 is saved in {tmp_path / 'run'}, and the same command goes on from it")
    assert newest_complete(tmp_path / "run").name == "step_00000007"
    train(tmp_path / "run", **SETTINGS)
    assert_same_states(state(tmp_path / "run"), state(straight))


def test_an_error_of_the_program_keeps_its_traceback_and_the_steps(tmp_path):
    with pytest.raises(RuntimeError, match=r"^sizes do not match$"):
        train(tmp_path / "run", ToyTask, failing(7, RuntimeError("sizes do not match")), **SETTINGS)
    assert newest_complete(tmp_path / "run").name == "step_00000007"


def test_data_that_fails_in_one_of_two_processes_stops_both_with_all_steps_saved(tmp_path, runs, straight):
    assert runs.attempt(tmp_path / "run", processes=2, fail_at=6) == [STOPPED, 2]
    assert newest_complete(tmp_path / "run").name == "step_00000006"
    assert runs.attempt(tmp_path / "run") == [0]
    for name, value in exported(tmp_path / "run").items():
        assert torch.allclose(value, exported(straight)[name], atol=1e-6), name


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_data_that_fails_before_all_could_agree_to_stop_is_an_error_at_once(bad):
    def items():
        yield from range(bad)
        raise OSError("clips are gone")

    with pytest.raises(OSError, match="clips are gone"):
        LookAhead(items(), 3)


def test_data_that_no_step_needs_may_fail(tmp_path, runs):
    assert runs.attempt(tmp_path / "run", processes=2, fail_at=24) == [0, 0]
    assert newest_complete(tmp_path / "run").name == "step_00000024"


class Files:
    """Clips in files of a folder; their seeds are the positions that `stream` gives them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        folder.mkdir()
        for index in range(count):
            (folder / f"{index}.txt").write_text(str(1 + index))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        label = int((self.folder / f"{item[0]}.txt").read_text())
        return {"seed": torch.tensor(item[1]), "label": torch.tensor(label)}


def test_a_folder_that_is_renamed_under_data_workers_costs_no_step(tmp_path):
    files = Files(tmp_path / "clips", 16)

    def loaded(shard, rename_at: int | None = None):
        loader = step_batches(files, batch_size=8, seed=1, start_step=shard.start_step, workers=2, device=shard.device)
        for step, batch in enumerate(loader, shard.start_step):
            if step == rename_at:
                (tmp_path / "clips").rename(tmp_path / "moved")
            yield batch

    train(tmp_path / "straight", ToyTask, loaded, steps=24)
    with pytest.raises(RunError) as ended:
        train(tmp_path / "run", ToyTask, partial(loaded, rename_at=3), steps=24)
    assert "\n" not in str(ended.value)
    assert re.fullmatch(
        r".*No such file or directory: .*\.txt'; step \d+ is saved in .*goes on from it", str(ended.value)
    )
    assert not multiprocessing.active_children()  # the end of this process would wait for them forever
    (tmp_path / "moved").rename(tmp_path / "clips")
    assert newest_complete(tmp_path / "run").name > "step_00000003"
    train(tmp_path / "run", ToyTask, loaded, steps=24)
    assert_same_states(state(tmp_path / "run"), state(tmp_path / "straight"))


@pytest.mark.parametrize(
    ("gone", "words"),
    [("journal", r"cannot write to .*metrics\.jsonl \(.*\)"), ("folder", "was moved or deleted while the run went on")],
)
def test_a_journal_that_cannot_be_written_ends_the_run_when_all_is_saved(tmp_path, straight, gone, words):
    run = tmp_path / "run"

    def batches(shard):
        for step, batch in enumerate(stream(shard), shard.start_step):
            if step == 7 and gone == "journal":
                (run / "metrics.jsonl").unlink(missing_ok=True)
                (run / "metrics.jsonl").mkdir()
            elif step == 7:
                run.rename(tmp_path / "moved")
            yield batch

    with pytest.raises(RunError, match=rf"{words}; step (8|9) is saved in .*run, and the same command goes on"):
        train(run, ToyTask, batches, **{**SETTINGS, "log_every": 8 if gone == "journal" else 24, "save_every": 8})
    if gone == "journal":
        (run / "metrics.jsonl").rmdir()
    train(run, **SETTINGS)
    assert_same_states(state(run), state(straight))


def test_a_signal_during_a_save_waits_for_it(tmp_path, monkeypatch):
    write = safetensors.torch.save_file

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.1)
        write(*arguments)

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(Stopped):
        train(tmp_path / "run", **SETTINGS)
    assert newest_complete(tmp_path / "run") == max((tmp_path / "run" / "checkpoints").iterdir())


def test_processes_started_in_the_shield_survive_the_signals():
    with StopRequest(1, torch.device("cpu")) as stop:
        with stop.shield():
            child = subprocess.Popen(["sleep", "60"])
            signal.raise_signal(signal.SIGTERM)  # to this thread: another one would take it at once
            assert not stop.agreed()
        assert stop.agreed()
        child.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)
        child.kill()
        child.wait()


def test_the_first_data_workers_of_a_process_do_not_end_the_shield():
    script = """
import signal
from multiprocessing import resource_tracker
import torch
from genvid.train.stop import SIGNALS, StopRequest

with StopRequest(1, torch.device("cpu")).shield():
    resource_tracker.ensure_running()  # multiprocessing does it before it starts a fork server
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= set(SIGNALS)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "no manifest", "broken manifest"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, straight, harm):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    newest = run / "checkpoints" / "step_00000024"
    data = newest / "state.safetensors"
    if harm == "truncated":
        os.truncate(data, data.stat().st_size - 100)
    elif harm == "flipped":
        content = bytearray(data.read_bytes())
        content[-7] ^= 4
        data.write_bytes(content)
    elif harm == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        train(run, **SETTINGS)
    (message,) = [r.getMessage() for r in caplog.records if r.name == checkpoints.__name__]
    assert "step_00000024 is damaged (" in message
    assert "kept as damaged_step_00000024, resuming from step_00000020" in message
    assert_same_runs(run, straight)


def test_without_a_whole_checkpoint_a_run_starts_anew(tmp_path, caplog, straight):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for manifest in run.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    train(run, **SETTINGS)
    assert "starting anew" in caplog.text
    assert_same_runs(run, straight)


def test_a_full_disk_is_found_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RunError, match=r"needs 0\.00 GB for checkpoints.* has 0\.00 GB free: free some, choose"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_output_folder_that_cannot_be_written_is_found_before_training(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match=r"cannot write to .*run \(Not a directory\)"):
        train(tmp_path / "file" / "run")


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_words(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(
        RunError, match=r"cannot write checkpoint 2 into .* \(No space left on device\); cannot write checkpoint \d+ "
    ):
        train(tmp_path / "run", steps=50, save_every=2)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_checkpoint_that_cannot_be_written_is_saved_again_before_the_run_ends(tmp_path, monkeypatch, straight):
    write, failures = safetensors.torch.save_file, iter([OSError(28, "No space left on device")])

    def full_once(*arguments, **metadata):
        for failure in failures:
            raise failure
        write(*arguments, **metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full_once)
    with pytest.raises(RunError, match=r"cannot write checkpoint 4 into .*; step \d+ is saved in .* goes on from it"):
        train(tmp_path / "run", **SETTINGS)
    train(tmp_path / "run", **SETTINGS)
    assert_same_states(state(tmp_path / "run"), state(straight))


class FragileTask(ToyTask):
    """With a running statistic, and clips that spoil the loss or its gradient alone."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch, phase, step, carry):
        output = super().forward(batch, phase, step, carry)
        self.seen.lerp_((output.loss + batch["spoilt"].sum()).detach(), 0.5)
        output.loss = output.loss + batch["spoilt"].sum()
        if batch["cusp"].any():
            output.loss = output.loss + (0 * self.model.layer.weight.sum()).sqrt()
        return output


class FragileTwoPlayers(TwoPlayerTask):
    def forward(self, batch, phase, step, carry):
        output = super().forward(batch, phase, step, carry)
        output.loss = output.loss * (1 + batch["spoilt"].sum())
        return output


class RareCritic(TwoPlayerTask):
    def phases_at(self, step):
        return self.phases if step % 3 == 1 else self.phases[:1]

    def forward(self, batch, phase, step, carry):
        output = super().forward(batch, phase, step, carry)
        if phase == "discriminator":
            output.loss = output.loss + batch["spoilt"].sum()
        return output


def spoil(steps: range, value: float):
    """Clips of which one is bad in some steps; `value` 0 is a cusp: a finite loss whose gradient is not."""

    def batches(shard):
        for step, micro_batches in enumerate(stream(shard), shard.start_step):
            for batch in micro_batches:
                batch["spoilt"] = torch.zeros_like(batch["label"], dtype=torch.float32)
                batch["cusp"] = torch.zeros_like(batch["label"], dtype=torch.bool)
            if step in steps:
                micro_batches[-1]["spoilt"][0] = value
                micro_batches[-1]["cusp"][0] = value == 0
            yield micro_batches

    return batches


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, value, accumulation, muon):
    optimizers = {"model": OptimizerConfig(lr=0.05, weight_decay=0.1, final_lr=1.0, muon=muon)}
    settings = {"accumulation": accumulation, "optimizers": optimizers, "save_every": 1, "keep_checkpoints": 9}
    records = train(tmp_path / "run", FragileTask, spoil(range(2, 4), value), steps=6, **settings)
    saved = [safetensors.torch.load_file(p) for p in sorted(tmp_path.glob("run/checkpoints/*/state.safetensors"))]
    counts = [int(state.pop("skipped")) for state in saved]
    assert counts == [r["skipped"] for r in records] == [0, 0, 1, 2, 2, 2]
    assert_same_states(saved[1], saved[2])
    assert_same_states(saved[1], saved[3])
    assert not torch.equal(saved[3]["task.model.layer.weight"], saved[4]["task.model.layer.weight"])
    assert all(torch.isfinite(value).all() for value in saved[-1].values())
    assert {r["loss"] > 0 for r in records if r["step"] not in (3, 4)} == {True}


def test_what_follows_a_bad_phase_is_skipped_too(tmp_path):
    settings = {"steps": 4, "save_every": 1, "keep_checkpoints": 9}
    train(tmp_path / "run", FragileTwoPlayers, spoil(range(2, 3), float("nan")), **settings)
    saved = [safetensors.torch.load_file(p) for p in sorted(tmp_path.glob("run/checkpoints/*/state.safetensors"))]
    assert [int(state.pop("skipped")) for state in saved] == [0, 0, 1, 1]
    assert_same_states(saved[1], saved[2])


def test_too_many_skipped_steps_stop_the_run_and_keep_the_batch(tmp_path):
    run = tmp_path / "run"
    settings = {"steps": 40, "log_every": 7, "save_every": 3, "max_skipped": 4}
    with pytest.raises(FloatingPointError, match=r"in 4 steps in a row, the last of them step 9, whose batch is in .*"):
        train(run, FragileTask, spoil(range(5, 30), float("inf")), **settings)
    (batch,) = torch.load(run / "bad_batch_rank0.pt")
    (expected,) = next(islice(stream_from(0), 8, None))
    assert torch.equal(batch["seed"], expected["seed"])
    assert torch.isinf(batch["spoilt"]).any()
    train(run, FragileTask, spoil(range(0), 0), **settings)
    whole = tmp_path / "whole"
    train(whole, FragileTask, spoil(range(5, 6), float("inf")), **settings)
    assert read_journal(run)[-1]["skipped"] == 1  # of the checkpoint after step 6
    assert_same_states(state(run), state(whole))


def test_skipped_steps_of_a_phase_are_counted_over_those_in_which_it_runs(tmp_path):
    settings = {"steps": 40, "log_every": 7, "save_every": 9, "max_skipped": 4}
    with pytest.raises(FloatingPointError, match="in 4 steps in a row, the last of them step 17, "):  # 8, 11, 14, 17
        train(tmp_path / "bad", RareCritic, spoil(range(5, 40), float("nan")), **settings)
    records = train(tmp_path / "good", RareCritic, spoil(range(5, 15), float("nan")), **settings)
    assert records[-1]["skipped"] == 3


def stream_from(start: int):
    from genvid.train.trainer import Shard

    return stream(Shard(0, 1, start, 1, torch.device("cpu")))


def test_a_run_that_waits_for_data_is_told_once(tmp_path, caplog):
    def slow(shard):
        for batch in stream(shard):
            time.sleep(0.05)
            yield batch

    train(tmp_path / "run", ToyTask, slow, steps=6)
    assert [r.getMessage() for r in caplog.records if "waits for data" in r.getMessage()].__len__() == 1


def test_a_checkpoint_says_what_is_wrong_with_it(tmp_path, straight):
    shutil.copytree(straight / "checkpoints" / "step_00000024", tmp_path / "step_00000024")
    checkpoint = tmp_path / "step_00000024"
    assert damage(checkpoint) is None
    (checkpoint / "state.safetensors").unlink()
    assert damage(checkpoint) == "it has no state.safetensors"
    (checkpoint / "manifest.json").write_text(json.dumps(["unexpected"]))
    assert damage(checkpoint).startswith("it cannot be read")
