"""Files and folders that are whole or absent, whoever writes beside."""

import os
import threading
import time

import pytest

from genvid import files
from genvid.files import write_atomically


def test_a_file_is_whole_or_as_it_was(tmp_path):
    target = tmp_path / "file"
    with write_atomically(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(FileNotFoundError), write_atomically(target) as temporary:
        temporary.write_text((tmp_path / "absent").read_text())
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """As on two hosts, where process ids may be equal."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    ready, written = threading.Barrier(2), []

    def write(text: str) -> None:
        with write_atomically(tmp_path / "file") as temporary:
            temporary.write_text(text)
            ready.wait(10)
            written.append(temporary.read_text())

    writers = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(written) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_linked_folder_is_replaced_behind_its_link(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    with write_atomically(tmp_path / "link") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("")
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["new"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "of days").write_text("")
    with pytest.raises(IsADirectoryError, match="work is a folder"), write_atomically(tmp_path / "work") as temporary:
        temporary.write_text("a page")
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    assert (tmp_path / "work" / "of days").is_file()


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path):
    files._remove_stale.cache_clear()
    old, fresh, folder = (files.temporary_path(tmp_path / name) for name in ("old", "fresh", "folder"))
    users = tmp_path / ".notes.tmp"
    for path in (old, fresh, users):
        path.write_text("")
    folder.mkdir()
    (folder / "still written").write_text("")
    long_ago = time.time() - 2 * files._STALE_SECONDS
    for path in (old, users, folder):
        os.utime(path, (long_ago, long_ago))
    with write_atomically(tmp_path / "file") as temporary:
        temporary.write_text("")
    assert sorted(tmp_path.iterdir()) == sorted([fresh, users, folder, tmp_path / "file"])
