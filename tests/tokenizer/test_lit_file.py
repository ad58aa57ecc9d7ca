"""LIT's tokens in token files: masks exact, latents within half a step, the length that is reported."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_codecs import cosmos, drifting, make_lit

from genvid.cli import main as genvid
from genvid.data.clips import to_uint8
from genvid.data.video import probe, write_video
from genvid.tokenizer.lit.budget import BudgetAllocator
from genvid.tokenizer.lit.model import LIT
from genvid.tokens import BlockTokens
from genvid.tokens.blocks import LatentSteps, MeanTokens
from genvid.tokens.entropy import Decoder, Encoder
from genvid.tokens.file import read_token_file, resume_token_file
from genvid.tokens.header import Header, TokenFileError
from genvid.tokens.latents import BELL, REACH, dequantise, get_latents, put_latents, quantise
from genvid.tokens.masks import get_mask, mask_bits, put_mask


@pytest.fixture(scope="module")
def lit(tmp_path_factory: pytest.TempPathFactory) -> LIT:
    folder = tmp_path_factory.mktemp("lit")
    made = make_lit(cosmos(folder / "codec", window=9))
    made.save(folder / "lit")
    made.folder = folder / "lit"
    return made


def header(lit: LIT, frames: int) -> Header:
    made = ("lit", "0123")
    return Header.of(lit.spec, frames, Fraction(8), tokenizer=made, codes={}, latents=lit.latent_steps)


@pytest.mark.parametrize("means", [False, True])
def test_masks_return_exactly_and_latents_within_half_a_step(lit: LIT, tmp_path: Path, means: bool) -> None:
    tokens = BudgetAllocator(40, lit.metric, means=means)(lit.encode(drifting(1, 18)))
    assert tokens.latents is not None
    with resume_token_file(tmp_path / "a.tok", header(lit, 18), None) as writer:
        writer.append(tokens, 18)
    with read_token_file(tmp_path / "a.tok") as file:
        file.check_tokenizer(lit.spec, "0123")
        ((segment, read),) = file.tokens(None)
        assert file.count().tokens == int(tokens.keep.sum()) == 40
    assert (segment.frames, type(read)) == (18, type(tokens))
    assert isinstance(read, MeanTokens) == means
    assert torch.equal(read.keep, tokens.keep)
    assert read.latents is not None
    error = (read.latents - tokens.latents).abs()[tokens.keep] / torch.tensor(lit.latent_steps.step)
    assert float(error.max()) < 0.5001
    assert float(error.max()) > 0.4
    assert lit.decode(read).shape == (1, 3, 18, 32, 32)


def test_tokens_of_the_other_kind_are_refused(lit: LIT, tmp_path: Path) -> None:
    codes = BlockTokens(torch.ones(1, 6, 16, dtype=torch.bool), torch.zeros(1, 6, 16, dtype=torch.int64))
    with (
        pytest.raises(ValueError, match="codes of a discrete"),
        resume_token_file(tmp_path / "a.tok", header(lit, 18), None) as w,
    ):
        w.append(codes, 18)
    for change in ({"codebook_size": 4}, {"latents": None}):
        with pytest.raises(TokenFileError, match="either codes of a codebook or latents"):
            replace(header(lit, 18), **change)
    steps = lit.latent_steps
    for wrong in (
        replace(steps, columns=3),
        replace(steps, mean=(0.0,)),
        replace(steps, step=(0.0, *steps.step[1:])),
        replace(steps, mean=(float("nan"), *steps.mean[1:])),
        LatentSteps(4, (), ()),
    ):
        with pytest.raises(TokenFileError):
            replace(header(lit, 18), latents=wrong)
    assert Header.decode(header(lit, 18).encode()) == header(lit, 18)


def test_latents_that_cannot_be_rounded_are_refused() -> None:
    steps = LatentSteps(1, (0.5, 0.0), (0.25, 1.0))
    for far in (np.inf, -np.inf, np.nan, 3e9):
        with pytest.raises(ValueError, match="cannot be stored in steps"):
            quantise(np.array([[0, far]], np.float32), steps)
    latents = np.array([[0.4, -2e9], [0.5, 3.49]], np.float32)
    assert quantise(latents, steps).tolist() == [[0, -2000000000], [0, 3]]
    assert dequantise(quantise(latents, steps), steps).tolist() == [[0.5, -2e9], [0.5, 3]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.floats(0, 1))
def test_masks_cost_the_length_that_is_reported(seed: int, blocks: int, rows: int, columns: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    keep = generator.random((blocks, rows * columns)) < share
    encoder = Encoder()
    put_mask(encoder, keep, columns)
    coded = encoder.bytes()
    assert np.array_equal(get_mask(Decoder(coded), blocks, rows * columns, columns), keep)
    assert 8 * len(coded) <= float(mask_bits(torch.from_numpy(keep)[None], columns)) + 40


def test_latents_adapt_and_far_ones_escape() -> None:
    generator = np.random.default_rng(0)
    blocks = [np.rint(generator.normal(0, [3, 16, 90], (count, 3))).astype(np.int64) for count in (200, 0, 300, 1)]
    blocks[2][5] = [-(2**31) + 1, REACH + 1, 2**31 - 1]
    encoder = Encoder()
    put_latents(encoder, blocks)
    read = get_latents(Decoder(encoder.bytes()), [len(block) for block in blocks], 3)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(read, blocks, strict=True))
    narrow = [block[:, :1] for block in blocks[:1]] * 10
    encoder = Encoder()
    put_latents(encoder, narrow)
    assert 8 * len(encoder.bytes()) / 2000 < 4.3  # an entropy of 3.6 bits; 6.6 by the bell alone


def test_the_bell_depends_on_no_rounding() -> None:
    exact = 64 * np.exp(-((np.arange(-REACH, REACH + 1) / 24) ** 2) / 2)
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-4
    assert (len(BELL), BELL[0], BELL[REACH + 1], BELL[1]) == (256, 1, 65, 1)


def test_a_video_through_a_file_of_latents(lit: LIT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = to_uint8(drifting(1, 27)[0])
    write_video(tmp_path / "a.mp4", video, 9)
    tokenizer = ["--tokenizer", str(lit.folder)]
    genvid(["encode", str(tmp_path / "a.mp4"), str(tmp_path / "a.tok"), *tokenizer, "--tokens-per-second", "30"])
    said = capsys.readouterr().out
    assert "27 frames, 9 blocks, 90 tokens" in said  # three seconds
    assert "the latents alone take 720 as 16-bit numbers" in said
    genvid(["info", str(tmp_path / "a.tok")])
    assert "latents" in capsys.readouterr().out
    genvid(["decode", str(tmp_path / "a.tok"), str(tmp_path / "b.mp4"), *tokenizer])
    assert probe(tmp_path / "b.mp4").frames == 27
    for words, message in (
        (["--tokens-per-second", "5"], "below the floor"),
        (["--code-model", "x"], "has no codes: leave out --code-model"),
    ):
        with pytest.raises(SystemExit):
            genvid(["encode", str(tmp_path / "a.mp4"), str(tmp_path / "c.tok"), *tokenizer, *words])
        assert message in capsys.readouterr().err
