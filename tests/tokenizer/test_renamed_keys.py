"""Configurations and exports of older versions load: renamed and missing keys, weights under their names on disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tiny_codecs import cosmos, make_lit

from genvid import config
from genvid.checkpoint import Model, load_model, read_weights
from genvid.config import ConfigError
from genvid.provenance import Origin
from genvid.recipes.runs import RUNS
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.lit.codecs.codec import CodecConfig
from genvid.tokenizer.lit.codecs.torchscript_codec import TorchScriptCodecConfig
from genvid.tokenizer.quantizer import FSQConfig
from genvid.train.run import check_run_folder, claim_run_folder

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
STACK = StackConfig(16, 1, 2)
POOLED = AdapTokConfig(8, (16, 16), (4, 8, 8), 6, STACK, STACK, FSQConfig((5, 5)), pooled_queries=True)
OLD_KEYS = {"pooled_queries": "shortcuts", "novelty": "surprise", "tile": "window", "codec_window": "window"}


NEW_KEYS = {"geometry": {"type": "absolute"}, "picture": None, "window": None}


def with_old_keys(data: object) -> object:
    if not isinstance(data, dict):
        return data
    known = {key: value for key, value in data.items() if key not in NEW_KEYS or value != NEW_KEYS[key]}
    return {OLD_KEYS.get(key, key): with_old_keys(value) for key, value in known.items()}


def older(model: Model, folder: Path) -> Path:
    """The export of `model` as older versions wrote it."""
    model.save(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(with_old_keys(json.loads(file.read_text()))))
    return folder


def test_an_export_of_a_tokenizer_with_shortcuts(tmp_path: Path) -> None:
    tokenizer = AdapTok(POOLED).eval()
    folder = older(tokenizer, tmp_path / "export")
    held = json.loads((folder / "config.json").read_text())
    assert held["shortcuts"] is True
    assert "geometry" not in held
    assert "memory" in read_weights(folder)
    loaded = load_model(folder, AdapTok)
    assert loaded.config == POOLED
    video = torch.rand(1, 3, 8, 16, 16) * 2 - 1
    assert torch.equal(loaded.decode(loaded.encode(video)), tokenizer.decode(tokenizer.encode(video)))


def test_an_export_of_a_scorer_that_reads_surprise(tmp_path: Path) -> None:
    scorer = Scorer(ScorerConfig.for_tokenizer(POOLED, STACK, sizes=(1, 3, 6), metric="1 mse", gains=True))
    scorer.evidence_scale.mean.fill_(0.1)
    folder = older(scorer, tmp_path / "export")
    held = json.loads((folder / "config.json").read_text())
    assert held["surprise"] is True
    assert not {"window", "picture"} & set(held)
    assert {"evidence_scale.mean", "evidence_scale.std", "target_scale.mean"} <= set(read_weights(folder))
    loaded = load_model(folder, Scorer)
    assert loaded.config == scorer.config
    assert loaded.config.novelty
    assert torch.equal(loaded.evidence_scale.mean, scorer.evidence_scale.mean)


def test_an_export_of_lit_with_two_windows(tmp_path: Path) -> None:
    lit = make_lit(cosmos(tmp_path / "codec", window=9))
    lit.origin = Origin({"codec": lit.codec.fingerprint()})
    folder = older(lit, tmp_path / "export")
    held = json.loads((folder / "config.json").read_text())
    assert (held["codec"]["window"], held["inpainter"]["window"]) == (9, 3)
    assert load_model(folder).config == lit.config


@pytest.mark.parametrize(("file", "key"), [("lit/inpainter", "inpainter"), ("demo/tokenizer", None)])
def test_recipes_with_old_keys(file: str, key: str | None, tmp_path: Path) -> None:
    data = config.read(CONFIGS / f"{file}.yaml")
    older_file = tmp_path / "recipe.yaml"
    older_file.write_text(yaml.safe_dump(with_old_keys(yaml.safe_load((CONFIGS / f"{file}.yaml").read_text()))))
    assert older_file.read_text().count("window:" if key else "shortcuts:") == 1
    cls = RUNS[data["task"]]
    assert config.load(cls, older_file) == config.load(cls, CONFIGS / f"{file}.yaml")


def test_strides_of_an_autoencoder_and_torchscript_windows() -> None:
    file = CONFIGS / "lit_tiny" / "autoencoder.yaml"
    run = config.load(RUNS["autoencoder"], file, ["--model.time", "4", "--model.space", "8"])
    assert run == config.load(RUNS["autoencoder"], file)
    codec = config.decode(CodecConfig, {"type": "torchscript", "folder": "cosmos", "window": 9})
    assert codec == TorchScriptCodecConfig("cosmos", codec_window=9)


def test_old_and_new_key_together_are_refused() -> None:
    data = {**config.encode(POOLED), "shortcuts": False}
    with pytest.raises(ConfigError, match="shortcuts and pooled_queries are one key: shortcuts is now called pooled_"):
        config.decode(AdapTokConfig, data)


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    run = config.load(RUNS["adaptok"], CONFIGS / "demo" / "tokenizer.yaml", ["--output_dir", str(tmp_path)])
    claim_run_folder(tmp_path, run, Origin())
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(with_old_keys(yaml.safe_load(file.read_text()))))
    (tmp_path / "metrics.jsonl").touch()
    assert "shortcuts: true" in file.read_text()
    assert "geometry" not in file.read_text()
    check_run_folder(tmp_path, run, Origin())
    with pytest.raises(ValueError, match=r"another run \(model.pooled_queries is True there, False here\)"):
        check_run_folder(tmp_path, replace(run, model=replace(run.model, pooled_queries=False)), Origin())
