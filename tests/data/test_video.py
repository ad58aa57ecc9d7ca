"""Frames are exact by index in every container; damaged files are named; what is written plays back."""

import ctypes
import gc
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numbered_video import cut_short, make_video, numbers, packets

from genvid.data.video import VideoError, probe, read_clip, video_bytes, video_writer, write_video

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.mark.parametrize(
    ("name", "codec", "b_frames"),
    [
        ("a.mp4", "libx264", 3),
        ("a.mkv", "libx264", 3),
        ("a.mov", "mpeg4", 0),
        ("a.webm", "libvpx-vp9", 0),
        ("a.avi", "mpeg4", 0),
        ("b.avi", "mpeg4", 2),
        ("c.avi", "libx264", 2),
        ("a.gif", "gif", 0),
    ],
)
def test_clips_are_exact_by_frame_index(tmp_path: Path, name: str, codec: str, b_frames: int) -> None:
    file = make_video(tmp_path / name, codec=codec, b_frames=b_frames)
    info = probe(file)
    assert (info.frames, info.height, info.width) == (40, 32, 64)
    for start in range(0, 33):
        assert numbers(read_clip(file, start, 8, info=info)) == list(range(start, start + 8))
    assert numbers(read_clip(file, 3, 5, stride=7)) == [3, 10, 17, 24, 31]


def allocated() -> int:
    """Bytes that are allocated through malloc, which is how FFmpeg gets memory."""
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

    class Statistics(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

    count = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if count is None:
        pytest.skip("the C library does not count what is allocated (glibc 2.33 does)")
    count.restype = Statistics
    gc.collect()
    found: int = count().uordblks
    return found


def test_reading_clips_loses_no_memory(tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.mp4")
    info = probe(file)

    def read(clips: int) -> None:
        for number in range(clips):
            read_clip(file, number % 30, 4, info=info)

    read(100)
    before = allocated()
    read(1000)
    assert allocated() - before < 50_000  # a lost packet would make 150,000


def test_variable_frame_rate_is_counted(tmp_path: Path) -> None:
    stamps = [i * 4 + (30 if i > 10 else 0) for i in range(40)]
    file = make_video(tmp_path / "a.mkv", stamps=stamps)
    assert probe(file).pts_step is None
    assert numbers(read_clip(file, 20, 8)) == list(range(20, 28))


def test_seeking_is_used_and_needs_no_frames_before_the_keyframe(tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.mp4", 240, gop=12)
    info = probe(file)
    assert info.pts_step is not None
    data = bytearray(file.read_bytes())
    for position, size in packets(file)[:12]:  # nothing of the first group of pictures can be decoded any more
        data[position : position + size] = bytes(size)
    file.write_bytes(data)
    assert numbers(read_clip(file, 130, 8, info=info)) == list(range(130, 138))
    with pytest.raises(VideoError):
        read_clip(file, 130, 8, info=replace(info, pts_step=None))


@pytest.mark.skipif(not (SHARED / "video" / "ucf101").is_dir(), reason="real UCF-101 files are not here")
def test_real_ucf101_files_match_a_sequential_decode() -> None:
    for file in sorted((SHARED / "video" / "ucf101").rglob("*.avi")):
        info = probe(file)
        with av.open(str(file)) as container:
            whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert info.frames == len(whole)
        for start in (1, info.frames // 2, info.frames - 16):
            assert np.array_equal(read_clip(file, start, 16, info=info), np.stack(whole[start : start + 16]))


def test_bad_files_are_errors_in_words(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(VideoError, match=r"garbage\.mp4 cannot be decoded"):
        probe(garbage)
    headless = make_video(tmp_path / "headless.mp4")
    headless.write_bytes(headless.read_bytes()[:800])
    with pytest.raises(VideoError, match=r"headless\.mp4 cannot be decoded"):
        probe(headless)
    short = cut_short(make_video(tmp_path / "short.avi", codec="mpeg4"), frames=20)
    with pytest.raises(VideoError, match=r"short\.avi is cut short: \d+ of its 40 frames"):
        probe(short)
    with pytest.raises(VideoError, match=r"absent\.mp4 cannot be decoded \(No such file"):
        probe(tmp_path / "absent.mp4")
    whole = make_video(tmp_path / "whole.mp4")
    with pytest.raises(VideoError, match=r"has 40 frames, but frames 30 to 45 were asked for"):
        read_clip(whole, 30, 16)


def test_a_file_that_shrank_after_it_was_probed(tmp_path: Path) -> None:
    info = probe(make_video(tmp_path / "a.mp4", 40))
    file = make_video(tmp_path / "a.mp4", 20)
    with pytest.raises(VideoError, match="ended before frame 25"):
        read_clip(file, 10, 16, info=info)


@pytest.mark.parametrize(("size", "scale", "expected"), [((32, 32), 4, (128, 128)), ((33, 47), 1, (34, 48))])
def test_written_video_reads_back(tmp_path: Path, size: tuple[int, int], scale: int, expected: tuple[int, int]) -> None:
    ramp = torch.linspace(40, 200, size[1]).expand(3, 8, *size).to(torch.uint8)
    write_video(tmp_path / "a.mp4", ramp, 8, scale=scale)
    info = probe(tmp_path / "a.mp4")
    assert (info.frames, info.height, info.width, info.fps) == (8, *expected, 8.0)
    back = read_clip(tmp_path / "a.mp4", 0, 8)[:, : size[0] * scale : scale, : size[1] * scale : scale]
    assert np.abs(back.astype(int) - ramp.permute(1, 2, 3, 0).numpy()).mean() < 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_embedded_bytes_are_a_browser_mp4() -> None:
    data = video_bytes(torch.zeros(3, 4, 32, 32, dtype=torch.uint8), 25.0, scale=2)
    assert data[4:8] == b"ftyp"
    assert data.index(b"moov") < data.index(b"mdat"), "the index must come first for playback to start"
    assert b"avc1" in data


def test_floats_are_not_written_silently(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", torch.zeros(3, 4, 32, 32), 25)
    with pytest.raises(ValueError, match=r"\(3, T, H, W\)"):
        write_video(tmp_path / "a.mp4", torch.zeros(4, 3, 32, 32, dtype=torch.uint8), 25)


def test_a_video_is_written_as_its_frames_come(tmp_path: Path) -> None:
    video = torch.randint(0, 256, (3, 11, 15, 18), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(tmp_path / "whole.mp4", video, 12)
    with video_writer(tmp_path / "parts.mp4", 12) as append:
        for part in video.split(4, 1):
            append(part)
        assert not (tmp_path / "parts.mp4").exists()
    assert (tmp_path / "parts.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    with pytest.raises(ValueError, match="no frames"), video_writer(tmp_path / "none.mp4", 12):
        pass
    assert not (tmp_path / "none.mp4").exists()
