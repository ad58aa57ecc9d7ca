"""Parts of different makes, which fit by shape: refused in one sentence, wherever they meet."""

import json
import shutil

import pytest
import torch
from tiny_recipes import GROUP, clips, training

from genvid.checkpoint import fingerprint, load_model
from genvid.data import write_video
from genvid.eval.report import Report
from genvid.tokens.cache import TokenCache

CLASSES = ["still", "right", "left", "up", "down", "circle", "grow", "shrink"]


@pytest.fixture(scope="module")
def retrained(stages):
    """A tokenizer of the same recipe but for its seed."""
    stages.run("tokenizer", "retrained", seed=1, discriminator=None, train=training())
    return stages.path("retrained/export")


@pytest.fixture
def folders(tmp_path):
    """Twelve clips in each of two class folders."""
    draw = torch.Generator().manual_seed(0)
    for number in range(24):
        video = torch.randint(256, (3, 8, 16, 16), generator=draw, dtype=torch.uint8)
        write_video(tmp_path / "videos" / ("run", "walk")[number % 2] / f"{number}.mp4", video, 8)
    return tmp_path / "videos"


def complaint(capsys, run):
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run()
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def forget(export, target):
    """A copy of an export as older versions wrote it."""
    shutil.copytree(export, target)
    config = json.loads((target / "config.json").read_text())
    config.get("genvid", config).pop("origin")
    (target / "config.json").write_text(json.dumps(config))
    return str(target)


def test_exports_record_what_they_were_made_from(stages):
    tokenizer = fingerprint(stages.path("tokenizer/export"))
    origins = {stage: load_model(stages.path(f"{stage}/export")).origin for stage in ("scorer", "ar", "classifier")}
    assert origins["scorer"].made_from["tokenizer"] == origins["ar"].made_from["tokenizer"] == tokenizer
    assert origins["ar"].made_from["cache"]["scorer"] == fingerprint(stages.path("scorer/export"))
    assert origins["ar"].classes == origins["classifier"].classes == CLASSES
    assert origins["classifier"].made_from["data"]["clips"] == 64


def test_the_groups_of_a_cache_are_those_of_its_allocator(stages, capsys):
    tokens = {**stages.configs["cache"]["tokens"], "allocator": {"type": "joint", "tokens_per_video": 10}}
    message = complaint(capsys, lambda: stages.run("cache", "uneven", tokens=tokens, group_size=96))
    assert "group_size is a multiple of tokens.allocator.group_size, 64 clips, got 96" in message
    stages.run("cache", "wide", group_size=4 * GROUP)
    wide, usual = TokenCache.open(stages.folder / "wide"), TokenCache.open(stages.folder / "cache")
    assert wide.info == usual.info
    assert wide.info.group_size == GROUP
    assert torch.equal(wide.lengths, usual.lengths)
    stages.run("cache", "single", tokens={**tokens, "allocator": {"type": "uniform", "tokens_per_video": 8}})
    assert TokenCache.open(stages.folder / "single").info.group_size == 1


@pytest.mark.parametrize("kept", ["scorer", "calibration", "ar"])
def test_a_retrained_tokenizer_is_refused_by_what_was_made_with_the_first(stages, retrained, capsys, kept):
    tokens = {"tokenizer": retrained, "allocator": {"type": "uniform", "tokens_per_video": 16}}
    tokens |= {kept: stages.configs["cache"]["tokens"][kept]} if kept != "ar" else {}
    what = stages.path("ar/export") if kept == "ar" else tokens[kept]
    message = complaint(capsys, lambda: stages.run("generation", f"mixed_{kept}", tokens=tokens))
    first, second = fingerprint(stages.path("tokenizer/export")), fingerprint(retrained)
    assert f"{what} was not made from this tokenizer (tokenizer is {first} there, {second} here)" in message


def test_a_retrained_scorer_is_refused_by_the_calibration(stages, capsys):
    stages.run("scorer", "rescored", seed=1)
    message = complaint(capsys, lambda: stages.run("evaluation", "mixed_scorer", scorer=stages.path("rescored/export")))
    assert "calibration.json was not made from this scorer" in message


def test_exports_of_older_versions_load_with_a_warning(stages, retrained, caplog):
    model = forget(stages.folder / "ar/export", stages.folder / "older_ar")
    stages.run("generation", "older", model=model, tokens={**stages.configs["generation"]["tokens"]})
    assert f"nothing was checked: {model} has no record of the tokenizer that it was made from" in caplog.text
    assert f"nothing was checked: {model} has no record of its classes" in caplog.text


