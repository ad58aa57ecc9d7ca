"""A video at any budget: as `genvid.load` codes it, encoded once, clip by clip; and requests that newer ones end."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import genvid
from genvid.allocation import BudgetError
from genvid.api import Generator, Tokenizer
from genvid.ar.config import TransformerConfig
from genvid.ar.published import PublishedConfig, PublishedTransformer
from genvid.data import VideoError, write_video
from genvid.studio.session import Requests, Session
from genvid.studio.video import CodedClip, CodedVideo
from genvid.tokenizer.adaptok.config import RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokens.rows import BlockLayout

FRAMES, FPS, FULL = 15, 10.0, 24
"""Of the video, and the tokens of a clip of full length."""
SECONDS = 0.6
"""Of such a clip."""


def complete(coded: CodedVideo, rate: float, frame: int = 0) -> list[CodedClip]:
    """Complete clips, in the order in which they are decoded."""
    return list({clip.number: clip for clip in coded.at(rate, frame)}.values())


@pytest.mark.parametrize("name", ["scored", "plain"])
@pytest.mark.parametrize("tokens", [6, 13, FULL])
def test_it_is_coded_as_by_genvid_load(name: str, tokens: int, tokenizers: dict[str, Tokenizer], video: Path) -> None:
    coded, tokenizer = CodedVideo(tokenizers[name], video), tokenizers[name]
    expected = tokenizer.encode(coded.frames_before(FRAMES), tokens=tokens)
    clips = complete(coded, tokens / SECONDS)
    blocks = list(chain.from_iterable(clip.blocks for clip in clips))
    assert [block.tokens for block in blocks] == expected.lengths[0].tolist()
    assert [block.frames.shape[1] for block in blocks] == [2] * 7 + [1]
    decoded = torch.cat([block.frames for block in blocks], 1).permute(1, 2, 3, 0).numpy()
    assert np.array_equal(decoded, tokenizer.decode(expected))
    assert all(sum(block.tokens for block in clip.blocks) <= tokens for clip in clips)
    spec = tokenizer.model.spec
    assert [clip.bits for clip in clips] == pytest.approx([float(spec.clip_bits(part)) for part in expected.clips])


def test_psnr_of_a_block(tokenizers: dict[str, Tokenizer], video: Path) -> None:
    coded = CodedVideo(tokenizers["plain"], video)
    block, original = complete(coded, FULL / SECONDS)[0].blocks[1], coded.original()[1]
    error = ((block.frames.double() - original.double()) ** 2).mean()
    assert block.psnr == pytest.approx(float(10 * torch.log10(255**2 / error)), abs=1e-3)


def test_it_is_encoded_once(tokenizers: dict[str, Tokenizer], video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded = tokenizers["scored"].model, []
    encode = model.encode

    def counted(clip: torch.Tensor) -> Any:
        encoded.append(clip.shape[2])
        return encode(clip)

    monkeypatch.setattr(model, "encode", counted)
    coded = CodedVideo(tokenizers["scored"], video)
    assert not encoded
    for rate in (20, 40, 30):
        list(coded.at(rate))
    assert encoded == [6, 6, 4]


def test_decoding_begins_at_the_playhead(tokenizers: dict[str, Tokenizer], video: Path) -> None:
    coded = CodedVideo(tokenizers["scored"], video)
    numbers = {frame: [clip.number for clip in complete(coded, 30, frame)] for frame in (0, 5, 6, 14, 99)}
    assert numbers == {0: [0, 1, 2], 5: [0, 1, 2], 6: [1, 2, 0], 14: [2, 0, 1], 99: [0, 1, 2]}
    by_number = {clip.number: clip for clip in complete(coded, 30, 14)}
    for clip in complete(coded, 30):
        other = by_number[clip.number]
        assert clip.first_block == other.first_block == 3 * clip.number
        assert all(torch.equal(a.frames, b.frames) for a, b in zip(clip.blocks, other.blocks, strict=True))


def test_the_first_block_comes_alone(tokenizers: dict[str, Tokenizer], video: Path) -> None:
    first, clip, *_ = CodedVideo(tokenizers["scored"], video).at(30, 8)
    assert (first.number, len(first.blocks), len(clip.blocks)) == (1, 1, 3)
    assert torch.equal(first.blocks[0].frames, clip.blocks[0].frames)
    assert first.blocks[0].tokens == clip.blocks[0].tokens


def test_the_slider_ends_where_budgets_do(tokenizers: dict[str, Tokenizer], video: Path) -> None:
    for name, least in (("scored", 2), ("plain", 1)):
        coded = CodedVideo(tokenizers[name], video)
        assert coded.rates == (least * 5, 8 * 5)
        fewest, most = (complete(coded, rate) for rate in coded.rates)
        assert [block.tokens for clip in fewest for block in clip.blocks] == [least] * 8
        # With a scorer, no token is spent where it predicts no gain.
        assert name == "scored" or [block.tokens for clip in most for block in clip.blocks] == [8] * 8
        with pytest.raises(BudgetError):
            next(coded.at(coded.rates[0] - 2))


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 15])
def test_the_slider_ends_where_budgets_do_behind_a_single_first_frame(
    frames: int, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    plain = tokenizers["plain"].model
    assert isinstance(plain, AdapTok)
    single = RotaryGeometry(window=1, sides=(16, 32), single_first_frame=True)
    AdapTok(replace(plain.config, frames=7, pooled_queries=True, geometry=single)).save(tmp_path / "single")
    tokenizer = genvid.load(tmp_path / "single", device="cpu")
    assert isinstance(tokenizer, Tokenizer)
    write_video(tmp_path / "a.mp4", torch.zeros(3, frames, 32, 32, dtype=torch.uint8), FPS)
    coded = CodedVideo(tokenizer, tmp_path / "a.mp4")
    for rate, kept in zip(coded.rates, (1, 8), strict=True):
        assert {block.tokens for clip in complete(coded, rate) for block in clip.blocks} == {kept}


def test_a_long_video_is_cut(tokenizers: dict[str, Tokenizer], video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genvid.studio.video.MOST_FRAMES", 8)
    coded = CodedVideo(tokenizers["scored"], video)
    assert (coded.frames, coded.num_blocks) == (8, 4)
    assert sum(clip.num_frames for clip in complete(coded, 30)) == 8


def test_a_newer_request_ends_older_ones() -> None:
    requests = Requests()
    older = requests.parts(iter("abc"))
    assert next(older) == (1, "a")
    newer = requests.parts(iter("xy"))
    assert next(newer) == (2, "x")
    assert list(older) == []
    assert list(newer) == [(2, "y")]


def test_a_session_holds_one_video(
    tokenizers: dict[str, Tokenizer], generators: dict[str, Generator], video: Path, tmp_path: Path
) -> None:
    session = Session(tokenizers)
    with pytest.raises(ValueError, match="drop one first"):
        session.coded("scored")
    session.open(video)
    assert session.coded("scored") is session.coded("scored")
    assert session.coded("plain").tokenizer is tokenizers["plain"]
    (tmp_path / "no.mp4").write_text("no video")
    with pytest.raises(VideoError):
        session.open(tmp_path / "no.mp4")
    assert session.opened == 1
    made, fps = session.continuations(generators["predictor"], "scored", 1.0, count=2)
    prompt = session.coded("scored").frames_before(10)
    again = generators["predictor"].sample(tokenizers["scored"], prompt=prompt, count=2)
    assert fps == FPS
    assert np.array_equal(made, again)
    assert session.samples(generators["classes"], "scored", "run", count=3).shape == (3, 6, 32, 32, 3)


def test_a_published_model_continues_from_any_playhead(tokenizers: dict[str, Tokenizer], video: Path) -> None:
    """It takes no more frames than those of its context blocks."""
    layout = BlockLayout(codebook_size=20, num_classes=0, num_blocks=2, block_capacity=8, framing="end")
    sizes = TransformerConfig(16, 1, heads=2, kv_heads=2, hidden=24, max_positions=80, rope_theta=None)
    model = PublishedTransformer(PublishedConfig(layout, sizes, context_blocks=2, first_block=1)).eval()
    session, generator = Session(tokenizers), Generator(model)
    session.open(video)
    made, _ = session.continuations(generator, "scored", 1.0, count=1)
    prompt = session.coded("scored").frames_before(10)[-3:]
    assert np.array_equal(made, generator.sample(tokenizers["scored"], prompt=prompt, count=1))
