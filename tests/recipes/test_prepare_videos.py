"""Preparing videos: all that can be read, once; what cannot is named; an interruption costs nothing."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from genvid.data import ClipConfig, ClipDataset, FolderConfig, write_video
from genvid.data.images import png
from genvid.recipes import prepare_videos

CLIP = {"frames": 4, "resolution": [16, 16]}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for number, name in enumerate(("a/one.mp4", "a/two.mp4", "b/three.mp4", "b/broken.mp4")):
        video = torch.randint(256, (3, 8, 32, 48), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "in" / name, video, fps=8)
    broken = tmp_path / "in" / "b" / "broken.mp4"
    broken.write_bytes(broken.read_bytes()[:100])
    data = {"source": {"type": "folder", "path": str(tmp_path / "in")}, "clip": CLIP}
    file = tmp_path / "prepare.yaml"
    file.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "out"), "data": data, "workers": 1}))
    return file


def times(root: Path) -> dict[str, int]:
    return {str(file.relative_to(root)): file.stat().st_mtime_ns for file in sorted(root.rglob("*.mp4"))}


def test_videos_are_prepared_once(recipe, tmp_path, capsys):
    root = tmp_path / "out"
    prepare_videos.main([str(recipe)])
    assert "prepared 3 videos, 24 frames" in capsys.readouterr().out
    first = times(root)
    assert list(first) == ["a/one.mp4", "a/two.mp4", "b/three.mp4"]
    assert "broken.mp4" in (root / "index-00000-of-00001.problems.txt").read_text()
    # What is missing is made again, and nothing else.
    (root / "a" / "two.mp4").unlink()
    (root / "b" / "three.mp4").write_bytes(b"cut short")
    prepare_videos.main([str(recipe)])
    second = times(root)
    assert [name for name in first if first[name] != second[name]] == ["a/two.mp4", "b/three.mp4"]
    dataset = ClipDataset(FolderConfig(str(root)), ClipConfig(frames=4, resolution=(16, 16)), strict=True)
    assert (len(dataset), dataset.classes) == (3, ["a", "b"])


def test_an_error_that_is_not_of_a_video_ends_the_command_before_the_other_videos(monkeypatch, tmp_path):
    prepared = []

    def fail_first(source, info, target, how):
        prepared.append(target)
        time.sleep(0.05)
        raise OSError("No space left on device")

    def threads(workers, context, **others):
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(prepare_videos, "ProcessPoolExecutor", threads)
    monkeypatch.setattr(prepare_videos, "prepare_video", fail_first)
    videos = {f"{number}.mp4": (f"{number}.mp4", None) for number in range(200)}
    with pytest.raises(OSError, match="No space left"):
        list(prepare_videos._prepare(tmp_path, tmp_path / "out", videos, None, workers=1))
    assert len(prepared) < 200


def test_ctrl_c_costs_the_videos_that_are_under_way(monkeypatch, recipe, tmp_path):
    root, prepare = tmp_path / "out", prepare_videos._prepare

    def interrupted(*arguments):
        yield next(prepare(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_videos, "_prepare", interrupted)
        with pytest.raises(SystemExit):
            prepare_videos.main([str(recipe)])
    (name,) = json.loads((root / "index-00000-of-00001.json").read_text())["videos"]
    before = times(root)[name]
    prepare_videos.main([str(recipe)])
    assert (len(times(root)), times(root)[name]) == (3, before)


def test_a_video_that_changed_is_prepared_again(recipe, tmp_path):
    root = tmp_path / "out"
    prepare_videos.main([str(recipe)])
    first = times(root)
    changed = torch.randint(256, (3, 8, 32, 48), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
    write_video(tmp_path / "in" / "a" / "two.mp4", changed, fps=8)
    prepare_videos.main([str(recipe)])
    second = times(root)
    assert [name for name in first if first[name] != second[name]] == ["a/two.mp4"]


def test_another_way_is_another_folder(recipe, capsys):
    prepare_videos.main([str(recipe)])
    with pytest.raises(SystemExit):
        prepare_videos.main([str(recipe), "--quality", "20"])
    assert "was prepared as" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare_videos.main([str(recipe), "--part", "2", "--parts", "2"])
    assert "part is 0 to parts - 1" in capsys.readouterr().err


def test_machines_share_the_work(recipe, tmp_path):
    for part in range(2):
        prepare_videos.main([str(recipe), "--parts", "2", "--part", str(part)])
    assert list(times(tmp_path / "out")) == ["a/one.mp4", "a/two.mp4", "b/three.mp4"]
    assert len(list((tmp_path / "out").glob("index-*-of-00002.json"))) == 2
    dataset = ClipDataset(FolderConfig(str(tmp_path / "out")), ClipConfig(frames=4, resolution=(16, 16)), strict=True)
    assert len(dataset) == 3


@pytest.mark.parametrize("place", ["in", "in/a/prepared"])
def test_the_originals_are_never_written_over(recipe, tmp_path, capsys, place):
    before = times(tmp_path / "in")
    with pytest.raises(SystemExit):
        prepare_videos.main([str(recipe), "--output_dir", str(tmp_path / place)])
    assert "whose videos are prepared: choose another folder" in capsys.readouterr().err
    assert times(tmp_path / "in") == before


def test_links_pictures_and_odd_names_are_prepared_and_hidden_ones_are_not(recipe, tmp_path, capsys):
    source = tmp_path / "in"
    source.joinpath("linked").symlink_to(source / "a", target_is_directory=True)
    for name in ("seen.1", "seen.2"):
        (source / "b" / name).mkdir()
        for number in range(5):
            (source / "b" / name / f"{number}.png").write_bytes(png(torch.zeros(3, 32, 48, dtype=torch.uint8)))
    source.joinpath("b", os.fsdecode(b"caf\xe9.mp4")).write_bytes((source / "a" / "one.mp4").read_bytes())
    source.joinpath("b", os.fsdecode(b"bad\xe9.mp4")).write_bytes(b"no video")
    source.joinpath("b", "._three.mp4").write_bytes(b"no video")
    output = tmp_path / os.fsdecode(b"out\xff")
    for _ in range(2):
        prepare_videos.main([str(recipe), "--output_dir", str(output)])
        assert r"prepared 8 videos, 58 frames" in capsys.readouterr().out
    dataset = ClipDataset(FolderConfig(str(output)), ClipConfig(frames=4, resolution=(16, 16)), strict=True)
    assert dataset.source.names == [
        *("a/one.mp4", "a/two.mp4", "b/caf\\xe9.mp4", "b/seen.1.mp4", "b/seen.2.mp4", "b/three.mp4"),
        *("linked/one.mp4", "linked/two.mp4"),
    ]
    assert "bad\\xe9.mp4" in (output / "index-00000-of-00001.problems.txt").read_text()


def test_splits_and_classes_of_a_prepared_folder_are_those_of_its_original(tmp_path):
    for number in range(16):
        frames = 3 if number in (3, 9) else 8  # too short for a clip
        video = torch.randint(256, (3, frames, 16, 16), dtype=torch.uint8)
        write_video(tmp_path / "in" / "b" / f"{number:02d}.mp4", video, fps=8)
    write_video(tmp_path / "in" / "a" / "short.mp4", video[:, :3], fps=8)
    for name in ("clip", "clip 2"):  # as files with a suffix they have another order
        (tmp_path / "in" / "c" / name).mkdir(parents=True)
        for number in range(5):
            (tmp_path / "in" / "c" / name / f"{number}.png").write_bytes(png(video[:, 0]))
    data = {"source": {"type": "folder", "path": str(tmp_path / "in")}, "clip": CLIP}
    file = tmp_path / "prepare.yaml"
    file.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "out"), "data": data, "workers": 1}))
    prepare_videos.main([str(file)])
    clip = ClipConfig(frames=4, resolution=(16, 16))
    for held_out in (False, True):
        ours, theirs = (FolderConfig(str(tmp_path / name), held_out=held_out).open(clip) for name in ("out", "in"))
        assert sorted(ours.names) == sorted(name if name.endswith(".mp4") else f"{name}.mp4" for name in theirs.names)
        assert ours.classes == theirs.classes == ["a", "b", "c"]
    (tmp_path / "out" / "originals.json").write_text('["a')
    with pytest.raises(ValueError, match=r"originals\.json is damaged .*: run prepare_videos\.py again"):
        FolderConfig(str(tmp_path / "out"), held_out=True).open(clip)
    (tmp_path / "out" / "originals.json").unlink()
    with pytest.raises(ValueError, match="did not list its originals"):
        FolderConfig(str(tmp_path / "out"), held_out=True).open(clip)
