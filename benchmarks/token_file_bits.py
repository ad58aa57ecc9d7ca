"""Bits of token files by each code model: python benchmarks/token_file_bits.py CACHE TOKENIZER [--code-model MODEL]

The clips of a token cache, best of held-out videos, each as a segment: as 16-bit numbers, packed, by the counts in the
tokenizer's folder (recipes/count_codes.py), and by an autoregressive model. Every file is decoded again and compared
code by code; where there is a GPU, an autoregressive model encodes and decodes on both devices, and the bytes are
compared.
"""

from __future__ import annotations

import argparse
import io
import time
from fractions import Fraction
from pathlib import Path

import torch
from tqdm import tqdm

from genvid.ar.coding import ARCodes
from genvid.ar.row_model import RowModel
from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.generation.pipeline import check_match
from genvid.tokens import BlockTokens, VideoTokenizer
from genvid.tokens.blocks import first_tokens
from genvid.tokens.cache import TokenCache
from genvid.tokens.code_counts import CodeCounts
from genvid.tokens.entropy import CodeModel, UniformCodes
from genvid.tokens.file import TokenFile, TokenWriter
from genvid.tokens.header import Header


def read_clips(cache: TokenCache, count: int) -> list[BlockTokens]:
    """At most so many clips, evenly spread over a cache."""
    clips = []
    for number in range(0, len(cache), -(-len(cache) // count)):
        clip = cache[number]
        keep = first_tokens(clip["lengths"], cache.info.block_capacity)
        clips.append(BlockTokens(keep[None], clip["codes"][None]))
    return clips


def write(clips: list[BlockTokens], header: Header, model: CodeModel) -> io.BytesIO:
    stream = io.BytesIO()
    writer = TokenWriter(stream, header, model)
    for clip in tqdm(clips, desc=f"encoding, {model.record['type']}", unit="clip"):
        writer.append(clip, header.frames // len(clips))
    return stream


def check(stream: io.BytesIO, clips: list[BlockTokens], model: CodeModel) -> int:
    """Bytes of the payloads; AssertionError unless the file holds exactly these clips."""
    read = TokenFile(Path("clips.tok"), stream)
    for (_, tokens), clip in zip(read.tokens(model), tqdm(clips, desc="decoding", unit="clip"), strict=True):
        assert tokens.codes is not None
        assert clip.codes is not None
        assert torch.equal(tokens.keep, clip.keep)
        assert torch.equal(tokens.codes[tokens.keep], clip.codes[clip.keep])
    return read.count().payload_bytes


def code_models(source: Path, tokenizer: VideoTokenizer, model: str | None) -> dict[str, list[CodeModel]]:
    """Name -> the model, on every device of this machine."""
    counts = CodeCounts.load(source, tokenizer.spec)
    found: dict[str, list[CodeModel]] = {"packed": [UniformCodes(tokenizer.spec)]}
    if counts is not None:
        found["static"] = [counts]
    if model is not None:
        rows = load_model(model, RowModel)
        check_match(rows, tokenizer)
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        found["autoregressive"] = [ARCodes(rows.to(device), fingerprint(resolve(model))) for device in devices]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--code-model")
    parser.add_argument("--clips", type=int, default=256)
    options = parser.parse_args()
    source = resolve(options.tokenizer)
    cache = TokenCache.open(options.cache, tokenizer=fingerprint(source))
    tokenizer, clips = load_model(source, VideoTokenizer), read_clips(cache, options.clips)
    kept = sum(int(clip.keep.sum()) for clip in clips)
    print(f"{len(clips)} clips, {kept} codes of {tokenizer.spec.codebook_size}")
    print(f"| {'codes':22} | bits a code | of packed | seconds to encode, decode (on each device) |\n| {'---|' * 4}")
    print(f"| {'16-bit numbers':22} | {16:11.3f} | | |")
    packed = None
    for name, models in code_models(source, tokenizer, options.code_model).items():
        frames, made = cache.info.frames * len(clips), ("tokenizer", cache.info.tokenizer)
        header = Header.of(tokenizer.spec, frames, Fraction(24), tokenizer=made, codes=models[0].record)
        files, seconds, size = set[bytes](), list[str](), 0
        for model in models:
            begin = time.perf_counter()
            stream = write(clips, header, model)
            middle = time.perf_counter()
            size = check(stream, clips, model)
            seconds.append(f"{middle - begin:.2f}, {time.perf_counter() - middle:.2f}")
            files.add(stream.getvalue())
        assert len(files) == 1, "devices wrote different files"
        bits = 8 * size / kept
        packed = packed or bits
        print(f"| {name:22} | {bits:11.3f} | {bits / packed:9.1%} | {'; '.join(seconds)} |")


if __name__ == "__main__":
    main()
