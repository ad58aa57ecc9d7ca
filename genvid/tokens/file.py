"""Token files (.tok): the tokens of one video in segments, written and read as a stream (docs/format.md).

    signature | header | segment | segment | ...
    segment = blocks, frames, bytes of the payload | checksum | payload

Segments are coded independently of each other; one of no blocks is a piece of the audio. Any bytes are read or refused
with TokenFileError, a segment at a time: a file of any size takes no more memory than `MOST_PAYLOAD` and
`MOST_POSITIONS` allow.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from genvid import config as configuration
from genvid.provenance import check_made_from
from genvid.tokens.blocks import BlockTokens, TokenizerSpec
from genvid.tokens.entropy import CodeModel, EntropyError
from genvid.tokens.header import Header, TokenFileError
from genvid.tokens.payload import count_tokens, pack_codes, pack_latents, unpack_codes, unpack_latents

SIGNATURE = b"\x89TOK\r\n\x1a"
VERSION = 1
MOST_HEADER, MOST_PAYLOAD = 2**16, 2**24
"""Bytes."""
MOST_BLOCKS, MOST_POSITIONS, MOST_NUMBERS, MOST_COLUMNS = 2**12, 2**20, 2**24, 2**16
"""Of a segment: blocks, positions, channels of the latents of all positions, and channels of all blocks."""
_AUDIO_PIECE = 2**20


@dataclass(frozen=True)
class Segment:
    """Consecutive blocks of a video."""

    start: int
    """Index of its first frame."""
    frames: int
    """Frames of the video; where these do not fill its blocks, decoding gives more."""
    blocks: int
    payload: bytes


@dataclass(frozen=True)
class TokenCount:
    """Numbers of the whole segments of a file."""

    segments: int
    frames: int
    blocks: int
    tokens: int
    payload_bytes: int
    """Of the blocks, without the audio and the heads of segments."""


class _Head(NamedTuple):
    """The numbers before a payload, and where that begins."""

    blocks: int
    frames: int
    size: int
    checksum: int
    begin: int

    @property
    def end(self) -> int:
        return self.begin + self.size


class TokenWriter:
    """Appends segments to a stream, each of which is flushed."""

    def __init__(self, stream: BinaryIO, header: Header, model: CodeModel | None) -> None:
        """Writes the header at the beginning of a stream; a stream that is continued has it already. `model`: of the
        codes; None for latents."""
        self._stream, self.header, self.model = stream, header, model
        self.frames = 0
        """Frames of all segments in the stream."""
        if not stream.tell():
            stream.write(_beginning(header))

    def append(self, tokens: BlockTokens, frames: int) -> None:
        """The next blocks, of one video, which hold so many of its frames."""
        header, (videos, blocks, capacity) = self.header, tokens.keep.shape
        if videos != 1 or capacity != header.block_capacity or not header.fits(blocks, frames):
            raise TokenFileError(
                f"a segment of {videos} videos, {blocks} blocks x {capacity} and {frames} frames does not fit a file "
                f"of blocks of {header.block_capacity} tokens and {header.frames_per_block} frames"
            )
        if _exceeds(header, blocks):
            raise TokenFileError(f"a segment of {blocks} blocks x {capacity} exceeds the limits of the format")
        if self.frames + frames > header.frames:
            raise TokenFileError(f"a file of {header.frames} frames cannot hold {self.frames + frames}")
        self._write(blocks, frames, self._pack(tokens))
        self.frames += frames

    def _pack(self, tokens: BlockTokens) -> bytes:
        header = self.header
        if header.latents is not None:
            return pack_latents(tokens, header.latents)
        assert self.model is not None
        assert header.codebook_size is not None
        return pack_codes(tokens, self.model, header.codebook_size)

    def append_audio(self, pieces: Iterable[bytes]) -> None:
        """An audio file (mp4), in pieces of any size, before the first blocks."""
        for piece in pieces:
            for start in range(0, len(piece), _AUDIO_PIECE):
                self._write(0, 0, piece[start : start + _AUDIO_PIECE])

    def _write(self, blocks: int, frames: int, payload: bytes) -> None:
        if len(payload) > MOST_PAYLOAD:
            raise TokenFileError(
                f"a segment holds at most {MOST_PAYLOAD} bytes, got {len(payload)}: give it fewer blocks"
            )
        head = b"".join(_varint(number) for number in (blocks, frames, len(payload)))
        checksum = zlib.crc32(payload, zlib.crc32(head))
        self._stream.write(head + checksum.to_bytes(4, "little") + payload)
        self._stream.flush()


class TokenFile:
    """A token file, open for reading. A file that was cut anywhere gives every whole segment before the cut."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        """TokenFileError for a file without a whole header. `read_token_file` opens and closes the stream."""
        self.path, self._stream = path, stream
        self._size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        signature = stream.read(len(SIGNATURE) + 1)
        if signature[:2] == b"PK":
            raise TokenFileError(
                f"{path} is a token file of an earlier version (.npz), which is read no longer: encode the video again"
            )
        if signature[:-1] != SIGNATURE:
            raise TokenFileError(f"{path} is not a token file: give one that `genvid encode` wrote")
        if signature[-1] != VERSION:
            raise TokenFileError(f"{path} is of version {signature[-1]} of token files; this genvid reads {VERSION}")
        try:
            self.header = self._read_header()
        except (TokenFileError, EOFError) as error:
            raise TokenFileError(f"{path} is damaged: {error}") from None
        self._begin = stream.tell()

    def check_tokenizer(self, spec: TokenizerSpec, fingerprint: str) -> None:
        """ProvenanceError for another tokenizer than the file's own, TokenFileError where the header contradicts it."""
        way_out = f"decode with {self.header.tokenizer!r}, the tokenizer that it was encoded with"
        check_made_from(self.path, {"tokenizer": self.header.fingerprint}, {"tokenizer": fingerprint}, way_out)
        header = self.header
        channels = spec.token_dim if spec.codebook_size is None else 1
        blocks = (header.frames_per_block, header.block_capacity, header.codebook_size, header.channels)
        held = (*blocks, (header.height, header.width))
        own = (spec.frames_per_block, spec.block_capacity, spec.codebook_size, channels, spec.resolution)
        if held != own:
            raise TokenFileError(f"{self.path} is damaged: its header contradicts its tokenizer ({held} and {own})")

    def segments(self, first_frame: int = 0) -> Iterator[Segment]:
        """Whole segments, from the one that holds `first_frame` on; those before it are skipped, not read."""
        start = 0
        for head in self._heads():
            if head.blocks and start + head.frames > first_frame:
                yield Segment(start, head.frames, head.blocks, self._payload(head))
            start += head.frames

    def audio(self) -> Iterator[bytes]:
        """Pieces of the audio file that was copied from the video; none where there is none."""
        for head in self._heads():
            if head.blocks:
                return
            yield self._payload(head)

    def tokens(self, model: CodeModel | None, first_frame: int = 0) -> Iterator[tuple[Segment, BlockTokens]]:
        """Segments and their tokens, a limited number of positions at a time. `model`: of the codes; None for
        latents."""
        own = ({}, None) if model is None else (dict(model.record), model.codebook_size)
        held = (self.header.codes, self.header.codebook_size)
        if own != held:
            raise TokenFileError(f"{self.path} was coded by {held}, which {own} cannot decode")
        for several in self._side_by_side(first_frame, 1 if model is None else model.side_by_side):
            try:
                tokens = self._unpack(several, model)
            except EntropyError as error:
                raise self._damaged(str(error)) from None
            yield from zip(several, tokens, strict=True)

    def count(self) -> TokenCount:
        """Numbers of its whole segments, which need no code model."""
        counts = np.zeros(5, np.int64)
        for part in self.segments():
            try:
                tokens = count_tokens(part.payload, part.blocks, self.header.block_capacity, self.header.latents)
            except EntropyError as error:
                raise self._damaged(str(error)) from None
            counts += (1, part.frames, part.blocks, tokens, len(part.payload))
        return TokenCount(*counts.tolist())

    def whole(self) -> tuple[int, int]:
        """Frames and end, in bytes, of its whole segments, whose checksums are compared."""
        frames, end = 0, self._begin
        for head in self._heads():
            self._payload(head)
            frames, end = frames + head.frames, head.end
        return frames, end

    def _unpack(self, segments: list[Segment], model: CodeModel | None) -> list[BlockTokens]:
        capacity, steps = self.header.block_capacity, self.header.latents
        if steps is not None:
            return [unpack_latents(part.payload, part.blocks, capacity, steps) for part in segments]
        assert model is not None
        payloads, blocks = [part.payload for part in segments], [part.blocks for part in segments]
        return unpack_codes(payloads, blocks, capacity, model)

    def _side_by_side(self, first_frame: int, most: int) -> Iterator[list[Segment]]:
        """Segments in groups of at most `most`, each within the limits of one segment."""
        group, positions, size = list[Segment](), 0, 0
        for part in self.segments(first_frame):
            positions += part.blocks * self.header.block_capacity
            size += len(part.payload)
            if group and (positions > MOST_POSITIONS or size > MOST_PAYLOAD or len(group) == most):
                yield group
                group, positions, size = [], part.blocks * self.header.block_capacity, len(part.payload)
            group.append(part)
        if group:
            yield group

    def _read_header(self) -> Header:
        size, checksum = int.from_bytes(self._read(4), "little"), int.from_bytes(self._read(4), "little")
        if size > MOST_HEADER:
            raise TokenFileError(f"a header of {size} bytes is longer than {MOST_HEADER}")
        data = self._read(size)
        if zlib.crc32(data) != checksum:
            raise TokenFileError("the checksum of its header is wrong")
        return Header.decode(data)

    def _heads(self) -> Iterator[_Head]:
        """The numbers before each whole payload. A payload that is not read is skipped."""
        end, frames = self._begin, 0
        while True:
            self._stream.seek(end)
            try:
                head = self._read_head()
            except EOFError:
                return
            frames, end = frames + head.frames, head.end
            if not (self.header.fits(head.blocks, head.frames) if head.blocks else head.frames == 0):
                raise self._damaged(f"a segment of {head.blocks} blocks cannot hold {head.frames} frames")
            if head.size > MOST_PAYLOAD or _exceeds(self.header, head.blocks):
                raise self._damaged(f"a segment of {head.blocks} blocks and {head.size} bytes exceeds the limits")
            if frames > self.header.frames:
                raise self._damaged(f"its segments hold more than the {self.header.frames} frames of its header")
            if end > self._size:
                return
            yield head

    def _read_head(self) -> _Head:
        blocks, frames, size = (self._read_number() for _ in range(3))
        checksum = int.from_bytes(self._read(4), "little")
        return _Head(blocks, frames, size, checksum, self._stream.tell())

    def _read_number(self) -> int:
        """A varint of at most five bytes."""
        number = 0
        for shift in range(0, 35, 7):
            byte = self._read(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise self._damaged("a number before a segment is longer than five bytes")

    def _payload(self, head: _Head) -> bytes:
        """The payload behind a head, compared with the checksum over both."""
        self._stream.seek(head.begin)
        payload = self._read(head.size)
        written = b"".join(_varint(number) for number in (head.blocks, head.frames, head.size))
        if zlib.crc32(payload, zlib.crc32(written)) != head.checksum:
            raise self._damaged(f"the checksum of the segment that ends at byte {head.end} is wrong")
        return payload

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise EOFError("it ends too soon")
        return data

    def _damaged(self, reason: str) -> TokenFileError:
        return TokenFileError(f"{self.path} is damaged: {reason}")


@contextmanager
def read_token_file(path: str | Path) -> Iterator[TokenFile]:
    """Open a token file."""
    if not Path(path).is_file():
        raise TokenFileError(f"no token file {path}")
    with Path(path).open("rb") as stream:
        yield TokenFile(Path(path), stream)


@contextmanager
def resume_token_file(path: str | Path, header: Header, model: CodeModel | None) -> Iterator[TokenWriter]:
    """Write a token file segment by segment. Until it is complete it is called PATH.unfinished, where the same command
    goes on behind the last whole segment; TokenFileError where that file has another header."""
    unfinished = Path(f"{path}.unfinished")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    frames, end = _whole(unfinished, header) if unfinished.exists() else (0, 0)
    with unfinished.open("r+b" if end else "wb") as stream:
        stream.truncate(end)
        stream.seek(end)
        writer = TokenWriter(stream, header, model)
        writer.frames = frames
        yield writer
    if writer.frames != header.frames:
        raise TokenFileError(f"{unfinished} has {writer.frames} of {header.frames} frames: write the others first")
    unfinished.replace(path)


def _whole(unfinished: Path, header: Header) -> tuple[int, int]:
    """Frames and end of the whole segments of an unfinished file with this header; zeros where it holds no frame."""
    beginning = _beginning(header)
    with unfinished.open("rb") as stream:
        if beginning.startswith(stream.read(len(beginning) - 1)) and not stream.read(1):
            return 0, 0
    with read_token_file(unfinished) as file:
        difference = configuration.difference(*(json.loads(one.encode()) for one in (file.header, header)))
        if difference:
            raise TokenFileError(
                f"{unfinished} holds unfinished work on something else ({difference}): finish that, choose another "
                f"output, or delete {unfinished} to begin anew"
            )
        try:
            frames, end = file.whole()
        except TokenFileError as error:
            raise TokenFileError(f"{error}; delete it to begin anew") from None
    return (frames, end) if frames else (0, 0)


def _beginning(header: Header) -> bytes:
    """The bytes before the first segment."""
    data = header.encode()
    if len(data) > MOST_HEADER:
        raise TokenFileError(f"the header of a token file has at most {MOST_HEADER} bytes, got {len(data)}")
    numbers = len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little")
    return SIGNATURE + bytes([VERSION]) + numbers + data


def _exceeds(header: Header, blocks: int) -> bool:
    """Whether so many blocks are too large for a segment."""
    positions, channels = blocks * header.block_capacity, header.channels
    too_many = blocks > MOST_BLOCKS or positions > MOST_POSITIONS
    return too_many or positions * channels > MOST_NUMBERS or blocks * channels > MOST_COLUMNS


def _varint(number: int) -> bytes:
    """Seven bits a byte, lowest first; the highest bit marks that another byte follows."""
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])
