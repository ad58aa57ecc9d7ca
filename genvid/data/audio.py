"""The audio of a video file, copied packet by packet without decoding it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from genvid.data.decoding import demux
from genvid.data.frames import VideoError


class AudioError(ValueError):
    """Audio that an mp4 file cannot hold."""


@contextmanager
def audio_file(video: Path) -> Iterator[Path | None]:
    """A temporary mp4 file with the main audio stream of a video file, in which the first picture is shown at time 0;
    None where there is no audio. AudioError where its codec does not go into mp4."""
    if video.is_dir():
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, av.open(f"file:{video}", metadata_errors="replace") as container:
        pictures, audio = container.streams.best("video"), container.streams.best("audio")
        if pictures is None or audio is None:
            yield None
            return
        file = Path(folder) / "audio.mp4"
        begin = (pictures.start_time or 0) * pictures.time_base
        try:
            with av.open(str(file), "w", format="mp4") as target:
                copy = AudioCopy(container, audio, target, shift=round(begin / audio.time_base))
                copy.up_to(None)
        except OSError:  # such as a full disk: not an error of the audio
            raise
        except (FFmpegError, ValueError):
            codec = "unknown codec" if audio.codec_context is None else audio.name
            raise AudioError(f"its audio ({codec}) cannot be copied into mp4") from None
        yield file if file.is_file() else None  # PyAV makes no file where there are no packets


class AudioCopy:
    """Copies the packets of an audio stream into a container that is written."""

    def __init__(self, source: Any, audio: Any, target: Any, *, shift: int = 0) -> None:
        """`shift`: time that is subtracted, in units of the audio's time base."""
        self._target, self._stream, self._shift = target, target.add_stream_from_template(audio), shift
        channels = audio.layout.nb_channels
        if audio.layout.name == f"{channels} channels":  # AVI has their number alone, and mp4 names PCM's channels
            self._stream.codec_context.layout = f"{channels}c"
        self._packets = _packets(source, audio)
        self._next: Any = next(self._packets, None)

    def up_to(self, seconds: float | None) -> None:
        """Copy the packets that are decoded before this time; None: all that are left."""
        while self._next is not None and (seconds is None or self._time() < seconds):
            packet = self._next
            packet.pts, packet.dts = (packet.pts or packet.dts) - self._shift, packet.dts - self._shift
            packet.stream = self._stream
            self._target.mux(packet)
            self._next = next(self._packets, None)

    def _time(self) -> float:
        return float((self._next.dts - self._shift) * self._next.time_base)


@contextmanager
def open_audio(file: Path) -> Iterator[tuple[Any, Any]]:
    """The container and the audio stream of a file of `audio_file`; VideoError for any other file."""
    try:
        container = av.open(f"file:{file}", metadata_errors="replace")
        audio = container.streams.audio[0]
    except (FFmpegError, IndexError) as error:
        raise VideoError(f"the audio is damaged ({error})") from None
    with container:
        yield container, audio


def _packets(container: Any, audio: Any) -> Iterator[Any]:
    """Packets with a time stamp; VideoError at one that cannot be read."""
    try:
        yield from (packet for packet in demux(container, audio) if packet.dts is not None)
    except FFmpegError as error:
        raise VideoError(f"the audio is damaged ({error})") from None
