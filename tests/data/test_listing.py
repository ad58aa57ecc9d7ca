"""Which files are videos, how tables name them, and who probes them: odd folders, names and lists."""

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from numbered_video import make_video, numbers, write_pictures

from genvid.data import (
    ClipConfig,
    ClipDataset,
    FolderConfig,
    video,
)

CLIP = ClipConfig(frames=8, resolution=(32, 64))


def read(dataset: ClipDataset, index: int, seed: int) -> list[int]:
    return numbers(dataset[index, seed]["video"].permute(1, 2, 3, 0).numpy())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("walk/b.mp4", "walk/a.avi", "run/deep/c.mkv"):
        make_video(tmp_path / name, 20, codec="libx264")
    return tmp_path


def link(target: Path, name: Path) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    name.symlink_to(target, target_is_directory=True)


def test_links_are_followed_and_cycles_are_not(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("disk")
    make_video(elsewhere / "jump" / "d.mp4", 20)
    link(elsewhere / "jump", folder / "jump")
    link(folder, folder / "run" / "deep" / "up")
    link(folder / "walk", folder / "walk" / "itself")
    link(elsewhere / "absent", folder / "sleep")
    dataset = ClipDataset(FolderConfig(str(folder)), CLIP)
    assert dataset.classes == ["jump", "run", "walk"]
    assert dataset.source.names == ["jump/d.mp4", "run/deep/c.mkv", "walk/a.avi", "walk/b.mp4"]
    assert dataset.source.left_out == [f"{folder / 'sleep'} is a link to {elsewhere / 'absent'}, which is absent"]


HIDDEN = [".ipynb_checkpoints", ".Trash-1000", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"]


def test_hidden_names_are_no_classes_and_no_videos(folder: Path) -> None:
    for name in (*(f"{name}/x.mp4" for name in HIDDEN), "walk/.ipynb_checkpoints/b.mp4", "walk/._b.mp4", "._walk"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no video")
    (folder / "walk" / "Thumbs.db").write_bytes(b"no picture")
    dataset = ClipDataset(FolderConfig(str(folder)), CLIP, strict=True)
    assert (dataset.classes, len(dataset)) == (["run", "walk"], 3)
    below = folder.rename(folder.with_name(".hidden"))  # a folder that was asked for is listed, whatever its name
    assert len(ClipDataset(FolderConfig(str(below)), CLIP)) == 3


def test_a_folder_of_pictures_is_a_video(folder: Path) -> None:
    write_pictures(folder / "run" / "one", 12)
    write_pictures(folder / "hop" / "two.5", 9)
    (folder / "walk" / "cover.png").write_bytes(b"beside videos pictures do not matter")
    dataset = ClipDataset(FolderConfig(str(folder)), CLIP, strict=True)
    assert dataset.source.names == ["hop/two.5", "run/deep/c.mkv", "run/one", "walk/a.avi", "walk/b.mp4"]
    assert read(dataset, 0, 0)[0] in (0, 1)
    flat = ClipDataset(FolderConfig(str(folder / "hop")), CLIP)
    assert (flat.classes, flat.source.names) == (["hop"], ["two.5"])
    manifest = folder / "list.csv"
    manifest.write_text("file,split,label\nhop/two.5,train,hop\nrun/one,train,run\n")
    assert ClipDataset(FolderConfig(str(folder), str(manifest)), CLIP).source.names == ["hop/two.5", "run/one"]
    with pytest.raises(ValueError, match=r"holds the pictures of one video"):
        ClipDataset(FolderConfig(str(folder / "run" / "one")), CLIP)


TABLES = {
    "a byte order mark": "\ufefffile,split,label\nwalk/a.avi,train,café\n".encode(),
    "UTF-16": "file,split,label\nwalk/a.avi,train,café\n".encode("utf-16"),
    "Latin-1": "file,split,label\r\nwalk/a.avi,train,café\r\n".encode("latin-1"),
    "no suffix": "file,split,label\nwalk/a,train,café\n".encode(),
    "spaces in the head": "file, split, label\nwalk/a.avi,train,café\n".encode(),
    "a cut last line": "split,label,file\ntrain,café,walk/a.avi\nval".encode(),
}


def test_a_picture_that_is_written_over_is_another_video(folder: Path) -> None:
    """Its folder has the same time of change."""
    write_pictures(folder / "walk" / "frames", 9)
    before = ClipDataset(FolderConfig(str(folder)), CLIP).fingerprint()
    assert ClipDataset(FolderConfig(str(folder)), CLIP).fingerprint() == before
    shutil.copyfile(folder / "walk" / "frames" / "00007.png", folder / "walk" / "frames" / "00003.png")
    assert ClipDataset(FolderConfig(str(folder)), CLIP).fingerprint() != before


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_manifests_as_spreadsheets_save_them(folder: Path, table: bytes) -> None:
    (folder / "list.csv").write_bytes(table)
    source = ClipDataset(FolderConfig(str(folder), str(folder / "list.csv")), CLIP).source
    assert (source.names, source.classes) == (["walk/a.avi"], ["café"])
    assert source.left_out == (
        [f"{folder / 'list.csv'} line 3 is cut short: it has no file, label"] if b"val" in table else []
    )


def test_a_listed_file_that_is_not_there_is_named(folder: Path) -> None:
    manifest = folder / "list.csv"
    manifest.write_text("file,split,label\nwalk/a.avi,train,walk\nwalk/z.avi,train,walk\nwalk/y,val,walk\n")
    source = ClipDataset(FolderConfig(str(folder), str(manifest), "train"), CLIP).source
    assert source.left_out == [f"{folder / 'walk/z.avi'} is listed but is not there"]
    with pytest.raises(ValueError, match=r"lists no video below .*/run: the first of its 3 is .*walk/a\.avi"):
        ClipDataset(FolderConfig(str(folder / "run"), str(manifest)), CLIP)
    manifest.write_text("file,split,label\ndeeper/walk/a.avi,train,walk\n")
    with pytest.raises(ValueError, match=r"none of the 1 listed videos can be used: .*deeper/walk/a\.avi is listed"):
        ClipDataset(FolderConfig(str(folder), str(manifest)), CLIP)


def test_names_that_are_not_utf8_can_be_read_and_written(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path_factory.mktemp("disk")) + b"/sa\xe9"))
    shutil.copytree(folder, odd / os.fsdecode(b"caf\xe9"))
    shutil.copy(folder / "walk" / "b.mp4", odd / os.fsdecode(b"caf\xe9/b\xff.mp4"))
    write_pictures(odd / os.fsdecode(b"caf\xe9/p\xff"), 9)
    (odd / os.fsdecode(b"caf\xe9/broken\xff.mp4")).write_bytes(b"no video")
    dataset = ClipDataset(FolderConfig(str(odd)), CLIP)
    assert dataset.classes == ["caf\\xe9"]
    assert dataset.source.names[:2] == ["caf\\xe9/b\\xff.mp4", "caf\\xe9/p\\xff"]
    "".join((*dataset.source.names, *dataset.classes, *dataset.source.left_out)).encode()
    assert "broken\\xff.mp4 cannot be decoded" in dataset.source.left_out[0]
    assert len(read(dataset, 0, 0)) == len(read(dataset, 1, 0)) == 8
    assert dataset.fingerprint() == ClipDataset(FolderConfig(str(odd)), CLIP).fingerprint()


def test_held_out_with_one_video_a_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label in ("run", "walk"):
        make_video(tmp_path / label / "a.mp4", 8)
    assert len(ClipDataset(FolderConfig(str(tmp_path), held_out=True), CLIP)) == 2
    with pytest.raises(ValueError, match=r"each class of .* has one video, which is held out, so no video is left"):
        ClipDataset(FolderConfig(str(tmp_path), held_out=False), CLIP)
    make_video(tmp_path / "run" / "b.mp4", 8)
    assert ClipDataset(FolderConfig(str(tmp_path), held_out=False), CLIP).source.names == ["run/a.mp4"]
    assert "classes of one video, which is held out, have none for training: walk" in caplog.text


def test_several_processes_probe_a_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "walk" / "broken.mp4").write_bytes(b"no video")
    probed, begun = [], threading.Event()

    def slowly(file: Path) -> Any:
        probed.append(file.name)
        begun.set()
        time.sleep(0.05)
        return video.probe(file)

    monkeypatch.setattr("genvid.data.sources.video_index.probe", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ClipDataset, FolderConfig(str(folder)), CLIP)
        begun.wait()
        second = pool.submit(ClipDataset, FolderConfig(str(folder)), CLIP)
        assert first.result().source.left_out == second.result().source.left_out
        assert first.result().fingerprint() == second.result().fingerprint()
    assert sorted(probed) == ["a.avi", "b.mp4", "broken.mp4", "c.mkv"]


def test_what_was_probed_before_an_interruption_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genvid.data.sources.video_index.os.cpu_count", lambda: 1)
    probed: list[str] = []

    def interrupted(file: Path) -> Any:
        if len(probed) == 2:
            raise KeyboardInterrupt
        probed.append(file.name)
        return video.probe(file)

    monkeypatch.setattr("genvid.data.sources.video_index.probe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ClipDataset(FolderConfig(str(folder)), CLIP)
    probed.pop()
    assert len(ClipDataset(FolderConfig(str(folder)), CLIP)) == 3
    assert probed == ["c.mkv", "b.mp4"]
