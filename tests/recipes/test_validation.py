"""The loss on held-out data while a stage trains."""

import shutil

import pytest
import torch
from tiny_recipes import clips, records

from genvid.checkpoint import read_weights
from genvid.data import write_video

pytestmark = pytest.mark.gpu
TERMS = {
    "tokenizer": {"generator/loss", "generator/l1", "generator/perceptual", "discriminator/loss"},
    "scorer": {"loss", "distortion"},
    "ar": {"loss", "accuracy"},
    "classifier": {"loss", "accuracy"},
}


@pytest.fixture(scope="module")
def validations(stages):
    """Stage -> its section, of other clips than those it trains on."""
    stages.run("cache", "cache_held_out", data=clips(32, seed=1))
    source = {"source": clips(32, seed=1)["source"], "every": 1, "batches": 2}
    rows = {"cache": stages.path("cache_held_out"), "every": 1, "batches": 2}
    return {stage: rows if stage == "ar" else source for stage in TERMS}


def validated(stages, validations, stage):
    """The folder of the run of one process with held-out data, which the first call trains."""
    return stages.run(stage, f"{stage}_validated", validation=validations[stage])


def held_out(folder):
    prefix = "held_out/"
    return [{n.removeprefix(prefix): v for n, v in r.items() if n.startswith(prefix)} for r in records(folder)]


@pytest.mark.parametrize("stage", TERMS)
def test_a_stage_is_trained_alike_with_and_without(stages, validations, stage):
    folder = validated(stages, validations, stage)
    first, second = held_out(folder)
    assert TERMS[stage] <= first.keys()
    assert first != second
    if torch.cuda.is_available():
        return
    plain = read_weights(stages.folder / stage / "export")
    for name, value in read_weights(folder / "export").items():
        assert torch.equal(value, plain[name]), name


def test_two_processes_measure_what_one_does(stages, validations):
    pytest.importorskip("deepspeed")
    cases = [("ddp", "ar"), ("fsdp2", "ar"), ("zero3", "ar"), ("ddp", "tokenizer"), ("fsdp2", "tokenizer")]
    runs = [(s, stages.write(stage, f"{stage}_validated_{s}", validation=validations[stage])) for s, stage in cases]
    stages.launch_all(runs)
    for strategy, stage in cases:
        one = held_out(validated(stages, validations, stage))
        two = held_out(stages.folder / f"{stage}_validated_{strategy}")
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=1e-4), strategy


def test_a_discriminator_is_measured_also_after_steps_in_which_it_does_not_train(stages, validations):
    discriminator = {**stages.configs["tokenizer"]["discriminator"], "every": 2, "start_step": 1}
    train = {**stages.configs["tokenizer"]["train"], "steps": 3}
    changes = {"discriminator": discriminator, "train": train, "validation": validations["tokenizer"]}
    folder = stages.run("tokenizer", "tokenizer_every_second", **changes)
    assert ["discriminator/loss" in record for record in held_out(folder)] == [False, True, True]
    assert ["discriminator/loss" in record for record in records(folder)] == [False, True, False]


def test_validation_may_begin_in_the_middle_of_a_run(stages, validations):
    stages.run("classifier", "classifier_later")
    train = {**stages.configs["classifier"]["train"], "steps": 3}
    folder = stages.run("classifier", "classifier_later", train=train, validation=validations["classifier"])
    assert [bool(record) for record in held_out(folder)] == [False, False, True]


@pytest.mark.parametrize(
    ("stage", "change", "reason"),
    [
        ("classifier", {"source": clips()["source"]}, "validation.source is data.source"),
        ("ar", {"cache": "cache"}, "holds the clips that are trained on"),
        ("tokenizer", {"every": 0}, "validation.every must be at least 1, got 0"),
    ],
)
def test_bad_held_out_data_is_refused_before_training(stages, validations, capsys, stage, change, reason):
    if "cache" in change:
        change = {"cache": stages.path("cache")}
    with pytest.raises(SystemExit):
        stages.run(stage, f"{stage}_refused", validation={**validations[stage], **change})
    assert reason in capsys.readouterr().err
    assert not (stages.folder / f"{stage}_refused").exists()


def test_videos_that_are_trained_on_too_are_named_and_refused_where_they_are_all(stages, tmp_path, caplog, capsys):
    for number in range(3):
        video = torch.randint(256, (3, 8, 16, 16), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        write_video(tmp_path / "all" / "a" / f"{number}.mp4", video, fps=8)
    more = tmp_path / "more" / "a"
    more.mkdir(parents=True)
    shutil.copy(tmp_path / "all" / "a" / "0.mp4", more / "copy.mp4")
    folder = {"type": "folder", "path": str(tmp_path / "all")}
    data = {"source": {"type": "joined", "sources": [folder, clips()["source"]]}, "clip": clips()["clip"]}

    def train_beside(path, **source):
        section = {"source": {"type": "folder", "path": str(tmp_path / path), **source}, "every": 1, "batches": 1}
        stages.run("scorer", f"scorer_beside_{path}", data=data, validation=section)

    with pytest.raises(SystemExit):
        train_beside("all", held_out=True)
    assert "1 of the 1 videos of validation.source are also trained on: hold them out" in capsys.readouterr().err
    write_video(more / "other.mp4", video.flip(1), fps=8)
    train_beside("more")
    assert "1 of the 2 videos of validation.source are also trained on: a/copy.mp4" in caplog.text
