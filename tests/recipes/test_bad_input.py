"""Bad input ends a script with one sentence on stderr and exit status 2."""

import pytest
import torch

from genvid.data.video import write_video
from genvid.recipes import cache_tokens, calibrate, compare_allocators, demo, generate, train


def complaint(capsys, run) -> str:
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def folder_of(stages, source):
    return {**stages.configs["tokenizer"]["data"], "source": {"type": "folder", "path": str(source)}}


@pytest.mark.parametrize("stage", ["tokenizer", "cache", "calibration", "evaluation"])
def test_a_folder_that_is_not_there(stages, capsys, tmp_path, stage):
    data = folder_of(stages, tmp_path / "absent")
    assert "absent" in complaint(capsys, lambda: stages.run(stage, f"bad_{stage}_absent", data=data))


def test_a_folder_without_videos(stages, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    data = folder_of(stages, tmp_path / "empty")
    assert str(tmp_path / "empty") in complaint(capsys, lambda: stages.run("tokenizer", "bad_empty", data=data))


def test_a_demo_of_too_few_videos(capsys, tmp_path):
    for name in ("a/1.mp4", "a/2.mp4", "b/1.mp4", "b/2.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "videos" / name, torch.zeros(3, 16, 32, 32, dtype=torch.uint8), 8)
    asked = ["--data", str(tmp_path / "videos"), "--output", str(tmp_path / "demo")]
    assert "2 held-out clips of 16 frames" in complaint(capsys, lambda: demo.main(asked))
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("stage", ["tokenizer", "cache", "calibration", "evaluation", "generation"])
def test_an_unknown_key(stages, capsys, stage):
    message = complaint(capsys, lambda: stages.run(stage, f"bad_{stage}_key", "--data.clip.frame", "4"))
    assert "did you mean 'frames'" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--train.steps=many", "train.steps"),
        ("--train.batch_size=0", "train.batch_size must be at least 1"),
        ("--task=adaptoc", "must be one of adaptok, scorer, autoencoder, cell_autoencoder, lit, ar"),
        ("--data.clip.frames=6", "change data.clip"),
        ("--objective.tail_drop.maximum=9", "tail_drop.maximum 9 exceeds the tokenizer's block_capacity 8"),
        ("--discriminator.patch=[4, 8, 5]", "discriminator.patch of 8x5 does not divide frames of 16x16"),
        ("--model.encoder.heads=5", "heads"),
    ],
)
def test_a_wrong_value(stages, capsys, override, words):
    assert words in complaint(capsys, lambda: stages.run("tokenizer", "bad_value", override))


def test_a_scorer_with_the_tail_drop_of_a_larger_tokenizer(stages, capsys):
    """It would leave earlier blocks whole, where allocators cut them."""
    message = complaint(capsys, lambda: stages.run("scorer", "bad_drop", tail_drop={}))
    assert "tail_drop.maximum 512 exceeds the tokenizer's block_capacity 8" in message


@pytest.mark.parametrize("stage", ["cache", "evaluation", "calibration"])
def test_a_budget_below_the_minimum(stages, capsys, stage):
    change = {"cache": "--tokens.allocator.tokens_per_video=1"}.get(stage, "--budgets=[1]")
    message = complaint(capsys, lambda: stages.run(stage, f"bad_{stage}_budget", change))
    assert "1" in message
    assert "smallest" in message or "fewer" in message or "at least" in message


def test_an_allocator_that_does_not_exist(stages, capsys):
    message = complaint(capsys, lambda: stages.run("evaluation", "bad_allocator", "--allocators=[best]"))
    assert "one of the allocators uniform, group, joint" in message


@pytest.mark.parametrize("stage", ["tokenizer", "ar"])
def test_the_output_folder_of_another_run(stages, capsys, stage):
    message = complaint(capsys, lambda: stages.run(stage, None, "--seed", "5"))
    assert "already holds another run (seed is 0 there, 5 here)" in message


def test_a_cache_folder_that_is_taken(stages, capsys):
    assert "already holds a token cache" in complaint(capsys, lambda: stages.run("cache"))


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("scorer", {"tokenizer": "scorer"}, "not a AdapTok:"),
        ("evaluation", {"scorer": "tokenizer"}, "not a Scorer:"),
        ("generation", {"model": "tokenizer"}, "not a RowModel:"),
        ("generation", {"classifier": "tokenizer"}, "not a VideoClassifier:"),
    ],
)
def test_a_model_of_another_kind(stages, capsys, stage, change, words):
    change = {key: stages.path(f"{value}/export") for key, value in change.items()}
    assert words in complaint(capsys, lambda: stages.run(stage, f"bad_{stage}_model", **change))


@pytest.mark.parametrize(
    ("stage", "key"), [("generation", "features"), ("evaluation", "training"), ("evaluation", "pictures")]
)
def test_what_is_read_last_is_looked_for_first(stages, capsys, tmp_path, stage, key):
    name = f"bad_{stage}_{key}"
    absent = folder_of(stages, tmp_path / "absent") if stage == "evaluation" else str(tmp_path / "absent")
    assert "absent" in complaint(capsys, lambda: stages.run(stage, name, **{key: absent}))
    assert not (stages.folder / name).exists()


def test_a_scorer_of_another_distortion(stages, capsys):
    message = complaint(capsys, lambda: stages.run("calibration", "bad_metric", "--distortion.weights.mse=1"))
    assert "the scorer predicts 20 mse" in message


def test_more_processes_than_the_batch_can_be_split_over(stages, capsys):
    assert "cannot be split evenly" in complaint(
        capsys, lambda: stages.run("ar", "bad_split", "--train.accumulation=3")
    )


@pytest.mark.parametrize("arguments", [[], ["absent.yaml"]])
def test_no_configuration(capsys, arguments):
    for script in (cache_tokens, calibrate, compare_allocators, generate, train):
        message = complaint(capsys, lambda main=script.main: main(arguments))
        assert "usage: " in message or "no configuration file absent.yaml" in message
