"""Tests here probe files: each does so with its own memory of what was found."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def probe_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for the user's cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
