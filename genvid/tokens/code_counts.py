"""A static code model: how often each code occurs at a position of a block, counted once for a tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError

from genvid.files import save_tensors, write_atomically
from genvid.tokens.blocks import TokenizerSpec
from genvid.tokens.entropy import CodeModel, Decoder, Encoder, Integers

FILE = "code_counts.safetensors"
"""In the tokenizer's folder."""


class CodeCounts(CodeModel):
    """Counts (rows, codebook_size). Row 0 is of position 0 of a block, row r of the positions 2^(r - 1) to 2^r - 1; the
    last row is of all later ones too."""

    def __init__(self, counts: Integers) -> None:
        self.counts = np.array(counts, np.int64)
        self.codebook_size = self.counts.shape[1]

    @property
    def record(self) -> dict[str, str]:
        return {"type": "static", "fingerprint": hashlib.sha256(self.counts.astype("<i8").tobytes()).hexdigest()[:16]}

    @classmethod
    def zeros(cls, spec: TokenizerSpec) -> Self:
        assert spec.codebook_size is not None
        return cls(np.zeros(((spec.block_capacity - 1).bit_length() + 1, spec.codebook_size), np.int64))

    @classmethod
    def load(cls, folder: Path, spec: TokenizerSpec) -> Self | None:
        """The counts in a tokenizer's folder; None where there are none."""
        if not (folder / FILE).is_file():
            return None
        try:
            counts = safetensors.numpy.load_file(folder / FILE)["counts"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{folder / FILE} is damaged ({error}): copy it again, or count the codes anew") from None
        if counts.shape[1:] != (spec.codebook_size,) or not len(counts):
            raise ValueError(
                f"{folder / FILE} has counts {counts.shape}, but this tokenizer {spec.codebook_size} codes"
            )
        return cls(counts)

    def save(self, folder: Path) -> None:
        with write_atomically(folder / FILE) as temporary:
            save_tensors(temporary, {"counts": torch.from_numpy(self.counts)})

    def add(self, codes: Sequence[Integers]) -> None:
        """Count the kept codes of more blocks."""
        for row, places in self._rows([len(block) for block in codes]):
            kept = np.concatenate([block[place] for block, place in zip(codes, places, strict=True)])
            self.counts[row] += np.bincount(kept, minlength=self.counts.shape[1])

    def encode(self, encoder: Encoder, codes: Sequence[Integers]) -> None:
        for row, places in self._rows([len(block) for block in codes]):
            kept = [block[place] for block, place in zip(codes, places, strict=True)]
            encoder.put(np.concatenate(kept), 2 * self.counts[row] + 1)

    def decode(self, decoders: Sequence[Decoder], lengths: Sequence[Sequence[int]]) -> list[list[Integers]]:
        return [self._decode(*part) for part in zip(decoders, lengths, strict=True)]

    def _decode(self, decoder: Decoder, lengths: Sequence[int]) -> list[Integers]:
        codes: list[Integers] = [np.zeros(length, np.int64) for length in lengths]
        for row, places in self._rows(lengths):
            sizes = [len(block[place]) for block, place in zip(codes, places, strict=True)]
            kept = decoder.get(2 * self.counts[row] + 1, sum(sizes))
            for block, place, part in zip(codes, places, np.split(kept, np.cumsum(sizes)[:-1]), strict=True):
                block[place] = part
        return codes

    def _rows(self, lengths: Sequence[int]) -> Iterator[tuple[int, list[slice]]]:
        """The rows that the blocks reach, and the positions of each block in them."""
        bounds = [0, *(2**row for row in range(len(self.counts) - 1)), max(lengths)]
        for row, (first, end) in enumerate(pairwise(bounds)):
            if first < max(lengths):
                yield row, [slice(min(first, length), min(end, length)) for length in lengths]
