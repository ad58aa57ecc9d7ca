"""Tests here index videos and keep features of real clips: each does so with a cache of its own."""

from pathlib import Path

import pytest
from toy_models import SHARED


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for the user's cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """The real files in the official layout, those of the lowest group as the test split."""
    files = SHARED / "video" / "ucf101"
    if not files.is_dir():
        pytest.skip("the shared UCF-101 files are not on this machine")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (tmp_path / "UCF-101").symlink_to(files)
    paths = sorted(str(path.relative_to(files)) for path in files.rglob("*.avi"))
    classes = sorted({path.split("/")[0] for path in paths})
    (lists / "classInd.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(classes, 1)))
    train, test = ([path for path in paths if ("_g01_" in path) == held] for held in (False, True))
    numbered = "".join(f"{path} {classes.index(path.split('/')[0]) + 1}\n" for path in train)
    (lists / "trainlist01.txt").write_text(numbered)
    (lists / "testlist01.txt").write_text("".join(f"{path}\n" for path in test))
    return tmp_path / "UCF-101"
