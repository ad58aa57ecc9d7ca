"""Curves of runs: records without speeds, one's own beside others."""

import json
from xml.etree import ElementTree

import pytest

from genvid.recipes.training_curves import MOST_RECORDS, main, thinned
from genvid.train.run import read_records


def records(steps, every=1):
    return [
        {"step": n, "loss": 1 / 3 / n, "clips_per_second": 4.0} | ({"held_out/loss": 1 / n} if n % every == 0 else {})
        for n in range(1, steps + 1)
    ]


def write(folder, lines):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_a_run_beside_another(tmp_path):
    write(tmp_path / "mine", records(7, every=2)), write(tmp_path / "theirs", records(9, every=3))
    main([str(tmp_path / "curves"), str(tmp_path / "theirs")])
    reference = tmp_path / "curves" / "theirs.jsonl"
    assert [line["step"] for line in read_records(reference)] == list(range(1, 10))
    main([str(tmp_path / "curves"), str(tmp_path / "mine"), "--beside", str(reference)])
    drawing = ElementTree.parse(tmp_path / "curves" / "mine.svg").getroot()
    names = [element.text for element in drawing.iter() if element.tag.endswith("tspan")]
    assert names == ["training", "held out", "training, theirs", "held out, theirs"]
    points = [len(e.attrib["points"].split()) for e in drawing.iter() if e.tag.endswith("polyline")]
    assert points == [7, 3, 9, 3]


def test_of_a_run_with_a_discriminator_the_loss_of_the_generator_is_drawn(tmp_path):
    def of_phases(record):
        names = {"loss": "generator/loss", "held_out/loss": "held_out/generator/loss"}
        return {names.get(key, key): value for key, value in record.items()} | {"discriminator/loss": 1.4}

    write(tmp_path / "run", [of_phases(record) for record in records(6, every=3)])
    main([str(tmp_path / "curves"), str(tmp_path / "run")])
    drawing = ElementTree.parse(tmp_path / "curves" / "run.svg").getroot()
    points = [len(e.attrib["points"].split()) for e in drawing.iter() if e.tag.endswith("polyline")]
    assert points == [6, 2]


def test_records_are_thinned_but_keep_held_out_losses():
    kept = thinned(records(1000, every=250))
    assert len(kept) <= MOST_RECORDS + 4
    assert {250, 500, 750, 1000} <= {line["step"] for line in kept}
    assert kept[0] == {"step": 10, "loss": 0.033333}


def test_folders_without_records_are_refused(tmp_path, capsys):
    run = write(tmp_path / "run", records(2))
    for words, arguments in (("no metrics.jsonl", ["x"]), ("no records y", [run, "--beside", "y"])):
        with pytest.raises(SystemExit):
            main([str(tmp_path), *arguments])
        assert words in capsys.readouterr().err


def test_runs_of_one_name_do_not_replace_each_other(tmp_path, capsys):
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        runs.append(write(tmp_path / name / "tokenizer", records(2)))
    with pytest.raises(SystemExit):
        main([str(tmp_path / "curves"), *runs])
    assert "several runs are named tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "curves").exists()
