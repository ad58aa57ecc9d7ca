"""Open the video stream of a file through PyAV, and decode it packet by packet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError
from av.stream import Disposition

from genvid.data.frames import VideoError

_COUNTED_FROM_ZERO = ("asf", "matroska,webm", "nut")
"""Formats in whose headers FFmpeg writes the time of the end as the duration, however late the first frame is."""


@contextmanager
def open_stream(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """The container and its main video stream, decoded in one thread: data workers are the parallelism."""
    if Path(path).is_fifo():
        raise VideoError(f"{path} is a pipe, and a video is read several times: write it to a file first")
    try:
        # The protocol is explicit: FFmpeg would read one from a file name with a colon.
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            stream: Any = container.streams.best("video")
            if stream is None or stream.disposition & Disposition.attached_pic:
                raise VideoError(f"{path} has no video stream")
            if stream.codec_context is None:
                raise VideoError(f"{path} cannot be decoded (unknown codec)")
            stream.thread_type = "NONE"
            stream.copy_opaque = True
            if stream.name == "hevc":  # whose decoder leaves damaged frames out without an error otherwise
                stream.options = {"err_detect": "explode"}
            yield container, stream
    except (FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path} cannot be decoded ({reason})") from None


def demux(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets of the streams, of all if none is given. `container.decode` loses a packet's memory whenever it is left
    before the end, as the generator within it is not closed then (PyAV 18): 150 bytes a clip, for weeks. Behind the
    empty packets at the ends of the streams it raises IndexError where a stream of MPEG-TS begins on the way."""
    ended = False
    with closing(container.demux(*streams)) as packets:
        try:
            for packet in packets:
                ended = not packet.size
                yield packet
        except IndexError as error:
            if not ended:
                raise VideoError(f"{container.name.removeprefix('file:')} cannot be read ({error})") from None


def decode(packets: Iterator[Any]) -> Iterator[Any]:
    """The decoded frames. `opaque` of one that comes from a key packet is the time stamp of that."""
    for packet in packets:
        if packet.is_keyframe:
            packet.opaque = _stamp(packet)
        yield from packet.decode()


def _stamp(packet: Any) -> int | None:
    """When a packet is shown or, as AVI has it, decoded."""
    stamp: int | None = packet.dts if packet.pts is None else packet.pts
    return stamp


def counted(path: str | Path, packets: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    """Frames with their index. VideoError at the first one that the decoder could only guess."""
    for index, frame in enumerate(decode(packets)):
        if frame.is_corrupt:
            raise VideoError(f"{path} is damaged at frame {index}")
        yield index, frame


class Timeline:
    """The frames of a file by its packets, beside those of its header."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        # In AVI the header has a count of frames; the duration of a cut file is guessed from its size.
        self._counted = container.format.name == "avi"
        self._ends: dict[int, int] = {}
        self._packets = 0
        self.key_packets = 0
        """Those with a frame to show."""

    def packets(self) -> Iterator[Any]:
        """Packets of the video stream. The ends of the other streams are recorded too where the header has a duration,
        which is that of the longest."""
        for packet in demux(self._container, *([self._stream] if self._counted else [])):
            # The packet that ends a stream has the number 0 itself, whatever its stream.
            stream, stamp = packet.stream.index, _stamp(packet)
            if stamp is not None:
                end = stamp + (packet.duration or 0)
                self._ends[stream] = max(end, self._ends.get(stream, end))
            if stream == self._stream.index:
                if packet.size and not packet.is_discard:
                    self._packets += 1
                    self.key_packets += packet.is_keyframe
                yield packet

    def check(self, path: str | Path, frames: int) -> None:
        """VideoError when packets or frames are missing. Headers are not exact: a twentieth of the duration and a
        tenth of the frames may be missing in good files."""
        reached, promised = self._seconds()
        if reached * (1 + 1 / frames) < 0.95 * promised:
            total = self._stream.frames or round(promised * frames_per_second(self._stream, []))
            raise VideoError(f"{path} is cut short: {frames} of its {total} frames can be decoded")
        if self._container.format.name == "gif" and _last_byte(path) not in b";\0":  # the ends of a file and of a frame
            raise VideoError(f"{path} is cut short: it ends within frame {frames - 1}")
        if frames < 0.9 * min(self._packets, self._stream.frames):
            raise VideoError(f"{path} is damaged: {frames} of its {self._packets} frames can be decoded")

    def _seconds(self) -> tuple[float, float]:
        """How far the packets reach, and how far they should."""
        if self._counted:
            unit = self._stream.time_base
            return float(self._ends[self._stream.index] * unit), float(self._stream.frames * unit)
        ends = [float(end * self._container.streams[stream].time_base) for stream, end in self._ends.items()]
        begin, duration = self._container.start_time or 0, self._container.duration or 0
        if self._container.format.name in _COUNTED_FROM_ZERO:
            begin = 0
        return max(ends, default=0) - begin / av.time_base, duration / av.time_base


def _last_byte(path: str | Path) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read()


def frames_per_second(stream: Any, stamps: Sequence[int | None]) -> float:
    """Frames a second: as the header has it, unless the time stamps of the frames have another."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    if len(stamps) < 2 or stamps[0] is None or stamps[-1] is None or stamps[-1] <= stamps[0]:
        return rate
    span = stamps[-1] - stamps[0]
    shown = (len(stamps) - 1) / (span * float(stream.time_base))
    return rate if abs(shown / rate - 1) < 0.01 + 1 / span else shown
