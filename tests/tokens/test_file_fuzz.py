"""Token files that somebody made on purpose: read, or refused with TokenFileError (tests/tokens/fuzz_files.py)."""

from __future__ import annotations

import json
import random

import pytest
from fuzz_files import Sample, assemble, mutated, read, samples


@pytest.fixture(scope="module")
def every() -> list[Sample]:
    return samples()


def test_mutated_files_are_read_or_refused(every: list[Sample]) -> None:
    chance, whole = random.Random(0), 0
    for sample in every:
        assert read(assemble(json.dumps(sample.header).encode(), sample.segments), sample.model)
    for _ in range(400):
        (sample,) = chance.choices(every, [20, 20, 1, 20, 20])
        whole += read(mutated(sample, chance), sample.model)
    assert 50 < whole < 300


FOUND = [
    pytest.param(0, {"codebook_size": 30}, id="a codebook below that of the code model"),
    pytest.param(2, {"block_capacity": 4096}, id="blocks longer than the rows of the model"),
]
"""What the fuzzer found, and relatives."""


@pytest.mark.parametrize(("number", "change"), FOUND)
def test_headers_that_contradict_their_code_model(every: list[Sample], number: int, change: dict[str, int]) -> None:
    sample = every[number]
    payload = random.Random(0).randbytes(40)
    blocks, frames, _ = sample.segments[0]
    data = assemble(json.dumps(sample.header | change).encode(), [(blocks, frames, payload)])
    assert not read(data, sample.model)
