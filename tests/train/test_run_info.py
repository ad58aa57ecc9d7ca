"""`genvid info` on a run folder: what it trains, how far it is, what is whole, and how to go on."""

import pytest
import yaml
from test_trainer import train

from genvid.cli.inspection import InfoOptions, info


def told(capsys, folder) -> dict[str, str]:
    info(InfoOptions(str(folder)))
    lines = capsys.readouterr().out.splitlines()
    return {line.split("  ")[0].strip(): line.partition("  ")[2].strip() for line in lines}


def test_a_run_folder_explains_itself(tmp_path, capsys):
    run = tmp_path / "run"
    train(run, steps=8, save_every=4)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({"task": "toy", **config}))
    about = told(capsys, run)
    assert about["trains"] == "toy, in batches of 8"
    assert about["steps"] == "8 of 8 (100%)"
    assert about["newest checkpoint"] == f"{run / 'checkpoints' / 'step_00000008'} (step 8, whole)"
    assert about["to go on"] == "it is complete"
    assert float(about["last loss"]) > 0
    assert "clips a second, 0 hours left" in about["speed"]

    config["train"]["steps"] = 100
    (run / "config.yaml").write_text(yaml.safe_dump({"task": "toy", **config}))
    (run / "checkpoints" / "step_00000008" / "state.safetensors").write_bytes(b"torn")
    about = told(capsys, run)
    assert about["steps"] == "8 of 100 (8%)"
    assert "(step 4, whole); step_00000008 is damaged: state.safetensors has 4 bytes, but" in about["newest checkpoint"]
    assert about["to go on"] == f"accelerate launch recipes/train.py {run / 'config.yaml'}"

    (run / "metrics.jsonl").write_text("")  # a stop before the first record
    assert told(capsys, run)["steps"] == "4 of 100 (4%)"


@pytest.mark.parametrize("text", ["", "- 1", "train: {}", "train: {steps: 5}", "{task: x, train: {steps: many}}"])
def test_a_folder_of_another_program_is_no_training_run(tmp_path, capsys, text):
    (tmp_path / "config.yaml").write_text(text)
    assert told(capsys, tmp_path)["task"] == ("x" if "task" in text else "not a training run")
    (tmp_path / "config.yaml").write_text("task: [x")
    with pytest.raises(ValueError, match=r"config\.yaml is not valid YAML: while parsing"):
        info(InfoOptions(str(tmp_path)))
