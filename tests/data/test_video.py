"""Frames are exact by index in every container; damaged files are named; what is written plays back."""

import ctypes
import gc
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from numbered_video import cut_short, make_video, numbers, packets, picture

from genvid.data.animation import write_animation
from genvid.data.decoding import demux
from genvid.data.video import (
    VideoError,
    frame_rate,
    iterate_frames,
    probe,
    read_clip,
    video_bytes,
    video_writer,
    write_video,
)
from genvid.generation.folder import SampleWriter
from genvid.tokens import TokenizerSpec

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
    info = probe(file)
    assert info.pts_step is None
    assert math.isclose(info.fps, 39 / 1.86), "39 steps in 1.86 s, whatever the header says"
    assert numbers(read_clip(file, 20, 8)) == list(range(20, 28))


def destroy(file: Path, places: list[tuple[int, int]]) -> None:
    data = bytearray(file.read_bytes())
    for position, size in places:
        data[position : position + size] = bytes(size)
    file.write_bytes(data)


def test_seeking_is_used_and_needs_no_frames_before_the_keyframe(tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.mp4", 240, gop=12)
    info = probe(file)
    assert info.pts_step is not None
    destroy(file, packets(file)[:12])  # nothing of the first group of pictures can be decoded any more
    assert numbers(read_clip(file, 130, 8, info=info)) == list(range(130, 138))
    with pytest.raises(VideoError):
        read_clip(file, 130, 8, info=replace(info, pts_step=None))


@pytest.mark.parametrize("name", ["a.mkv", "b.avi", "c.avi"])
def test_seek_points_stand_in_for_regular_time_stamps(tmp_path: Path, name: str) -> None:
    """Variable frame rate, and AVI with B-frames, whose time stamps are guesses."""
    if name == "a.mkv":
        stamps = [i * 4 + (30 if i > 50 else 0) for i in range(240)]
        file = make_video(tmp_path / name, 240, stamps=stamps, b_frames=2)
    else:
        codec = "mpeg4" if name == "b.avi" else "libx264"
        file = make_video(tmp_path / name, 240, codec=codec, b_frames=2)
    info = probe(file)
    assert info.pts_step is None
    whole = read_clip(file, 0, 240, info=info)
    for start in range(1, 230, 7):
        assert np.array_equal(read_clip(file, start, 8, info=info), whole[start : start + 8])
    destroy(file, packets(file)[1:12])
    assert numbers(read_clip(file, 130, 8, info=info)) == list(range(130, 138))


def moving(number: int, size: tuple[int, int]) -> np.ndarray:
    """Noise that moves, so that frames are coded from those before them."""
    noise = np.random.default_rng(0).integers(256, size=(size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    return np.roll(noise.repeat(4, 0).repeat(4, 1), (number, 2 * number), (0, 1))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}),
        ("libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"}),
        ("libx265", {"x265-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0:log-level=none"}),
        ("mpeg2video", {"flags": "-cgop"}),
    ],
)
def test_key_frames_that_need_earlier_frames(tmp_path: Path, codec: str, options: dict[str, str], suffix: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    frames = 3 if codec == "mpeg2video" else 0
    file = make_video(tmp_path / f"a{suffix}", 80, codec=codec, b_frames=frames, options=options, draw=moving)
    info = probe(file)
    whole = np.stack(list(iterate_frames(file, info)))
    for start in range(1, 72):
        assert np.array_equal(read_clip(file, start, 8, info=info), whole[start : start + 8]), start


def test_an_edit_list_hides_frames(tmp_path: Path) -> None:
    """What a trim without coding anew leaves: the frames before the cut are in the file, and no player shows them."""
    with (
        av.open(str(make_video(tmp_path / "a.mp4", 60, gop=20, b_frames=2))) as source,
        av.open(str(tmp_path / "b.mp4"), "w") as target,
    ):
        stream: Any = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                shift = round(30 / 25 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    info = probe(tmp_path / "b.mp4")
    assert info.frames == 30
    for start in range(27):
        assert numbers(read_clip(tmp_path / "b.mp4", start, 3, info=info)) == [30 + start, 31 + start, 32 + start]


def test_frames_that_avi_drops_are_not_missing(tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.avi", 40, codec="mpeg4", stamps=[2 * i for i in range(40)])
    with av.open(str(file)) as container:
        assert container.streams.video[0].frames == 79, "the header counts what is dropped"
    info = probe(file)
    assert (info.frames, info.fps) == (40, 50)
    assert numbers(read_clip(file, 20, 8, info=info)) == list(range(20, 28))


def with_cover(path: Path, codec: str) -> Path:
    """A picture as the first stream, then sound (aac) or video."""
    with av.open(str(path), "w") as container:
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 32, 32, "yuvj420p", Disposition.attached_pic
        stream: Any = container.add_stream(codec, rate=44100 if codec == "aac" else 25)
        if codec != "aac":
            stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        container.mux(cover.encode(av.VideoFrame(32, 32, "yuvj420p")) + cover.encode())
        for number in range(20):
            frame: Any = av.VideoFrame.from_ndarray(picture(number, (32, 64)), format="rgb24")
            if codec == "aac":
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    info = probe(with_cover(tmp_path / "a.mp4", "libx264"))
    assert (info.frames, info.height, info.width) == (20, 32, 64)
    assert numbers(read_clip(tmp_path / "a.mp4", 3, 8)) == list(range(3, 11))
    with pytest.raises(VideoError, match=r"b\.mp4 has no video stream"):
        probe(with_cover(tmp_path / "b.mp4", "aac"))


def test_names_are_no_protocols_and_tags_of_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = make_video(Path("12:30:05.mp4"), metadata={"title": "Stra/e"})
    file.write_bytes(file.read_bytes().replace(b"Stra/e", b"Stra\xdfe"))
    assert probe("12:30:05.mp4").frames == 40
    assert numbers(read_clip("12:30:05.mp4", 20, 3)) == [20, 21, 22]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "mpeg2video")])
