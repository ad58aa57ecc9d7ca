"""Entropy coding of tokens: a range coder over integer frequencies, and models of lengths and codes.

Frequencies are integers below 2^53, of which the coder (constriction's, 24 bits of precision) makes the same
probabilities on every machine. docs/format.md specifies the arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from constriction import stream
from numpy.typing import NDArray

from genvid.tokens.blocks import TokenizerSpec

Integers = NDArray[np.integer[Any]]

_BY_ROW = stream.model.Categorical(perfect=False)


class EntropyError(ValueError):
    """Bytes that no encoder wrote."""


class Encoder:
    """Symbols -> bytes."""

    def __init__(self) -> None:
        self._coder = stream.queue.RangeEncoder()

    def put(self, symbols: Integers, frequencies: Integers) -> None:
        """(N,) symbols, by the frequencies (A,) of every one or (N, A) of each."""
        values, weights = np.asarray(symbols, np.int32), np.asarray(frequencies, np.float64)
        if weights.ndim == 1:
            self._coder.encode(values, stream.model.Categorical(weights, perfect=False))
        else:
            self._coder.encode(values, _BY_ROW, weights)

    def put_uniform(self, symbols: Integers, size: int) -> None:
        """(N,) symbols below `size`, all equally likely."""
        if size > 1:
            self._coder.encode(np.asarray(symbols, np.int32), stream.model.Uniform(size))

    def bytes(self) -> bytes:
        """All symbols so far, without the zeros at the end."""
        return bytes(self._coder.get_compressed().astype(">u4").tobytes().rstrip(b"\0"))


class Decoder:
    """Bytes -> symbols. Any bytes give symbols or EntropyError; beyond their end are zeros."""

    def __init__(self, data: bytes) -> None:
        padded = data + bytes(8 + -len(data) % 4)
        self._coder = stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def get(self, frequencies: Integers, count: int | None = None) -> Integers:
        """`count` symbols by the frequencies (A,), or a symbol by each row of (N, A)."""
        weights = np.asarray(frequencies, np.float64)
        if count is None:
            return self._decode(_BY_ROW, weights)
        return self._decode(stream.model.Categorical(weights, perfect=False), count)

    def get_uniform(self, size: int, count: int) -> Integers:
        """`count` symbols below `size`."""
        return self._decode(stream.model.Uniform(size), count) if size > 1 else np.zeros(count, np.int32)

    def _decode(self, *model: Any) -> Integers:
        try:
            symbols: Integers = self._coder.decode(*model)
        except AssertionError:
            raise EntropyError("these bits are no symbols") from None
        return symbols


def put_lengths(encoder: Encoder, lengths: Sequence[int], capacity: int) -> None:
    """Lengths from 0 to `capacity`, by how often each came before (Krichevsky and Trofimov 1981)."""
    seen = np.ones(capacity + 1, np.int64)
    for length in lengths:
        encoder.put(np.array([length]), seen)
        seen[length] += 2


def get_lengths(decoder: Decoder, blocks: int, capacity: int) -> list[int]:
    """The inverse of `put_lengths`."""
    seen, lengths = np.ones(capacity + 1, np.int64), list[int]()
    for _ in range(blocks):
        lengths.append(int(decoder.get(seen, 1)[0]))
        seen[lengths[-1]] += 2
    return lengths


class CodeModel(ABC):
    """Probabilities of the kept codes of consecutive blocks. Each segment of a file is coded by itself."""

    codebook_size: int
    most_blocks: int | None = None
    """Of a segment; None: any number."""
    most_tokens: int | None = None
    """Of a block; None: any number."""
    side_by_side = 64
    """Segments that are decoded at a time, at most: memory and speed, not results."""

    @property
    @abstractmethod
    def record(self) -> dict[str, str]:
        """Type and fingerprint of the model, for the header of a file."""

    @abstractmethod
    def encode(self, encoder: Encoder, codes: Sequence[Integers]) -> None:
        """The kept codes of each block of a segment."""

    @abstractmethod
    def decode(self, decoders: Sequence[Decoder], lengths: Sequence[Sequence[int]]) -> list[list[Integers]]:
        """The kept codes of each block of several segments, from the lengths of their blocks."""


class UniformCodes(CodeModel):
    """Codes packed to their bits: log2(codebook size) each."""

    record: ClassVar[dict[str, str]] = {"type": "uniform"}

    def __init__(self, spec: TokenizerSpec) -> None:
        assert spec.codebook_size is not None
        self.codebook_size = spec.codebook_size

    def encode(self, encoder: Encoder, codes: Sequence[Integers]) -> None:
        encoder.put_uniform(np.concatenate(codes), self.codebook_size)

    def decode(self, decoders: Sequence[Decoder], lengths: Sequence[Sequence[int]]) -> list[list[Integers]]:
        return [
            np.split(decoder.get_uniform(self.codebook_size, sum(own)), np.cumsum(own)[:-1])
            for decoder, own in zip(decoders, lengths, strict=True)
        ]
