"""Fuzz the reader of token files: python tests/tokens/fuzz_files.py --seconds 1200 [--seed 0]

Files of every kind are mutated: bytes, cuts, numbers of segments and of the header, with checksums made right again or
not. Each must be read, or be refused with TokenFileError, within five seconds of a processor and 256 MiB. What is found
is written to found-*.tok.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import signal
import time
import zlib
from copy import deepcopy
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from genvid.ar.coding import ARCodes
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.tokens import BlockTokens, TokenizerSpec
from genvid.tokens.blocks import LatentSteps, MeanTokens
from genvid.tokens.code_counts import CodeCounts
from genvid.tokens.entropy import CodeModel, UniformCodes
from genvid.tokens.file import SIGNATURE, VERSION, TokenFile, TokenWriter
from genvid.tokens.header import Header, TokenFileError
from genvid.tokens.rows import BlockLayout

MOST_SECONDS, MOST_BYTES = 5, 2**28
"""Of a processor, and of memory."""
CODES = TokenizerSpec(4, (32, 32), 8, 4, codebook_size=40, max_blocks=3)
LATENTS = LatentSteps(4, (0.5, -1.0, 0.0), (0.25, 0.5, 1.0))
NUMBERS = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 4096, 2**16 - 1, 2**16, 2**20, 2**24, 2**31, 2**32, 2**35 - 1]
FLOATS = [0.5, -0.0, 1e19, 1e308, 1e-19, 1e-308]
VALUES = [*NUMBERS, *FLOATS, -1, 2**40, 2**63, 10**30, True, None, "", "x", "\ud800", [], [1], [1, 2], {}]


@dataclass(frozen=True)
class Sample:
    """A good file in parts, and the model of its codes."""

    header: dict[str, Any]
    segments: list[tuple[int, int, bytes]]
    """Blocks, frames, payload."""
    model: CodeModel | None


def samples() -> list[Sample]:
    """A file of each kind: packed, by counts, by a model, latents, latents that are means; the last two with audio."""
    torch.manual_seed(0)
    counts = CodeCounts.zeros(CODES)
    counts.add([np.arange(8), np.zeros(8, np.int64)])
    layout = BlockLayout(codebook_size=40, num_classes=2, num_blocks=3, block_capacity=8, sizes=(2, 4, 8))
    network = TransformerConfig(width=8, depth=1, heads=2, kv_heads=1, hidden=8, max_positions=40)
    model = ARCodes(BlockTransformer(ARConfig(layout, network)).eval(), "0123")
    codes = [_sample(BlockTokens, by) for by in (UniformCodes(CODES), counts, model)]
    return [*codes, _sample(BlockTokens, None), _sample(MeanTokens, None)]


def _sample(kind: type[BlockTokens], model: CodeModel | None) -> Sample:
    spec = CODES if model else replace(CODES, codebook_size=None, token_dim=3)
    codes, latents = ({}, LATENTS) if model is None else (model.record, None)
    header = Header.of(spec, 33, Fraction(24), tokenizer=("x", "0123"), codes=codes, latents=latents)
    stream = io.BytesIO()
    writer = TokenWriter(stream, header, model)
    writer.append_audio([b"sound"] if model is None else [])
    for frames in (12, 12, 9):
        shape = (1, 3, 8)
        keep = torch.arange(8) < torch.randint(0, 9, (1, 3, 1)) if model else torch.rand(shape) < 0.5
        values = {"codes": torch.randint(0, 40, shape)} if model else {"latents": 9 * torch.randn(*shape, 3)}
        writer.append(kind(keep, **values), frames)
    opened = TokenFile(Path("good.tok"), stream)
    segments = [(0, 0, piece) for piece in opened.audio()]
    segments += [(part.blocks, part.frames, part.payload) for part in opened.segments()]
    return Sample(json.loads(header.encode()), segments, model)


def assemble(header: bytes, segments: list[tuple[int, int, bytes]], damage: random.Random | None = None) -> bytes:
    """A file with right checksums; with `damage` some lengths and checksums are wrong."""
    numbers = len(header).to_bytes(4, "little") + zlib.crc32(header).to_bytes(4, "little")
    parts = [SIGNATURE, bytes([VERSION]), numbers, header]
    for blocks, frames, payload in segments:
        size = len(payload) if damage is None or damage.random() < 0.9 else damage.choice(NUMBERS)
        head = b"".join(varint(number) for number in (blocks, frames, size))
        checksum = zlib.crc32(payload, zlib.crc32(head))
        parts += [head, checksum.to_bytes(4, "little"), payload]
    return b"".join(parts)


def varint(number: int) -> bytes:
    data = b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


def mutated(sample: Sample, chance: random.Random) -> bytes:
    """The bytes of a file that is wrong in one to three ways."""
    header, segments, damage = json.loads(json.dumps(sample.header)), list(sample.segments), None
    late = []
    for _ in range(chance.randint(1, 3)):
        kind = chance.randrange(7)
        if kind == 0:
            _mutate_header(header, chance)
        elif kind == 1:
            number = chance.randrange(len(segments))
            blocks, frames, payload = segments[number]
            values = [blocks, frames]
            values[chance.randrange(2)] = chance.choice(NUMBERS) if chance.random() < 0.5 else chance.randrange(1, 14)
            segments[number] = (*values, payload)
        elif kind == 2:
            number = chance.randrange(len(segments))
            segments[number] = (*segments[number][:2], _mutate_bytes(segments[number][2], chance))
        elif kind == 3:
            segments.insert(chance.randrange(len(segments) + 1), chance.choice(segments))
        elif kind == 4 and len(segments) > 1:
            segments.pop(chance.randrange(len(segments)))
        elif kind == 5:
            damage = chance
        else:
            late.append(_mutate_bytes)
    text = json.dumps(header).encode()
    data = assemble(_mutate_bytes(text, chance) if chance.random() < 0.03 else text, segments, damage)
    for change in late:
        data = change(data, chance)
    return data


def _mutate_header(header: dict[str, Any], chance: random.Random) -> None:
    key = chance.choice(list(header))
    inner = header.get("latents")
    if chance.random() < 0.3 and isinstance(inner, dict) and inner:
        key, header = chance.choice(list(inner)), inner
    if chance.random() < 0.1:
        del header[key]
    elif isinstance(header[key], list) and header[key] and chance.random() < 0.7:
        header[key][chance.randrange(len(header[key]))] = deepcopy(chance.choice(VALUES))  # lists may be changed again
    else:
        header[key] = deepcopy(chance.choice(VALUES if chance.random() < 0.5 else [n for n in NUMBERS if n < 2**17]))


def _mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """Changed, cut, lengthened or repeated somewhere."""
    changed, place = bytearray(data), chance.randrange(len(data) + 1)
    kind = chance.randrange(5)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + chance.randbytes(chance.randrange(1, 9)) + data[place:]
    if kind == 2:
        return data[:place] + data[place + chance.randrange(1, 9) :]
    if kind == 3:
        return data[:place] + data[chance.randrange(len(data) + 1) :]
    for _ in range(chance.randint(1, 4)):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def read(data: bytes, model: CodeModel | None) -> bool:
    """Everything that a reader may do with a file; whether it was read. Any error but TokenFileError is a finding."""
    try:
        opened = TokenFile(Path("fuzzed.tok"), io.BytesIO(data))
        list(opened.audio())
        opened.whole()
        for segment, tokens in opened.tokens(model, 0):
            assert tokens.keep.shape == (1, segment.blocks, opened.header.block_capacity)
            if tokens.codes is not None:
                assert 0 <= int(tokens.codes.min()) <= int(tokens.codes.max()) < (opened.header.codebook_size or 0)
        opened.count()
        list(opened.segments(13))
    except TokenFileError:
        return False
    return True


def _too_long(*_: object) -> NoReturn:
    raise TimeoutError(f"a file took more than {MOST_SECONDS} s of a processor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, every = random.Random(options.seed), samples()
    torch.set_num_threads(1)
    for sample in every:
        assert read(assemble(json.dumps(sample.header).encode(), sample.segments), sample.model)
    signal.signal(signal.SIGPROF, _too_long)
    begin, count, whole, slowest = time.monotonic(), 0, 0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while time.monotonic() < begin + options.seconds:
        (sample,) = chance.choices(every, [20, 20, 1, 20, 20])  # a network takes the time of many files
        data = mutated(sample, chance)
        started = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            whole += read(data, sample.model)
        except BaseException as error:
            Path(f"found-{options.seed}-{count}.tok").write_bytes(data)
            print(f"file {count} ({sample.header['codes'] or 'latents'}): {type(error).__name__}: {error}")
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest, count = max(slowest, time.process_time() - started), count + 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    seconds = f"{time.process_time():.0f} s of a processor, slowest {slowest:.2f}"
    print(f"{count} files, {whole} of them readable; {seconds}; memory grew by {grown / 2**20:.0f} MiB")
    assert grown < MOST_BYTES


if __name__ == "__main__":
    main()
