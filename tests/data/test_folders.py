"""Folders, manifests and UCF-101 lists: the right files with the right labels, and bad input named."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
from numbered_video import cut_short, make_video, numbers

from genvid.config import ConfigError, decode
from genvid.data import (
    ClipConfig,
    ClipDataset,
    FolderConfig,
    JoinedConfig,
    SourceConfig,
    SyntheticConfig,
    Ucf101Config,
)
from genvid.data.video import VideoError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
CLIP = ClipConfig(frames=8, resolution=(32, 64))


@dataclass(frozen=True)
class Run:
    source: SourceConfig
    clip: ClipConfig


def read(dataset: ClipDataset, index: int, seed: int) -> list[int]:
    return numbers(dataset[index, seed]["video"].permute(1, 2, 3, 0).numpy())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("walk/b.mp4", "walk/a.avi", "run/deep/c.mkv", "run/notes.txt"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("not a video")
        else:
            make_video(tmp_path / name, 20, codec="libx264")
    return tmp_path


def test_subfolders_are_classes(folder: Path) -> None:
    dataset = ClipDataset(FolderConfig(str(folder)), CLIP)
    assert dataset.classes == ["run", "walk"]
    assert [dataset.name(i) for i in range(3)] == ["run/deep/c.mkv", "walk/a.avi", "walk/b.mp4"]
    assert [int(dataset[i]["label"]) for i in range(3)] == [0, 1, 1]


def test_a_flat_folder_is_one_class_and_a_mixed_one_is_refused(folder: Path) -> None:
    assert ClipDataset(FolderConfig(str(folder / "walk")), CLIP).classes == ["walk"]
    make_video(folder / "loose.mp4")
    with pytest.raises(ValueError, match=r"mixes files \(loose\.mp4\) and class folders"):
        ClipDataset(FolderConfig(str(folder)), CLIP)


def test_windows(folder: Path) -> None:
    source = FolderConfig(str(folder))
    every = ClipDataset(source, ClipConfig(frames=8, resolution=(32, 64), window="all"))
    assert [every.name(i) for i in range(len(every))][:3] == ["run/deep/c.mkv#0", "run/deep/c.mkv#8", "walk/a.avi#0"]
    assert read(every, 1, seed=5) == list(range(8, 16))
    first = ClipDataset(source, ClipConfig(frames=8, resolution=(32, 64), window="first"))
    assert [len(first), first.name(2), read(first, 2, seed=5)] == [3, "walk/b.mp4#0", list(range(8))]
    drawn = ClipDataset(source, ClipConfig(frames=8, resolution=(32, 64), window="random"))
    starts = {read(drawn, 0, seed)[0] for seed in range(60)}
    assert starts == set(range(13))
    assert read(drawn, 0, 7) == read(drawn, 0, 7)


def test_manifest_chooses_the_split_and_numbers_labels_over_all_splits(folder: Path) -> None:
    manifest = folder / "list.csv"
    rows = ["file,split,label", "walk/a.avi,train,walk", "walk/b.mp4,val,zumba", "run/deep/c.mkv,val,run"]
    manifest.write_text("\n".join([*rows, "../elsewhere/d.mp4,val,walk", "run/notes.txt,val,text"]))
    val = ClipDataset(FolderConfig(str(folder), manifest=str(manifest), split="val"), CLIP)
    assert val.classes == ["run", "walk", "zumba"]
    assert [val.name(i) for i in range(len(val))] == ["walk/b.mp4", "run/deep/c.mkv"]
    below = ClipDataset(FolderConfig(str(folder / "walk"), manifest=str(manifest), split="train"), CLIP)
    assert [below.name(0), len(below)] == ["a.avi", 1]
    with pytest.raises(ValueError, match=r"no split 'test' under .*; it has train, val"):
        ClipDataset(FolderConfig(str(folder), manifest=str(manifest), split="test"), CLIP)
    manifest.write_text("file,label\n")
    with pytest.raises(ValueError, match="lacks the column split"):
        ClipDataset(FolderConfig(str(folder), manifest=str(manifest)), CLIP)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        ClipDataset(FolderConfig(str(tmp_path / "absent")), CLIP)
    with pytest.raises(ValueError, match=r"no video files under .*looked for \.mp4"):
        ClipDataset(FolderConfig(str(tmp_path)), CLIP)
    with pytest.raises(ValueError, match="needs a manifest"):
        FolderConfig(str(tmp_path), split="val")


def test_a_class_without_a_usable_video_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "fly").mkdir()
    (folder / "fly" / "garbage.mp4").write_bytes(b"no video" * 500)
    ClipDataset(FolderConfig(str(folder)), CLIP)
    assert "They are left out, and no video of fly remains" in caplog.text


def test_unusable_files_are_named_counted_and_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "run" / "garbage.mp4").write_bytes(b"no video" * 500)
    cut_short(make_video(folder / "run" / "half.avi", codec="mpeg4"), frames=20)
    make_video(folder / "run" / "brief.mp4", 5)
    with caplog.at_level(logging.WARNING):
        dataset = ClipDataset(FolderConfig(str(folder)), CLIP)
    assert len(dataset) == 3
    assert len(caplog.records) == 1
    assert "3 of 6 video files cannot be used" in caplog.text
    assert "garbage.mp4 cannot be decoded" in caplog.text
    assert "half.avi is cut short: 20 of its 40 frames" in caplog.text
    assert "brief.mp4 has 5 frames but a clip needs 8" in caplog.text
    assert "remains" not in caplog.text
    with pytest.raises(ValueError, match="3 of 6 video files cannot be used"):
        ClipDataset(FolderConfig(str(folder)), CLIP, strict=True)
    with pytest.raises(ValueError, match=r"6 of 6 .* has 20 frames but a clip needs 31"):
        ClipDataset(FolderConfig(str(folder)), ClipConfig(frames=16, stride=2))


def test_files_are_probed_once_and_again_when_they_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ClipDataset(FolderConfig(str(folder)), CLIP)

    def fail(file: Path) -> None:
        raise AssertionError(f"probed {file} again")

    monkeypatch.setattr("genvid.data.sources.video_index.probe", fail)
    assert len(ClipDataset(FolderConfig(str(folder)), CLIP)) == 3
    make_video(folder / "walk" / "b.mp4", 25)
    with pytest.raises(AssertionError, match=r"b\.mp4 again"):
        ClipDataset(FolderConfig(str(folder)), CLIP)


def test_an_unwritable_or_damaged_memory_is_no_obstacle(folder: Path, probe_memory: Path) -> None:
    (probe_memory / "genvid").write_text("a file where a folder should be")
    assert len(ClipDataset(FolderConfig(str(folder)), CLIP)) == 3
    (probe_memory / "genvid").unlink()
    ClipDataset(FolderConfig(str(folder)), CLIP)
    (memory,) = (probe_memory / "genvid" / "probe").iterdir()
    memory.write_text("{")
    assert len(ClipDataset(FolderConfig(str(folder)), CLIP)) == 3


def test_the_memory_of_an_earlier_version_is_not_believed(folder: Path, probe_memory: Path) -> None:
    ClipDataset(FolderConfig(str(folder)), CLIP)
    (memory,) = (probe_memory / "genvid" / "probe").iterdir()
    videos = json.loads(memory.read_text())["videos"]
    for video in videos.values():
        video["info"].pop("seek_points")
        video["info"].update(height=64, width=32, frames=1)
    memory.write_text(json.dumps(videos))  # as it was before sizes were those on the screen
    assert len(ClipDataset(FolderConfig(str(folder)), CLIP)) == 3


def test_a_file_that_fails_later_is_replaced_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = ClipDataset(FolderConfig(str(folder)), CLIP)
    strict = ClipDataset(FolderConfig(str(folder)), CLIP, strict=True)
    (folder / "walk" / "a.avi").write_bytes(b"gone")
    with caplog.at_level(logging.WARNING):
        item, again = dataset[1, 11], dataset[1, 11]
    assert "a.avi cannot be decoded" in caplog.text
    assert int(item["index"]) in (0, 2)
    assert int(item["label"]) == dataset.source.labels[int(item["index"])]
    assert (int(item["seed"]), int(item["index"])) == (11, int(again["index"]))
    assert dataset.failed == ["walk/a.avi"]
    with pytest.raises(VideoError, match=r"a\.avi"):
        strict[1, 11]
    for name in ("walk/b.mp4", "run/deep/c.mkv"):
        (folder / name).unlink()
    with pytest.raises(VideoError, match="9 clips in a row could not be read"):
        dataset[1, 11]


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """Two classes in the official layout."""
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    for name in ("Archery/v_Archery_g01_c01", "Archery/v_Archery_g08_c01", "YoYo/v_YoYo_g08_c01"):
        make_video(tmp_path / "UCF-101" / f"{name}.avi", 20, codec="mpeg4")
    (lists / "classInd.txt").write_text("1 YoYo\r\n2 Archery\r\n")
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 2\r\nYoYo/v_YoYo_g08_c01.avi 1\r\n")
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    return tmp_path


def ucf_config(root: Path, split: str = "train", fold: int = 1) -> Ucf101Config:
    data = {"type": "ucf101", "path": str(root / "UCF-101"), "split_lists": str(root / "ucfTrainTestlist")}
    return decode(Run, {"source": {**data, "split": split, "fold": fold}, "clip": {}}).source


def test_ucf101_lists(ucf: Path) -> None:
    train, test = ClipDataset(ucf_config(ucf), CLIP), ClipDataset(ucf_config(ucf, "test"), CLIP)
    assert train.classes == test.classes == ["YoYo", "Archery"]
    assert [(train.name(i), int(train[i]["label"])) for i in range(len(train))] == [
        ("Archery/v_Archery_g08_c01.avi", 1),
        ("YoYo/v_YoYo_g08_c01.avi", 0),
    ]
    assert [(test.name(i), int(test[i]["label"])) for i in range(len(test))] == [("Archery/v_Archery_g01_c01.avi", 1)]
    assert train.fingerprint() != test.fingerprint()
    assert train.fingerprint() == ClipDataset(ucf_config(ucf), CLIP).fingerprint()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("trainlist01.txt", "YoYo/v.avi 1\nYooo/v.avi 1\n", r"trainlist01.txt line 2: class 'Yooo' is not in"),
        ("trainlist01.txt", "YoYo/v_YoYo_g08_c01.avi 2\n", r"line 1: label 2 is not that of YoYo, 1"),
        ("classInd.txt", "YoYo 1\n", r"classInd.txt line 1: expected a class number and a name"),
        ("trainlist01.txt", "\n", "no video files"),
    ],
)
def test_wrong_ucf101_lists_are_named_by_line(ucf: Path, file: str, text: str, message: str) -> None:
    (ucf / "ucfTrainTestlist" / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        ClipDataset(ucf_config(ucf), CLIP)


def test_missing_ucf101_parts(ucf: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"no list .*trainlist03\.txt"):
        ClipDataset(ucf_config(ucf, fold=3), CLIP)
    with pytest.raises(ConfigError, match="folds 1, 2 and 3, got 4"):
        ucf_config(ucf, fold=4)
    (ucf / "UCF-101" / "YoYo" / "v_YoYo_g08_c01.avi").unlink()
    assert len(ClipDataset(ucf_config(ucf), CLIP)) == 1
    assert "1 of 2 video files cannot be used" in caplog.text


def test_choices_in_yaml() -> None:
    run = decode(Run, {"source": {"type": "synthetic", "clips": 8}, "clip": {"resolution": [16, 16], "frames": 4}})
    assert len(ClipDataset(run.source, run.clip)) == 8
    with pytest.raises(ConfigError, match="clipz"):
        decode(Run, {"source": {"type": "synthetic", "clipz": 8}, "clip": {}})
    with pytest.raises(ConfigError, match="window"):
        decode(Run, {"source": {"type": "synthetic"}, "clip": {"window": "last"}})


@pytest.mark.skipif(not (SHARED / "video" / "MANIFEST.tsv").is_file(), reason="the real clips are not here")
def test_real_files_through_the_official_layout(tmp_path: Path) -> None:
    video = SHARED / "video"
    files = sorted(str(p.relative_to(video / "ucf101")) for p in (video / "ucf101").rglob("*.avi"))
    classes = sorted({name.split("/")[0] for name in files})
    (tmp_path / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(classes, 1)))
    (tmp_path / "testlist01.txt").write_text("".join(f"{name}\n" for name in files))
    dataset = ClipDataset(Ucf101Config(str(video / "ucf101"), str(tmp_path), "test"), ClipConfig(), strict=True)
    assert len(dataset) == 6
    assert dataset.classes == classes
    for i, name in enumerate(files):
        item = dataset[i]
        assert item["video"].shape == (3, 16, 128, 128)
        assert item["video"].float().std() > 10
        assert classes[int(item["label"])] == name.split("/")[0]
    people = FolderConfig(str(video / "weizmann64"), manifest=str(video / "MANIFEST.tsv"), split="val")
    assert ClipDataset(people, ClipConfig(resolution=(64, 64)), strict=True).num_classes == 4


def test_the_last_eighth_of_each_class_is_held_out(tmp_path):
    for label, count in (("run", 17), ("walk", 3)):
        for i in range(count):
            make_video(tmp_path / label / f"{i:02d}.mp4", 4)
    clip = ClipConfig(frames=2, resolution=(16, 16))
    apart = ClipDataset(FolderConfig(str(tmp_path), held_out=True), clip)
    rest = ClipDataset(FolderConfig(str(tmp_path), held_out=False), clip)
    assert [apart.name(i) for i in range(len(apart))] == ["run/15.mp4", "run/16.mp4", "walk/02.mp4"]
    assert len(rest) == 17
    assert apart.classes == rest.classes == ["run", "walk"]


def test_a_source_carries_its_split(folder: Path, ucf: Path) -> None:
    def split(source: SourceConfig) -> str:
        opened = ClipDataset(source, CLIP).source
        assert opened.split == source.split_name()
        return opened.split

    (folder / "list.csv").write_text("file,split,label\nwalk/a.avi,val,walk\n")
    assert split(FolderConfig(str(folder / "walk"))) == "all"
    assert split(FolderConfig(str(folder / "walk"), held_out=False)) == "training"
    assert split(FolderConfig(str(folder / "walk"), held_out=True)) == "held out"
    assert split(FolderConfig(str(folder), str(folder / "list.csv"), "val")) == "val"
    assert split(ucf_config(ucf, "test")) == "test, fold 1"
    assert split(SyntheticConfig(clips=8, seed=3)) == "seed 3"
    assert split(JoinedConfig([ucf_config(ucf), ucf_config(ucf, "test")])) == "train, fold 1 + test, fold 1"