def test_frames_that_a_decoder_conceals_are_named(tmp_path: Path, name: str, codec: str) -> None:
    file = make_video(tmp_path / name, codec=codec, draw=moving, gop=40)
    info = probe(file)
    position, size = packets(file)[21]
    start = size // 3  # to the end: H.264 has no checksums, and less decodes as another picture more often than not
    destroy(file, [(position + start, size - start)])
    with pytest.raises(VideoError, match=rf"{name} is damaged at frame 2\d"):
        probe(file)
    with pytest.raises(VideoError, match=rf"{name} is damaged at frame 2\d"):
        read_clip(file, 16, 16, info=info)
    with pytest.raises(VideoError, match=rf"{name} is damaged at frame 2\d"):
        list(iterate_frames(file, info))
    assert read_clip(file, 4, 8, info=info).shape[0] == 8, "what comes before it is whole"


def test_frames_that_a_decoder_leaves_out_are_missed(tmp_path: Path) -> None:
    if "libx265" not in av.codecs_available:
        pytest.skip("this FFmpeg has no libx265")
    options = {"x265-params": "keyint=40:bframes=0:log-level=none"}
    file = make_video(tmp_path / "a.mkv", codec="libx265", options=options, draw=moving)
    destroy(file, [(packets(file)[21][0] + 12, 3)])
    with pytest.raises(VideoError, match=r"a\.mkv cannot be decoded"):
        probe(file)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("b.webm", "libvpx")])
def test_files_without_a_count_that_are_cut_short(tmp_path: Path, name: str, codec: str) -> None:
    file = make_video(tmp_path / name, codec=codec)
    assert probe(file).frames == 40
    with pytest.raises(VideoError, match=rf"{name} is cut short: 1\d of its 40 frames"):
        probe(cut_short(file, frames=16))


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4"])
def test_a_video_that_begins_late_is_not_cut_short(tmp_path: Path, name: str) -> None:
    """A part of a recording keeps its time stamps; Matroska's header then has the time of the end."""
    stamps = [1000 + 4 * number for number in range(40)]
    file = make_video(tmp_path / name, codec="libvpx-vp9" if name == "a.webm" else "libx264", stamps=stamps)
    info = probe(file)
    assert (info.frames, info.fps) == (40, 25)
    assert numbers(read_clip(file, 20, 8, info=info)) == list(range(20, 28))