def test_classes_are_given_their_numbers_by_name(stages):
    """The same model with its classes numbered the other way round gives the same samples of the same classes."""
    turned = load_model(stages.path("ar/export"))
    layout, table = turned.layout, turned.llama.model.embed_tokens.weight.data
    first = layout.num_outputs
    table[first : first + len(CLASSES)] = table[first : first + len(CLASSES)].flip(0)
    turned.origin.classes.reverse()
    turned.save(stages.folder / "turned")
    usual = stages.run("generation", "numbered")
    other = stages.run("generation", "renumbered", model=stages.path("turned"))
    lines = [(folder / "samples" / "index.jsonl").read_text() for folder in (usual, other)]
    assert lines[0] == lines[1]


def test_a_judge_is_asked_by_name(stages):
    turned = load_model(stages.path("classifier/export"))
    turned.head.weight.data, turned.head.bias.data = turned.head.weight.flip(0), turned.head.bias.flip(0)
    turned.origin.classes.reverse()
    turned.save(stages.folder / "turned_classifier")
    usual = stages.run("generation", "judged")
    other = stages.run("generation", "judged_by_name", classifier=stages.path("turned_classifier"))
    names = ("class as asked", "classifier on real clips")
    values = [[Report.load(folder / "report.json").value(name) for name in names] for folder in (usual, other)]
    assert values[0] == values[1]


def test_data_of_other_classes_are_refused_with_both_lists(stages, folders, capsys):
    data = {"source": {"type": "folder", "path": str(folders)}, "clip": clips()["clip"]}
    message = complaint(capsys, lambda: stages.run("generation", "other_classes", data=data, count=2))
    assert f"was trained on the classes {', '.join(CLASSES)}, but these data have run, walk" in message


def test_a_run_is_not_resumed_on_data_that_changed(stages, folders, capsys, caplog):
    data = {"source": {"type": "folder", "path": str(folders)}, "clip": clips()["clip"]}

    def train(steps):
        return stages.run("classifier", "changing", data=data, train=training(steps=steps))

    run = train(1)
    record = run / "origin.json"
    (folders / "jump").mkdir()
    (folders / "run" / "0.mp4").rename(folders / "jump" / "0.mp4")
    message = complaint(capsys, lambda: train(2))
    assert (
        f"{run} was not made from this class list (class list is ['run', 'walk'] there, ['jump', 'run', 'walk']"
        in message
    )
    assert f"delete {record}" in message
    (folders / "jump" / "0.mp4").rename(folders / "run" / "0.mp4")
    train(2)
    (folders / "run" / "0.mp4").write_bytes((folders / "walk" / "1.mp4").read_bytes())
    assert "data.contents is" in complaint(capsys, lambda: train(3))
    (folders / "walk" / "1.mp4").unlink()
    assert "data.clips is 24 there, 23 here" in complaint(capsys, lambda: train(3))
    record.unlink()
    train(3)
    assert f"nothing was checked: {run} has no record of the data" in caplog.text
    assert json.loads(record.read_text())["made_from"]["data"]["clips"] == 23


def test_a_run_is_not_resumed_on_a_cache_or_a_tokenizer_that_changed(stages, retrained, capsys):
    cache = stages.folder / "changing_cache"
    shutil.copytree(stages.folder / "cache", cache)
    stages.run("ar", "on_cache", cache=str(cache), train=training(steps=1))
    shutil.rmtree(cache)
    stages.run("cache", "changing_cache", data=clips(48))
    message = complaint(capsys, lambda: stages.run("ar", "on_cache", cache=str(cache), train=training(steps=2)))
    assert "was not made from this cache (cache.clips is 64 there, 48 here)" in message
    tokenizer = stages.folder / "changing_tokenizer"
    shutil.copytree(stages.folder / "tokenizer/export", tokenizer)
    stages.run("scorer", "on_tokenizer", tokenizer=str(tokenizer), train=training(steps=1))
    load_model(retrained).save(tokenizer)
    message = complaint(
        capsys, lambda: stages.run("scorer", "on_tokenizer", tokenizer=str(tokenizer), train=training(steps=2))
    )
    assert "was not made from this tokenizer" in message


def test_samples_are_not_continued_with_prompts_that_changed(stages, folders, capsys):
    data = {"source": {"type": "folder", "path": str(folders)}, "clip": clips()["clip"]}
    stages.run("ar", "predictor", context_blocks=1)
    judge = stages.run("classifier", "judge_of_two", data=data) / "export"
    changes = {"model": stages.path("predictor/export"), "classifier": str(judge), "data": data, "count": 16}
    stages.run("generation", "prompted", **changes)
    (folders / "run" / "0.mp4").write_bytes((folders / "walk" / "1.mp4").read_bytes())
    message = complaint(capsys, lambda: stages.run("generation", "prompted", **changes))
    assert "samples was not made from this data (data.contents is" in message
