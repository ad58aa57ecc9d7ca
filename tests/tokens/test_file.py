"""Token files: exact round trips, cuts, seeking, limits, and the arithmetic of docs/format.md written out."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genvid.provenance import ProvenanceError
from genvid.tokens import BlockTokens, TokenizerSpec
from genvid.tokens.code_counts import CodeCounts
from genvid.tokens.entropy import Decoder, Encoder, EntropyError, UniformCodes, get_lengths, put_lengths
from genvid.tokens.file import MOST_POSITIONS, TokenWriter, read_token_file, resume_token_file
from genvid.tokens.header import Header, TokenFileError

SPEC = TokenizerSpec(4, (32, 48), 16, 6, codebook_size=300, max_blocks=4)
MODEL = UniformCodes(SPEC)
HEADER = Header.of(SPEC, 47, Fraction(30000, 1001), tokenizer=("x", "0123"), codes=MODEL.record)


def random_tokens(seed: int, blocks: int = 4, spec: TokenizerSpec = SPEC) -> BlockTokens:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, spec.block_capacity + 1, (1, blocks, 1), generator=generator)
    codes = torch.randint(0, spec.codebook_size or 0, (1, blocks, spec.block_capacity), generator=generator)
    return BlockTokens(torch.arange(spec.block_capacity) < lengths, codes)


PARTS = [(random_tokens(0), 16), (random_tokens(1), 16), (random_tokens(2), 15)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three clips, behind two pieces of audio."""
    with resume_token_file(tmp_path / "a.tok", HEADER, MODEL) as writer:
        writer.append_audio([b"sound", b"more"])
        for tokens, frames in PARTS:
            writer.append(tokens, frames)
    return tmp_path / "a.tok"


def kept(tokens: BlockTokens) -> tuple[list[list[int]], list[int]]:
    assert tokens.codes is not None
    return tokens.lengths.tolist(), tokens.codes[tokens.keep].tolist()


def test_what_is_read_is_what_was_written(file: Path) -> None:
    with read_token_file(file) as opened:
        assert opened.header == HEADER
        assert list(opened.audio()) == [b"sound", b"more"]
        for (segment, tokens), (written, frames) in zip(opened.tokens(MODEL), PARTS, strict=True):
            assert segment.frames == frames
            assert kept(tokens) == kept(written)
        count = opened.count()
    tokens = sum(int(written.keep.sum()) for written, _ in PARTS)
    assert (count.segments, count.frames, count.blocks, count.tokens) == (3, 47, 12, tokens)
    assert count.payload_bytes <= (tokens * np.log2(300) + 12 * np.log2(17)) / 8 + 3 * 8


def test_a_file_that_is_cut_gives_every_segment_before_the_cut(file: Path) -> None:
    data = file.read_bytes()
    ends = segment_ends(file)
    for size in range(len(data)):
        file.write_bytes(data[:size])
        if size < ends[0]:
            with pytest.raises(TokenFileError), read_token_file(file):
                pass
            continue
        with read_token_file(file) as opened:
            read = list(opened.tokens(MODEL))
        whole = max(0, sum(size >= end for end in ends[1:]) - 2)  # two hold audio
        assert [kept(tokens) for _, tokens in read] == [kept(tokens) for tokens, _ in PARTS[:whole]]


def segment_ends(file: Path) -> list[int]:
    with read_token_file(file) as opened:
        return [opened._begin, *(head.end for head in opened._heads())]


@pytest.mark.parametrize(
    ("frame", "starts"), [(0, [0, 16, 32]), (15, [0, 16, 32]), (16, [16, 32]), (46, [32]), (47, [])]
)
def test_reading_begins_at_any_frame(file: Path, frame: int, starts: list[int]) -> None:
    with read_token_file(file) as opened:
        found = list(opened.tokens(MODEL, frame))
    assert [segment.start for segment, _ in found] == starts
    written = {0: PARTS[0], 16: PARTS[1], 32: PARTS[2]}
    assert all(kept(tokens) == kept(written[segment.start][0]) for segment, tokens in found)


