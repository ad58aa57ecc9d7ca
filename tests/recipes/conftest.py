"""One chain of trained stages, shared by the tests of recipes."""

import pytest
from tiny_recipes import Stages


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Tokenizer, scorer, calibration and cache, made once. Tests add stages under names of their own."""
    stages = Stages(tmp_path_factory.mktemp("stages"))
    for stage in ("tokenizer", "scorer", "calibration", "cache", "ar", "classifier"):
        stages.run(stage)
    return stages