def test_a_gif_that_is_cut_short(tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.gif", codec="gif")
    data = file.read_bytes()
    file.write_bytes(data[:-1])  # no frame is missing
    assert probe(file).frames == 40
    cut = len(data) // 2
    file.write_bytes(data[: cut + next(i for i, byte in enumerate(data[cut:], 1) if byte not in b";\0")])
    with pytest.raises(VideoError, match=r"a\.gif is cut short"):
        probe(file)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_video_behind_its_sound_has_its_last_frames(tmp_path: Path, name: str) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        sound: Any = container.add_stream("aac", rate=8000, layout="mono")
        video: Any = container.add_stream("libx264", rate=25, options={"bf": "3"})
        video.width, video.height, video.pix_fmt = 64, 32, "yuv420p"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 6400), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        for part in av.AudioResampler(sound.format, "mono", 8000).resample(silence):
            container.mux(sound.encode(part))
        for number in range(20):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number, (32, 64)), format="rgb24")))
        container.mux(sound.encode() + video.encode())
    info = probe(tmp_path / name)
    assert info.frames == 20
    assert numbers(np.stack([*iterate_frames(tmp_path / name, info)])) == list(range(20))


def test_streams_that_no_decoder_reads_are_left_alone(tmp_path: Path) -> None:
    """Data of a camera, fonts, and sound of an unknown codec."""
    for name in ("data.ts", "font.mkv", "sound.mkv"):
        with av.open(str(tmp_path / name), "w") as container:
            video: Any = container.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = 64, 32, "yuv420p"
            if name == "data.ts":
                container.add_data_stream("klv")
            if name == "font.mkv":
                container.add_attachment("a.ttf", "application/x-truetype-font", b"font")
            if name == "sound.mkv":
                container.add_stream("flac", rate=8000, layout="mono")
            for number in range(20):
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number, (32, 64)), format="rgb24")))
            container.mux(video.encode())
    file = tmp_path / "sound.mkv"
    file.write_bytes(file.read_bytes().replace(b"A_FLAC", b"A_XLAC"))
    assert [probe(tmp_path / name).frames for name in ("data.ts", "font.mkv", "sound.mkv")] == [20, 20, 20]


def test_sound_that_begins_and_ends_on_the_way(tmp_path: Path) -> None:
    """FFmpeg finds such a stream of a broadcast when it comes to it."""
    random = np.random.default_rng(0)

    def part(first: int, count: int, *, sound: bool) -> bytes:
        with av.open(str(tmp_path / "part.ts"), "w") as container:
            video: Any = container.add_stream("mpeg2video", rate=25, options={"qmin": "1", "qmax": "1", "g": "1"})
            video.width, video.height, video.pix_fmt = 256, 256, "yuv420p"
            audio: Any = container.add_stream("mp2", rate=48000, layout="mono") if sound else None
            for number in range(first, first + count):
                noise = random.integers(0, 256, (256, 256, 3), dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
                frame.pts = number
                container.mux(video.encode(frame))
            container.mux(video.encode())
            if audio is not None:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 9216), np.int16), format="s16", layout="mono")
                silence.sample_rate, silence.pts = 48000, first * 1920
                container.mux(audio.encode(silence) + audio.encode())
        return (tmp_path / "part.ts").read_bytes()

    file = tmp_path / "a.ts"
    file.write_bytes(part(0, 60, sound=False) + part(60, 10, sound=True) + part(70, 40, sound=False))
    info = probe(file)
    assert info.frames == len([*iterate_frames(file, info)]) == 110


def test_an_index_error_before_the_end_of_a_stream_is_a_sentence() -> None:
    def demuxed() -> Iterator[Any]:
        yield SimpleNamespace(size=8)
        raise IndexError("tuple index out of range")

    packets = demux(SimpleNamespace(name="file:a.ts", demux=demuxed))
    assert next(packets).size == 8
    with pytest.raises(VideoError, match=r"a.ts cannot be read \(tuple index out of range\)"):
        next(packets)