def test_segments_that_are_skipped_are_not_read(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[segment_ends(file)[3] - 1] ^= 1  # the first of three clips
    file.write_bytes(data)
    with read_token_file(file) as opened:
        assert [segment.start for segment in opened.segments(16)] == [16, 32]
        with pytest.raises(TokenFileError, match="the checksum of the segment that ends at byte"):
            list(opened.segments())


def test_every_damaged_byte_is_noticed(file: Path) -> None:
    data = file.read_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(TokenFileError):
            read_all(file)


def read_all(file: Path) -> None:
    with read_token_file(file) as opened:
        list(opened.audio())
        if sum(segment.frames for segment, _ in opened.tokens(MODEL)) < opened.header.frames:
            raise TokenFileError("cut")


def test_an_unfinished_file_goes_on_behind_its_last_whole_segment(file: Path) -> None:
    whole, ends = file.read_bytes(), segment_ends(file)
    unfinished = file.with_name("a.tok.unfinished")
    for size in (0, 5, ends[0], ends[1], ends[2] + 3, ends[3], ends[4] + 9, ends[5]):
        unfinished.write_bytes(whole[:size])
        with resume_token_file(file, HEADER, MODEL) as writer:
            done = writer.frames
            if not done:
                writer.append_audio([b"sound", b"more"])
            for number, (tokens, frames) in enumerate(PARTS):
                if 16 * number >= done:
                    writer.append(tokens, frames)
        assert file.read_bytes() == whole
        assert not unfinished.exists()


def test_unfinished_files_of_others_and_incomplete_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="has 16 of 47 frames"), write(tmp_path / "a.tok") as writer:
        writer.append(*PARTS[0])
    unfinished = tmp_path / "a.tok.unfinished"
    whole = unfinished.read_bytes()
    unfinished.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TokenFileError, match=r"checksum.*; delete it to begin anew"), write(tmp_path / "a.tok"):
        pass
    other = replace(HEADER, made_from={"tokens per second": 3})
    with pytest.raises(TokenFileError, match="something else"), resume_token_file(tmp_path / "a.tok", other, MODEL):
        pass


def write(path: Path):  # type: ignore[no-untyped-def]
    return resume_token_file(path, HEADER, MODEL)


def test_what_does_not_fit_is_refused_before_it_is_written() -> None:
    stream = io.BytesIO()
    writer = TokenWriter(stream, HEADER, MODEL)
    begin, (tokens, _) = stream.tell(), PARTS[0]
    assert tokens.codes is not None
    gaps = tokens.keep.clone()
    gaps[0, 0] = torch.arange(16) % 2 == 1
    for wrong, frames, message in [
        (tokens, 17, "does not fit"),
        (tokens, 0, "does not fit"),
        (BlockTokens(tokens.keep[..., :8], tokens.codes[..., :8]), 16, "does not fit"),
        (BlockTokens.concatenate([tokens, tokens]), 16, "2 videos"),
        (random_tokens(0, blocks=12), 48, "a file of 47 frames cannot hold 48"),
        (replace(tokens, keep=gaps), 16, "has gaps"),
        (replace(tokens, keep=torch.ones_like(gaps), codes=tokens.codes + 300), 16, "codes are 0 to 299"),
        (replace(tokens, codes=None), 16, "latents"),
        (random_tokens(0, blocks=MOST_POSITIONS // 16 + 1), 16, "exceeds the limits of the format"),
    ]:
        with pytest.raises(ValueError, match=message):
            writer.append(wrong, frames)
    assert stream.tell() == begin


def test_a_file_belongs_to_its_tokenizer(file: Path) -> None:
    with read_token_file(file) as opened:
        opened.check_tokenizer(SPEC, "0123")
        with pytest.raises(ProvenanceError, match="decode with 'x', the tokenizer that it was encoded with"):
            opened.check_tokenizer(SPEC, "4567")
        with pytest.raises(TokenFileError, match="contradicts its tokenizer"):
            opened.check_tokenizer(replace(SPEC, block_capacity=17), "0123")
        with pytest.raises(TokenFileError, match="cannot decode"):
            next(opened.tokens(CodeCounts.zeros(SPEC)))


def test_other_files_are_refused_in_words(tmp_path: Path, file: Path) -> None:
    data = file.read_bytes()
    for content, message in [
        (b"", "is not a token file"),
        (b"PK\3\4" + data, r"an earlier version \(.npz\)"),
        (data[:7] + b"\2" + data[8:], "is of version 2 of token files; this genvid reads 1"),
        (data[:8] + b"\0\0\2\0" + data[12:], "longer than 65536"),
        (data[:20], "it ends too soon"),
    ]:
        (tmp_path / "b.tok").write_bytes(content)
        with pytest.raises(TokenFileError, match=message), read_token_file(tmp_path / "b.tok"):
            pass
    with pytest.raises(TokenFileError, match="no token file"), read_token_file(tmp_path / "c.tok"):
        pass


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 0},
        {"frames": 2.0},
        {"frames": True},
        {"width": 2**14 + 1},
        {"rate": [1]},
        {"rate": [0, 1]},
        {"rate": [1, 2**40]},
        {"codes": []},
        {"codes": {"type": 3}},
        {"tokenizer": "x" * 257},
        {"tokenizer": "\ud800"},
        {"fingerprint": None},
        {"block_capacity": 10**4000},
        {"codebook_size": 2**20 + 1},
        {"made_from": 3},
        {"more": 1},
    ],
)
def test_headers_are_read_strictly(change: dict[str, object]) -> None:
    values = json.loads(HEADER.encode())
    with pytest.raises(TokenFileError):
        Header.decode(json.dumps({**values, **change}).encode())
    assert Header.decode(json.dumps(values).encode()) == HEADER


