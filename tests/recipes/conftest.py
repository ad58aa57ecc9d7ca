"""One chain of trained stages, shared by the tests of recipes."""

from collections.abc import Iterator

import pytest
from tiny_recipes import Stages


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features of real clips are kept in a folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Tokenizer, scorer, calibration and cache, made once. Tests add stages under names of their own."""
    stages = Stages(tmp_path_factory.mktemp("stages"))
    for stage in ("tokenizer", "scorer", "calibration", "cache", "ar", "classifier"):
        stages.run(stage)
    return stages