def test_sound_that_goes_on_does_not_make_a_video_short(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video: Any = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 32, "yuv420p"
        sound: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for number in range(20):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number, (32, 64)), format="rgb24")))
        container.mux(video.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence) + sound.encode())
    assert probe(tmp_path / "a.mkv").frames == 20


def test_a_size_that_changes_is_refused(tmp_path: Path) -> None:
    parts = [make_video(tmp_path / f"{n}.webm", 12, codec="libvpx", size=(32, 64 // n)) for n in (1, 2)]
    info = probe(parts[0])
    with av.open(str(tmp_path / "a.webm"), "w") as target:
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                stream: Any = target.streams.video[0] if number else None
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        shift = number * round(12 / 25 / packet.time_base)
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        target.mux(packet)
    changes = r"a\.webm changes its size from 64 x 32 to 32 x 32 at frame 12"
    with pytest.raises(VideoError, match=changes):
        probe(tmp_path / "a.webm")
    with pytest.raises(VideoError, match=changes):
        list(iterate_frames(tmp_path / "a.webm", replace(info, frames=24)))


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
    foreign = make_video(tmp_path / "foreign.mkv")
    foreign.write_bytes(foreign.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_NOBODY/ISO/XX"))
    with pytest.raises(VideoError, match=r"foreign\.mkv cannot be decoded"):
        probe(foreign)
    with pytest.raises(VideoError, match=r"absent\.mp4 cannot be decoded \(No such file"):
        probe(tmp_path / "absent.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"pipe\.mp4 is a pipe"):
        probe(tmp_path / "pipe.mp4")
    whole = make_video(tmp_path / "whole.mp4")
    with pytest.raises(VideoError, match=r"has 40 frames, but frames 30 to 45 were requested"):
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


@pytest.mark.parametrize("size", [(32, 64), (584, 64), (32, 1280)])
def test_colours_are_kept_at_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """Players take untagged HD video for BT.709, and smaller video for BT.601."""
    green = torch.tensor([0, 255, 0], dtype=torch.uint8)[:, None, None, None].expand(3, 2, *size)
    write_video(tmp_path / "a.mp4", green, 8)
    assert np.abs(read_clip(tmp_path / "a.mp4", 0, 1).astype(int) - [0, 255, 0]).max() <= 3


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


def test_the_same_frames_are_written_as_the_same_file(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 6, 6, generator=generator) * 200
    smooth = torch.nn.functional.interpolate(coarse, (15, 112, 112), mode="trilinear")[0].to(torch.uint8)
    files = set()
    for number in range(4):
        garbage = [bytes([number + 1]) * size for size in range(300, 60_000, 300)]
        write_video(tmp_path / f"{number}.mp4", smooth, 12)
        files.add((tmp_path / f"{number}.mp4").read_bytes())
        del garbage
    assert len(files) == 1


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


@pytest.mark.parametrize("fps", [1e-4, 1 / 3600, 0.3, 23.976, 30000 / 1001, 1000])
def test_slow_and_fast_frame_rates(tmp_path: Path, fps: float) -> None:
    video = torch.zeros(3, 4, 32, 32, dtype=torch.uint8)
    write_video(tmp_path / "a.mp4", video, fps)
    assert math.isclose(probe(tmp_path / "a.mp4").fps, fps, rel_tol=1e-5)
    assert math.isclose(frame_rate(fps), fps, rel_tol=1e-5)


@pytest.mark.parametrize("fps", [0, -1, 1e-9, 1e9, math.nan, math.inf])
def test_what_is_no_frame_rate(tmp_path: Path, fps: float) -> None:
    for write in (write_video, write_animation):
        with pytest.raises(ValueError, match="a frame rate is"):
            write(tmp_path / "a", torch.zeros(3, 4, 32, 32, dtype=torch.uint8), fps)
    with pytest.raises(ValueError, match="a frame rate is"):
        SampleWriter(("tokenizer", "0123"), TokenizerSpec(2, (32, 32), 8, 4, 8), fps)
    assert not list(tmp_path.iterdir())