@pytest.mark.parametrize("text", [b"[" * 60000, b"{", b"NaN", b"\xff", b"9" * 60000, b'{"frames": Infinity}'])
def test_headers_that_are_no_json(text: bytes) -> None:
    with pytest.raises(TokenFileError):
        Header.decode(text)


FOUND = [
    pytest.param(bytes([1, 0, 0]), id="a block without frames"),
    pytest.param(bytes([0, 1, 0]), id="frames of audio"),
    pytest.param(bytes([1, 5, 0]), id="five frames in a block of four"),
    pytest.param(bytes([16, 48, 0]), id="more frames than the file"),
    pytest.param(bytes([255, 255, 255, 255, 255, 1]), id="a long number"),
    pytest.param(bytes([255, 255, 255, 255, 127, 47, 0]), id="blocks over the limit"),
    pytest.param(bytes([4, 16, 255, 255, 255, 127]), id="bytes over the limit"),
]


@pytest.mark.parametrize("head", FOUND)
def test_impossible_segments_are_refused(file: Path, head: bytes) -> None:
    begin = file.read_bytes()[: segment_ends(file)[0]]
    file.write_bytes(begin + head + zlib.crc32(head).to_bytes(4, "little"))
    with pytest.raises(TokenFileError):
        read_all(file)


def range_decoder(data: bytes) -> Iterator[int]:
    """The arithmetic of docs/format.md: each `send` of cumulative frequencies, of 2^24 in all, gives a symbol."""
    words = iter(np.frombuffer(data + bytes(-len(data) % 4), ">u4").tolist())
    low, size, point = 0, 2**64 - 1, next(words, 0) << 32 | next(words, 0)
    symbol = -1
    while True:
        cumulative = yield symbol
        scale = size >> 24
        place = ((point - low) % 2**64) // scale
        assert place < 2**24
        symbol = int(np.searchsorted(cumulative, place, side="right")) - 1
        low = (low + scale * int(cumulative[symbol])) % 2**64
        size = scale * int(cumulative[symbol + 1] - cumulative[symbol])
        if size < 2**32:
            low, size, point = low << 32 & 2**64 - 1, size << 32, (point << 32 & 2**64 - 1) | next(words, 0)


def cumulative(frequencies: list[int]) -> list[int]:
    """floor(F (2^24 - A) / total) + i, in double precision."""
    scale = (2**24 - len(frequencies)) / sum(frequencies)
    return [int(sum(frequencies[:i]) * scale) + i for i in range(len(frequencies))] + [2**24]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_coder_is_that_of_the_specification(data: st.DataObject) -> None:
    alphabets = st.lists(st.integers(0, 2**20), min_size=2, max_size=9).filter(any)
    models = data.draw(st.lists(alphabets, max_size=40))
    symbols = [data.draw(st.integers(0, len(model) - 1)) for model in models]
    encoder = Encoder()
    for symbol, model in zip(symbols, models, strict=True):
        encoder.put(np.array([symbol]), np.array(model))
    coded = encoder.bytes()
    decoder, slow = Decoder(coded), range_decoder(coded)
    next(slow)
    for symbol, model in zip(symbols, models, strict=True):
        assert decoder.get(np.array(model), 1).tolist() == [symbol]
        assert slow.send(np.array(cumulative(model))) == symbol


