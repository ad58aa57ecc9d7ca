"""Data sets as people have them: Kinetics-600, DAVIS, Hugging Face video columns, UCF-101 for published models."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered_video import make_video, numbers, write_pictures

from genvid.data import (
    ClipConfig,
    ClipDataset,
    DavisConfig,
    FolderConfig,
    HuggingFaceConfig,
    Kinetics600Config,
    Ucf101Config,
)

CLIP = ClipConfig(frames=8, resolution=(32, 64), window="all")
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def read(dataset: ClipDataset, index: int) -> list[int]:
    return numbers(dataset[index]["video"].permute(1, 2, 3, 0).numpy())


@pytest.mark.parametrize("flat", [True, False])
def test_kinetics_counts_what_is_missing(tmp_path: Path, flat: bool, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "val.csv"
    rows = ["walking,abc,3,13,val", "running,x-_y,10.0,20.0,val", "running,gone,0,10,val", "diving,lost,1,11,val"]
    table.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    for label, name in (("walking", "abc_000003_000013"), ("running", "x-_y_000010_000020")):
        make_video(tmp_path / "videos" / ("" if flat else label) / f"{name}.mp4", 20)
    dataset = ClipDataset(Kinetics600Config(str(tmp_path / "videos"), str(table)), CLIP)
    assert dataset.classes == ["diving", "running", "walking"]
    assert sorted(int(dataset[i]["label"]) for i in range(len(dataset))) == [1, 1, 2, 2]
    assert dataset.source.videos == 2
    assert dataset.source.left_out == [
        "gone_000000_000010 is annotated but is not there",
        "lost_000001_000011 is annotated but is not there",
    ]
    assert "2 of 4 video files cannot be used" in caplog.text
    with pytest.raises(ValueError, match="2 of 4"):
        ClipDataset(Kinetics600Config(str(tmp_path / "videos"), str(table)), CLIP, strict=True)


HEAD = "label,youtube_id,time_start,time_end,split"


def kinetics(folder: Path, table: str, *files: str) -> Kinetics600Config:
    (folder / "val.csv").write_text(table)
    for file in files:
        make_video(folder / "videos" / file, 16)
    return Kinetics600Config(str(folder / "videos"), str(folder / "val.csv"))


def test_kinetics_files_may_be_named_by_their_id(tmp_path: Path) -> None:
    rows = "eating,AAAAAAAAAAA,1,11,val\nrunning,-BBBBBBBBBB,,,val\nrunning,two,1,11,val\nrunning,two,5,15,val\n"
    config = kinetics(tmp_path, f"{HEAD}\n{rows}", "AAAAAAAAAAA.mp4", "-BBBBBBBBBB.mkv", "two.mp4")
    source = ClipDataset(config, CLIP).source
    assert source.names == ["-BBBBBBBBBB.mkv#0", "-BBBBBBBBBB.mkv#8", "AAAAAAAAAAA.mp4#0", "AAAAAAAAAAA.mp4#8"]
    assert [source.classes[label] for label in source.labels] == ["running", "running", "eating", "eating"]
    assert [text.split()[0] for text in source.left_out] == ["two_000001_000011", "two_000005_000015"]
    assert source.split == "val"


@pytest.mark.parametrize(
    ("rows", "left_out"),
    [
        ("running,-BBBBBB", "val.csv line 3 is cut short: it has no time_start, time_end"),
        ("swim", "val.csv line 3 is cut short: it has no youtube_id, time_start, time_end"),
        ("eating,CCC,,,val\n", "val.csv line 3 has no times of CCC in seconds"),
        ("eating,CCC,inf,nan,val\n", "val.csv line 3 has no times of CCC in seconds"),
    ],
)
def test_damaged_rows_of_kinetics_are_named_and_left_out(tmp_path: Path, rows: str, left_out: str) -> None:
    table = f"\ufeff{HEAD}\neating,AAAAAAAAAAA,1,11,val\n{rows}"
    source = ClipDataset(kinetics(tmp_path, table, "AAAAAAAAAAA_000001_000011.mp4"), CLIP).source
    assert (source.classes, len(source.names)) == (["eating"], 2)
    assert source.left_out == [f"{tmp_path}/{left_out}"]


def test_a_kinetics_folder_without_any_listed_video(tmp_path: Path) -> None:
    source = kinetics(tmp_path, f"{HEAD}\neating,AAAAAAAAAAA,1,11,val\n", "x/BBBBBBBBBBB_000001_000011.mp4")
    words = r"AAAAAAAAAAA_000001_000011 is annotated .* the first that is there is x/BBBBBBBBBBB_000001_000011\.mp4"
    with pytest.raises(ValueError, match=words):
        ClipDataset(source, CLIP)


def test_davis_names_find_prepared_videos(tmp_path: Path) -> None:
    make_video(tmp_path / "480p" / "bear.mp4", 16)
    (tmp_path / "val.txt").write_text("\ufeffbear\n", encoding="utf-8")
    for names in (None, str(tmp_path / "val.txt")):
        assert ClipDataset(DavisConfig(str(tmp_path / "480p"), names), CLIP).source.names == [
            "bear.mp4#0",
            "bear.mp4#8",
        ]


@pytest.mark.parametrize(
    ("labels", "names", "wanted"),
    [
        ([0, -1], ["r", "w"], "row 1 of parquet .* has the label -1, but labels must be 0 to 1"),
        ([0, None], ["r", "w"], "row 1 of parquet .* has the label None, but labels must be 0 to 1"),
        (["r", None], None, "row 1 of parquet .* has the label None"),
        ([3, -1], None, "row 1 of parquet .* has the label -1"),
        ([1.0, float("nan")], None, "row 1 of parquet .* has the label nan"),
        (["r", ""], None, "row 1 of parquet .* has the label ''"),
    ],
)
def test_hugging_face_labels_that_are_no_class_are_refused(
    labelled: Path, tmp_path: Path, labels: list[Any], names: list[str] | None, wanted: str
) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"video": [{"path": None, "bytes": file.read_bytes()} for file in sorted(labelled.rglob("*.mp4"))]}
    data = datasets.Dataset.from_dict({**rows, "label": labels})
    data = data.cast_column("video", datasets.Video(decode=False))
    if names:
        data = data.cast_column("label", datasets.ClassLabel(names=names))
    data.to_parquet(str(tmp_path / "rows.parquet"))
    with pytest.raises(ValueError, match=wanted):
        ClipDataset(HuggingFaceConfig("parquet", data_files=str(tmp_path / "rows.parquet")), CLIP)
    one_class = HuggingFaceConfig("parquet", data_files=str(tmp_path / "rows.parquet"), label=None)
    assert ClipDataset(one_class, CLIP).num_classes == 1


def test_kinetics_tables_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no annotations"):
        ClipDataset(Kinetics600Config(str(tmp_path), str(tmp_path / "val.csv")), CLIP)
    (tmp_path / "val.csv").write_text("label,youtube_id\n")
    with pytest.raises(ValueError, match="lacks the column time_start, time_end"):
        ClipDataset(Kinetics600Config(str(tmp_path), str(tmp_path / "val.csv")), CLIP)


def test_davis_reads_pictures_in_order_and_whole(tmp_path: Path) -> None:
    for name, count in (("bear", 9), ("swan", 17), ("short", 3)):
        write_pictures(tmp_path / "480p" / name, count)
    whole = ClipConfig(frames=8, resolution=(32, 64), window="whole")
    dataset = ClipDataset(DavisConfig(str(tmp_path / "480p")), whole)
    assert [dataset.name(i) for i in range(len(dataset))] == ["bear#0", "swan#0"]
    assert read(dataset, 1) == list(range(17))
    assert "has 3 frames" in dataset.source.left_out[0]
    (tmp_path / "val.txt").write_text("swan\nabsent\n")
    listed = ClipDataset(DavisConfig(str(tmp_path / "480p"), str(tmp_path / "val.txt")), CLIP)
    assert [listed.name(i) for i in range(len(listed))] == ["swan#0", "swan#8"]
    assert read(listed, 1) == list(range(8, 16))
    assert listed.source.left_out == [f"{tmp_path / '480p' / 'absent'} is listed but is not there"]


def test_damaged_and_uneven_picture_folders_are_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path / "good", 8)
    write_pictures(tmp_path / "bad", 8)
    (tmp_path / "bad" / "00003.png").write_bytes(b"no picture")
    write_pictures(tmp_path / "mixed", 8)
    write_pictures(tmp_path / "other", 1, (16, 64))
    shutil.move(tmp_path / "other" / "00000.png", tmp_path / "mixed" / "00009.png")
    (tmp_path / "other").rmdir()
    dataset = ClipDataset(DavisConfig(str(tmp_path)), CLIP)
    assert [dataset.name(i) for i in range(len(dataset))] == ["good#0"]
    assert "cannot be decoded" in dataset.source.left_out[0]
    assert "several sizes" in dataset.source.left_out[1]


def test_shared_davis_frames_are_a_video() -> None:
    if not (SHARED / "video" / "davis" / "bmx-trees").is_dir():
        pytest.skip("the shared DAVIS frames are not on this machine")
    whole = ClipConfig(frames=8, resolution=(32, 32), window="whole")
    dataset = ClipDataset(DavisConfig(str(SHARED / "video" / "davis")), whole)
    lengths = {dataset.name(i): dataset[i]["video"].shape[1] for i in range(len(dataset))}
    assert lengths == {"bmx-trees#0": 80, "parkour_opn#0": 21}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for name, frames in (("run/a.mp4", 9), ("walk/b.mp4", 17)):
        make_video(tmp_path / "set" / name, frames)
    return tmp_path / "set"


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_video_folders(labelled: Path, streaming: bool) -> None:
    source = HuggingFaceConfig("videofolder", data_dir=str(labelled), streaming=streaming)
    dataset = ClipDataset(source, CLIP)
    assert dataset.classes == ["run", "walk"]
    assert [int(dataset[i]["label"]) for i in range(3)] == [0, 1, 1]
    assert read(dataset, 2) == list(range(8, 16))


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_rows_that_hold_their_bytes(labelled: Path, tmp_path: Path, streaming: bool) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(labelled.rglob("*.mp4"))
    rows = {"clip": [{"path": None, "bytes": file.read_bytes()} for file in files], "what": ["r", "w"]}
    features = datasets.Features({"clip": datasets.Video(decode=False), "what": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "rows.parquet"))

    def source(limit: int | None = None) -> HuggingFaceConfig:
        return HuggingFaceConfig(
            "parquet",
            data_files=str(tmp_path / "rows.parquet"),
            column="clip",
            label="what",
            streaming=streaming,
            limit=limit,
        )

    dataset = ClipDataset(source(), CLIP)
    assert dataset.classes == ["r", "w"]
    assert read(dataset, 2) == list(range(8, 16))
    assert len(ClipDataset(source(limit=1), CLIP)) == 1
    again = ClipDataset(source(), CLIP)
    assert again.fingerprint() == dataset.fingerprint()
    with pytest.raises(ValueError, match="no column 'video'; it has clip, what"):
        ClipDataset(HuggingFaceConfig("parquet", data_files=str(tmp_path / "rows.parquet"), label=None), CLIP)


def test_fingerprints_follow_content_not_place(labelled: Path, tmp_path: Path) -> None:
    first = ClipDataset(FolderConfig(str(labelled)), CLIP).fingerprint()
    shutil.copytree(labelled, tmp_path / "moved")
    assert ClipDataset(FolderConfig(str(tmp_path / "moved")), CLIP).fingerprint() == first
    make_video(tmp_path / "moved" / "run" / "a.mp4", 9, gop=3)
    assert ClipDataset(FolderConfig(str(tmp_path / "moved")), CLIP).fingerprint() != first


def test_unrounded_clips_are_within_half_a_level_of_rounded_ones(labelled: Path) -> None:
    size = (16, 32)
    rounded = ClipDataset(FolderConfig(str(labelled)), ClipConfig(frames=8, resolution=size, window="first"))
    exact = ClipDataset(
        FolderConfig(str(labelled)), ClipConfig(frames=8, resolution=size, window="first", rounded=False)
    )
    video, levels = exact[0]["video"], rounded[0]["video"]
    difference = ((video + 1) * 127.5 - levels).abs()
    assert video.is_floating_point()
    assert 0 < difference.max() <= 0.5 + 1e-3


def test_ucf101_in_the_order_of_published_models(tmp_path: Path) -> None:
    names = ["Hammering", "HammerThrow", "HandstandPushups", "HandstandWalking"]
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    rows = []
    for number, name in enumerate(names, 1):
        path = f"{name}/v_{name.replace('stand', 'Stand') if 'Push' in name else name}_g08_c01.avi"
        make_video(tmp_path / "UCF-101" / path, 16, codec="mpeg4")
        rows.append(f"{path} {number}\n")
    (lists / "trainlist01.txt").write_text("".join(rows))
    (lists / "testlist01.txt").write_text(rows[0].split()[0].replace("g08", "g01") + "\n")
    make_video(tmp_path / "UCF-101" / "Hammering" / "v_Hammering_g01_c01.avi", 16, codec="mpeg4")
    root = str(tmp_path / "UCF-101")
    official = ClipDataset(Ucf101Config(root, str(lists)), CLIP)
    assert official.classes == names
    published = ClipDataset(Ucf101Config(root, str(lists), class_order="ascii"), CLIP)
    assert published.classes == ["HammerThrow", "Hammering", "HandstandPushups", "HandstandWalking"]
    assert [published.name(2 * i) for i in range(2)] == [
        "HammerThrow/v_HammerThrow_g08_c01.avi#0",
        "Hammering/v_Hammering_g08_c01.avi#0",
    ]
    both = ClipDataset(Ucf101Config(root, str(lists), split="train+test"), CLIP)
    assert both.source.videos == 5
    assert np.bincount(both.source.labels).tolist() == [4, 2, 2, 2]
