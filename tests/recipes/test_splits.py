"""Losses, weights, running statistics and journals do not depend on how a global batch is split."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from tiny_recipes import Stages, records, training
from torch import Tensor

from genvid.recipes import train
from genvid.train.run import newest_complete

MEASURED = {"items_per_second", "clips_per_second", "data_wait"}
SPLITS = [(1, 2), (1, 4), (2, 1), (2, 2)]
"""(processes, micro-batches of each) that are compared with one micro-batch of one process."""
LIT_CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "lit_tiny"
STATISTICS = {
    "fsq": ["tokenizer.quantizer.whiten.covariance", "lecam.real_mean", "lecam.fake_mean"],
    "vq": ["tokenizer.quantizer.whiten.mean", "restart.usage", "tokenizer.quantizer.embedding"],
    "scorer": ["scorer.target_scale.mean", "scorer.evidence_scale.std"],
    "published_scorer": ["scorer.target_scale.std", "scorer.evidence_scale.mean"],
    "ar": [],
    "classifier": [],
    "autoencoder": ["autoencoder.moments"],
    "inpainter": [],
}
"""Recipe -> running statistics that every step must move."""
WITHOUT_GRADIENT = {"classifier": ["trunk.0.0.bias"]}
"""Weights whose gradient is rounding alone, as a norm follows: Adam makes steps of full size of it."""


def recipes(stages: Stages) -> dict[str, dict[str, Any]]:
    """One small recipe for every task, and for every component with statistics of its own."""
    tokenizer, scorer = stages.configs["tokenizer"], stages.configs["scorer"]
    quantizers = {
        "fsq": {"type": "fsq", "levels": [4, 4], "whiten": True},
        "vq": {"type": "vq", "codebook_size": 32, "code_dim": 4, "whiten": True},
    }
    models = {name: {**tokenizer["model"], "quantizer": quantizer} for name, quantizer in quantizers.items()}
    restarted = {**tokenizer["objective"], "restart": {"threshold": 0.9, "decay": 0.5}}
    plain = {"discriminator": None, "train": training()}
    found = {
        "fsq": {**tokenizer, "model": models["fsq"]},
        "vq": {**tokenizer, **plain, "model": models["vq"], "objective": restarted},
        "scorer": scorer,
        "published_scorer": {**scorer, "gains": False},
        "ar": stages.configs["ar"],
        "classifier": stages.configs["classifier"],
    }
    for name in ("autoencoder", "inpainter"):
        found[name] = yaml.safe_load((LIT_CONFIGS / f"{name}.yaml").read_text())
        found[name]["data"]["source"]["clips"], found[name]["data"]["clip"]["frames"] = 16, 9
        found[name]["train"] = training()
    found["inpainter"]["model"]["codec"]["source"] = stages.path("autoencoder_1x1/export")
    found["inpainter"]["objective"] = {"pixel_weight": 1.0, "pixel_share": 0.5}
    return found


@pytest.fixture(scope="module")
def split(stages: Stages) -> Path:
    """Every recipe trained for three steps under every split, as {recipe}_{processes}x{micro-batches}."""
    pytest.importorskip("diffusers", reason="codecs of diffusers need the extra genvid[lit]")
    launched = []
    for name, recipe in recipes(stages).items():
        for processes, accumulation in [(1, 1), *SPLITS]:
            settings = {"steps": 3, "accumulation": accumulation, "save_every": 1, "keep_checkpoints": 3}
            file = stages.folder / f"{name}_{processes}x{accumulation}.yaml"
            run = {**recipe, "output_dir": str(file.with_suffix("")), "train": {**recipe["train"], **settings}}
            file.write_text(yaml.safe_dump(run))
            if processes == 1:
                train.main([str(file)])
            else:
                launched.append(("ddp", file))
    stages.launch_all(launched)
    return stages.folder


def states(folder: Path) -> list[dict[str, Tensor]]:
    """Everything that the checkpoints of a run hold, step by step."""
    assert newest_complete(folder).name == "step_00000003"
    files = sorted(folder.glob("checkpoints/*/state.safetensors"))
    return [safetensors.torch.load_file(file) for file in files]


@pytest.mark.parametrize(("processes", "accumulation"), SPLITS)
@pytest.mark.parametrize("name", STATISTICS)
def test_any_split_trains_as_one_batch_does(split: Path, name: str, processes: int, accumulation: int) -> None:
    one, other = split / f"{name}_1x1", split / f"{name}_{processes}x{accumulation}"
    for a, b in zip(records(one), records(other), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - MEASURED:
            assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-6), key
    before: dict[str, Tensor] = {}
    for a, b in zip(states(one), states(other), strict=True):
        for key in STATISTICS[name]:
            torch.testing.assert_close(b[f"task.{key}"], a[f"task.{key}"], rtol=1e-5, atol=1e-6)
            assert not a[f"task.{key}"].equal(before.get(key, torch.zeros(())))
            before[key] = a[f"task.{key}"]
        for key in a:
            if not key.startswith("optimizer") and not key.endswith(tuple(WITHOUT_GRADIENT.get(name, ["-"]))):
                # Adam makes steps of up to the learning rate, 1e-3, of gradients near rounding, as of rare codes.
                torch.testing.assert_close(b[key], a[key], rtol=1e-4, atol=2e-4)