@pytest.mark.parametrize("size", [2, 300, 2048, 2**20 - 1])
def test_uniform_codes_are_packed_to_their_bits(size: int) -> None:
    symbols = np.random.default_rng(0).integers(0, size, 1000)
    encoder = Encoder()
    encoder.put_uniform(symbols, size)
    coded = encoder.bytes()
    assert Decoder(coded).get_uniform(size, 1000).tolist() == symbols.tolist()
    assert len(coded) * 8 < 1000 * np.log2(size) * (1.003 if size > 2**16 else 1) + 40
    slow = range_decoder(coded)
    next(slow)
    bounds = np.array([*(np.arange(size) * (2**24 // size)), 2**24])
    assert [slow.send(bounds) for _ in range(20)] == symbols[:20].tolist()


def test_lengths_that_repeat_cost_little() -> None:
    encoder = Encoder()
    lengths = [7] * 400 + [0, 64]
    put_lengths(encoder, lengths, 64)
    assert len(encoder.bytes()) < 60
    assert get_lengths(Decoder(encoder.bytes()), 402, 64) == lengths


def test_any_bytes_are_symbols_or_an_error() -> None:
    generator = np.random.default_rng(0)
    for size in range(200):
        decoder = Decoder(generator.bytes(size))
        try:
            symbols = decoder.get(generator.integers(1, 50, 9), 100)
        except EntropyError:
            continue
        assert symbols.min() >= 0
        assert symbols.max() < 9


def test_segments_are_decoded_side_by_side_within_the_limits(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, value, groups in (("MOST_POSITIONS", 128, [2, 1]), ("MOST_PAYLOAD", 90, None)):
        with monkeypatch.context() as patch, read_token_file(file) as opened:
            patch.setattr(f"genvid.tokens.file.{limit}", value)
            found = [len(group) for group in opened._side_by_side(0, 2)]
            assert groups in (found, None)
            assert [kept(tokens) for _, tokens in opened.tokens(MODEL)] == [kept(tokens) for tokens, _ in PARTS]


def test_counted_codes_are_coded_by_their_counts(tmp_path: Path) -> None:
    """A code that is likely at the beginning of blocks and another at their end: half of the bits of uniform codes."""
    generator = np.random.default_rng(0)
    blocks = [np.where(np.arange(16) < 8, 7, generator.integers(0, 300, 16)) for _ in range(400)]
    counts = CodeCounts.zeros(SPEC)
    counts.add(blocks)
    assert counts.counts.sum() == 16 * 400
    assert counts.counts[0, 7] == 400
    assert counts.counts.shape == (5, 300)
    lengths = [16, 0, 1, 9]
    codes = [block[:length] for block, length in zip(blocks, lengths, strict=False)]
    encoder = Encoder()
    counts.encode(encoder, codes)
    assert len(encoder.bytes()) < 14 < 26 * np.log2(300) / 8
    decoded = counts.decode([Decoder(encoder.bytes()) for _ in range(2)], [lengths, lengths])
    assert all([part.tolist() for part in own] == [part.tolist() for part in codes] for own in decoded)
    assert CodeCounts.load(tmp_path, SPEC) is None
    counts.save(tmp_path)
    loaded = CodeCounts.load(tmp_path, SPEC)
    assert loaded is not None
    assert loaded.record == counts.record != CodeCounts.zeros(SPEC).record
    long = [generator.integers(0, 300, 64)]  # of larger frames: the last row is of all later positions
    encoder = Encoder()
    loaded.encode(encoder, long)
    assert loaded.decode([Decoder(encoder.bytes())], [[64]])[0][0].tolist() == long[0].tolist()
    with pytest.raises(ValueError, match="but this tokenizer 301 codes"):
        CodeCounts.load(tmp_path, replace(SPEC, codebook_size=301))
