"""Prepared videos: frame for frame those of their source, listed without decoding, refused where they do not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_video import make_video, numbers

from genvid.data import ClipConfig, ClipDataset, FolderConfig, JoinedConfig, Ucf101Config
from genvid.data.sources import video_index as probes
from genvid.data.sources.prepared import Preparation, index_file, prepare_video, write_index
from genvid.data.video import VideoError, probe, read_clip

CLIP = ClipConfig(frames=4, resolution=(16, 32))


def prepared(source: Path, root: Path, names: list[str], clip: ClipConfig = CLIP) -> None:
    how = Preparation(clip)
    videos = {}
    for name in names:
        target = str(Path(name).with_suffix(".mp4"))
        videos[target] = prepare_video(source / name, probe(source / name), root / target, how)
    write_index(index_file(root, 0, 1), how.described(), videos)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frame_i_is_frame_i(tmp_path: Path, codec: str) -> None:
    suffix = ".avi" if codec == "mpeg4" else ".mp4"
    file = make_video(tmp_path / f"a{suffix}", 41, codec=codec, b_frames=2)
    info = probe(file)
    copy = prepare_video(file, info, tmp_path / "out" / "a.mp4", Preparation(CLIP)).video.info
    assert (copy.frames, copy.height, copy.width) == (info.frames, 16, 32)
    assert copy.pts_step is not None
    assert copy == probe(tmp_path / "out" / "a.mp4")
    for start in range(0, info.frames - 4, 5):
        assert numbers(read_clip(tmp_path / "out" / "a.mp4", start, 4, info=copy)) == list(range(start, start + 4))


def test_a_video_of_one_frame_is_prepared(tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.mp4", 1)
    copy = prepare_video(file, probe(file), tmp_path / "b.mp4", Preparation(CLIP)).video.info
    assert numbers(read_clip(tmp_path / "b.mp4", 0, 1, info=copy)) == [0]


def test_clips_are_those_of_the_source(tmp_path: Path) -> None:
    for name in ("x/a.mp4", "y/b.mp4"):
        make_video(tmp_path / "in" / name, 30)
    prepared(tmp_path / "in", tmp_path / "out", ["x/a.mp4", "y/b.mp4"])
    ours, theirs = (ClipDataset(FolderConfig(str(tmp_path / folder)), CLIP) for folder in ("out", "in"))
    assert ours.classes == theirs.classes == ["x", "y"]
    for index in range(2):
        for seed in range(5):
            a, b = ours[index, seed], theirs[index, seed]
            assert a["label"] == b["label"]
            error = (a["video"].float() - b["video"].float()).square().mean()
            assert error < 255**2 * 10**-3.5, "35 dB"


def test_a_prepared_folder_is_listed_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "in" / "a.mp4", 30)
    prepared(tmp_path / "in", tmp_path / "out", ["a.mp4"])

    def never(file: Path) -> None:
        raise AssertionError(f"{file} was decoded")

    monkeypatch.setattr(probes, "probe", never)
    assert len(ClipDataset(FolderConfig(str(tmp_path / "out")), CLIP)) == 1
    # Unless it is no longer what the index says.
    (tmp_path / "out" / "a.mp4").write_bytes(b"other")
    with pytest.raises(AssertionError, match="was decoded"):
        ClipDataset(FolderConfig(str(tmp_path / "out")), CLIP)


def test_random_crops_need_the_whole_picture(tmp_path: Path) -> None:
    square = ClipConfig(frames=4, resolution=(16, 16), crop="center")
    at_random = ClipConfig(frames=4, resolution=(16, 16), crop="random")
    make_video(tmp_path / "in" / "a.mp4", 30)
    prepared(tmp_path / "in", tmp_path / "center", ["a.mp4"], square)
    prepared(tmp_path / "in", tmp_path / "random", ["a.mp4"], at_random)
    assert probe(tmp_path / "center" / "a.mp4").width == 16
    assert probe(tmp_path / "random" / "a.mp4").width == 32
    for clip in (square, at_random):
        assert ClipDataset(FolderConfig(str(tmp_path / "random")), clip)[0]["video"].shape == (3, 4, 16, 16)
    for clip in (at_random, CLIP):
        with pytest.raises(ValueError, match=r"was prepared for center crops at \[16, 16\], but these clips have"):
            ClipDataset(FolderConfig(str(tmp_path / "center")), clip)


def test_variations_of_a_clip_are_left_to_the_reader(tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.mp4", 40)
    varied = ClipConfig(4, resolution=(16, 16), flip=True, turn=True, reverse=True, recolour=True, rounded=False)
    for clip, name in ((varied, "varied.mp4"), (ClipConfig(4, resolution=(16, 16)), "plain.mp4")):
        prepare_video(file, probe(file), tmp_path / name, Preparation(clip))
    assert (tmp_path / "varied.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()


def test_clips_that_need_more_pixels_are_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "in" / "a.mp4", 30)
    prepared(tmp_path / "in", tmp_path / "out", ["a.mp4"])
    for clip in (replace(CLIP, zoom=1.5), replace(CLIP, turn=True)):
        with pytest.raises(ValueError, match="use the originals"):
            Preparation(clip)
        with pytest.raises(ValueError, match="use the originals"):
            ClipDataset(FolderConfig(str(tmp_path / "out")), clip)


def test_lists_of_originals_find_prepared_videos(tmp_path: Path) -> None:
    name = "Archery/v_Archery_g08_c01.avi"
    make_video(tmp_path / "in" / name, 30, codec="mpeg4")
    prepared(tmp_path / "in", tmp_path / "out", [name])
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n")
    (lists / "trainlist01.txt").write_text(f"{name} 1\n")
    dataset = ClipDataset(Ucf101Config(str(tmp_path / "out"), str(lists)), CLIP, strict=True)
    assert dataset.name(0) == "Archery/v_Archery_g08_c01.mp4"
    manifest = tmp_path / "out" / "manifest.csv"
    manifest.write_text(f"file,split,label\n{name},val,shooting\n")
    dataset = ClipDataset(FolderConfig(str(tmp_path / "out"), str(manifest), "val"), CLIP, strict=True)
    assert dataset.classes == ["shooting"]


def test_lossless_is_lossless_but_for_the_colour_space(tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.mp4", 20)
    prepare_video(file, probe(file), tmp_path / "b.mp4", Preparation(CLIP, quality=0))
    wanted = CLIP.fit(torch.from_numpy(read_clip(file, 0, 20)), 0).permute(1, 2, 3, 0).numpy()
    assert np.abs(read_clip(tmp_path / "b.mp4", 0, 20).astype(int) - wanted).max() <= 3


def test_what_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    file = make_video(tmp_path / "in" / "a.mp4", 30)
    info = probe(file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(VideoError):
        prepare_video(file, info, tmp_path / "out" / "a.mp4", Preparation(CLIP))
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="quality is 0"):
        Preparation(CLIP, quality=60)


def test_joined_sources_are_one_after_the_other(tmp_path: Path) -> None:
    for number, name in enumerate(("first/x/a.mp4", "first/y/b.mp4", "second/y/c.mp4", "second/z/d.mp4")):
        make_video(tmp_path / name, 20 + number)
    folders = [FolderConfig(str(tmp_path / name)) for name in ("first", "second")]
    joined = ClipDataset(JoinedConfig(list(folders)), CLIP)
    assert joined.classes == ["x", "y", "z"]
    assert [int(joined[i]["label"]) for i in range(4)] == [0, 1, 1, 2]
    parts = [ClipDataset(folder, CLIP) for folder in folders]
    for index in range(4):
        part, item = parts[index // 2], index % 2
        assert torch.equal(joined[index, 7]["video"], part[item, 7]["video"])
        assert joined.name(index) == f"{index // 2}/{part.name(item)}"
    assert joined.fingerprint() not in [part.fingerprint() for part in parts]


def test_a_damaged_index_is_an_error_in_words(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 30)
    (tmp_path / "index-00000-of-00001.json").write_text(json.dumps({"how": {}}))
    with pytest.raises(ValueError, match=r"index-00000-of-00001\.json is damaged"):
        ClipDataset(FolderConfig(str(tmp_path)), CLIP)


def test_an_index_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "in" / "a.mp4", 30)
    prepared(tmp_path / "in", tmp_path / "out", ["a.mp4"])
    index = index_file(tmp_path / "out", 0, 1)
    held = json.loads(index.read_text())
    del held["how"]["version"]
    index.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"prepared by another version of genvid .* prepare the videos anew"):
        ClipDataset(FolderConfig(str(tmp_path / "out")), CLIP)
