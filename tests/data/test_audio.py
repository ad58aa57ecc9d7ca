"""Audio that is copied from a video into a file, and from the file into another video."""

from __future__ import annotations

import resource
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from genvid.data.audio import AudioError, audio_file, open_audio
from genvid.data.frames import VideoError
from genvid.data.video import probe, video_writer, write_video

RATE = 16000


def write_with_audio(
    path: Path, codec: str = "aac", *, seconds: float = 2, begin: float = 0, layout: str = "mono"
) -> None:
    """Ten pictures a second, from `begin` on, beside a tone that rises by 100 Hz every tenth of a second."""
    times = np.arange(int(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (200 + 100 * np.floor(times * 10)) * times)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = container.add_stream(codec, rate=RATE, layout=layout)
        for number in range(int(seconds * 10)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts = number + round(10 * begin)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray((tone * 20000).astype(np.int16)[None], format="s16", layout="mono")
        sound.rate, sound.pts = RATE, 0
        for part in [*av.AudioResampler(audio.format, layout, RATE).resample(sound)]:
            container.mux(audio.encode(part))
        container.mux(audio.encode())


def samples(path: Path) -> tuple[np.ndarray, list[float]]:
    """Sound of a file, and the time of each of its frames."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
        return np.concatenate([frame.to_ndarray()[0] for frame in frames]), [float(frame.time) for frame in frames]


def copy(path: Path, output: Path, *, frames: int) -> None:
    with audio_file(path) as audio, video_writer(output, 10, audio=audio) as append:
        for number in range(frames):
            append(torch.full((3, 1, 32, 32), 10 * number, dtype=torch.uint8))


def test_audio_is_copied_sample_for_sample(tmp_path: Path) -> None:
    write_with_audio(tmp_path / "a.mp4")
    copy(tmp_path / "a.mp4", tmp_path / "b.mp4", frames=20)
    (before, times), (after, copied) = samples(tmp_path / "a.mp4"), samples(tmp_path / "b.mp4")
    assert np.array_equal(after, before[: len(after)])
    assert len(after) >= 2 * RATE
    assert np.allclose(copied, times[: len(copied)], atol=1e-3)
    assert probe(tmp_path / "b.mp4").frames == 20


def test_pcm_of_avi_is_copied(tmp_path: Path) -> None:
    """AVI has the number of channels, and not which they are."""
    write_with_audio(tmp_path / "a.avi", "pcm_s16le", layout="stereo")
    copy(tmp_path / "a.avi", tmp_path / "b.mp4", frames=20)
    before, after = samples(tmp_path / "a.avi")[0], samples(tmp_path / "b.mp4")[0]
    assert len(after) >= 2 * 1.9 * RATE
    assert np.array_equal(after, before[: len(after)])


def test_audio_ends_with_the_video(tmp_path: Path) -> None:
    write_with_audio(tmp_path / "a.mp4")
    copy(tmp_path / "a.mp4", tmp_path / "b.mp4", frames=5)
    assert 0.5 <= len(samples(tmp_path / "b.mp4")[0]) / RATE < 0.7


def test_audio_stays_beside_its_pictures(tmp_path: Path) -> None:
    """Pictures that begin half a second after the sound: the copied video begins with both at this moment."""
    write_with_audio(tmp_path / "a.mkv", begin=0.5)
    copy(tmp_path / "a.mkv", tmp_path / "b.mp4", frames=20)
    sound, times = samples(tmp_path / "b.mp4")
    for shown in (0.25, 0.95):
        middle = round((shown - times[0]) * RATE)
        spectrum = np.abs(np.fft.rfft(sound[middle - 500 : middle + 500] * np.hanning(1000)))
        assert abs(int(spectrum.argmax()) * RATE / 1000 - (200 + 100 * int((shown + 0.5) * 10))) < 40


def test_videos_without_audio_and_other_codecs(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", torch.zeros(3, 3, 32, 32, dtype=torch.uint8), 10)
    for silent in (tmp_path / "a.mp4", tmp_path):
        with audio_file(silent) as audio:
            assert audio is None
    write_with_audio(tmp_path / "law.avi", "pcm_mulaw")
    with (
        pytest.raises(AudioError, match=r"its audio \(pcm_mulaw\) cannot be copied into mp4"),
        audio_file(tmp_path / "law.avi"),
    ):
        pass


def test_audio_without_packets_and_of_an_unknown_codec(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "empty.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        container.add_stream("flac", rate=RATE, layout="mono")
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(video.encode())
    with audio_file(tmp_path / "empty.mkv") as audio:
        assert audio is None
    write_with_audio(tmp_path / "a.mkv", "flac")
    (tmp_path / "b.mkv").write_bytes((tmp_path / "a.mkv").read_bytes().replace(b"A_FLAC", b"A_XLAC"))
    with (
        pytest.raises(AudioError, match=r"its audio \(unknown codec\) cannot be copied into mp4"),
        audio_file(tmp_path / "b.mkv"),
    ):
        pass


def test_a_full_disk_does_not_leave_the_audio_out(tmp_path: Path) -> None:
    write_with_audio(tmp_path / "a.mp4")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OSError, match="File too large"), audio_file(tmp_path / "a.mp4"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_damaged_audio_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"no audio at all" * 20):
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(VideoError, match="the audio is damaged"), open_audio(tmp_path / "a.mp4"):
            pass
    write_video(tmp_path / "v.mp4", torch.zeros(3, 3, 32, 32, dtype=torch.uint8), 10)
    with pytest.raises(VideoError, match="the audio is damaged"), open_audio(tmp_path / "v.mp4"):
        pass
