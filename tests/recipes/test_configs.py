"""Every recipe that is shipped can be read."""

from pathlib import Path

import pytest
import yaml

from genvid import config
from genvid.recipes.cache_tokens import CacheRun
from genvid.recipes.calibrate import CalibrationRun
from genvid.recipes.evaluate import EvaluationRun
from genvid.recipes.evaluate_lit import LITEvaluationRun
from genvid.recipes.generate import GenerationRun
from genvid.recipes.runs import RUNS

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
LAUNCH = sorted((CONFIGS / "accelerate").glob("*.yaml"))
RECIPES = sorted(set(CONFIGS.rglob("*.yaml")) - set(LAUNCH))
BY_NAME = {
    "calibration": CalibrationRun,
    "cache": CacheRun,
    "evaluation": EvaluationRun,
    "keep_rates": LITEvaluationRun,
    "generation": GenerationRun,
    "prediction": GenerationRun,
}


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipes_are_read_into_their_runs(path):
    task = yaml.safe_load(path.read_text()).get("task")
    run = config.load(RUNS[task] if task else BY_NAME[path.stem], path)
    assert config.decode(type(run), config.encode(run)) == run


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_training_recipes_have_an_optimizer_for_each_phase(path):
    recipe = yaml.safe_load(path.read_text())
    if "train" in recipe:
        phases = ["generator", "discriminator"] if recipe.get("discriminator") else ["model"]
        assert list(recipe["train"]["optimizers"]) == phases


@pytest.mark.parametrize("path", LAUNCH, ids=name)
def test_launch_files_say_how_many_processes(path):
    launch = yaml.safe_load(path.read_text())
    assert launch["num_processes"] >= 1
    assert launch["distributed_type"] in ("NO", "MULTI_GPU", "DEEPSPEED")
    assert (launch["num_processes"] > 1) == (launch["distributed_type"] != "NO")


def test_there_are_recipes():
    assert len(RECIPES) >= 10
    assert len(LAUNCH) >= 2
