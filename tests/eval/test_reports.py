"""Protocols keep their names, reports keep their protocols, and evaluation runs end to end on stand-ins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genvid.allocation import Allocator, Budget
from genvid.eval.metrics.fidelity import ClipPSNR, ClipSSIM
from genvid.eval.pixels import as_scored, round_to_bytes
from genvid.eval.protocols import PROTOCOLS, EvaluationProtocol, protocol
from genvid.eval.reconstruction import PieceEncoder, Reconstruction
from genvid.eval.report import Number, Provenance, Report, compare
from genvid.tokens import BlockTokens, TokenizerSpec

DEMO = EvaluationProtocol(
    "demo", "reconstruction", "generated clips", "val", frames=8, clips="first", count=4, resolution=16
)


class Coarse:
    """A tokenizer of one token a frame: its mean grey, as one of 16 codes. Dropped frames are black."""

    spec = TokenizerSpec(frames_per_block=4, resolution=(16, 16), block_capacity=4, token_dim=1, codebook_size=16)

    def encode(self, video: Tensor) -> BlockTokens:
        codes = ((video.mean((1, 3, 4)) + 1) * 7.5).round().long().view(len(video), -1, 4)
        return BlockTokens(torch.ones_like(codes, dtype=torch.bool), codes=codes)

    def decode(self, tokens: BlockTokens) -> Tensor:
        assert tokens.codes is not None
        grey = torch.where(tokens.keep, tokens.codes / 7.5 - 1, -1.0).flatten(1)
        return grey[:, None, :, None, None].expand(-1, 3, -1, 16, 16)


def half(tokens: BlockTokens) -> BlockTokens:
    return tokens.tail_drop(torch.full(tokens.keep.shape[:2], 2))


class Half(Budget):
    """Half of the tokens of every block."""

    def allocator(self, blocks: int) -> Allocator:
        return half


def grey_clips(count: int, seed: int = 0) -> Tensor:
    grey = torch.randint(16, (count, 8), generator=torch.Generator().manual_seed(seed)) / 7.5 - 1
    return grey[:, None, :, None, None].expand(-1, 3, -1, 16, 16).clone()


def report(title: str, value: float, record: EvaluationProtocol = DEMO) -> Report:
    number = Number("PSNR", value, record, count=4, unit="dB", better="higher")
    return Report(title, [number], Provenance("0.1", "evaluate", "2026-01-01", {"tokenizer": "abc"}))


def test_a_reconstruction_is_cut_by_its_budget_and_clips_are_encoded_once() -> None:
    video, encoder = grey_clips(6), PieceEncoder(Coarse())
    conditioning, seeds = {"video": video}, torch.arange(6)
    whole = Reconstruction(encoder, None, {})(conditioning, seeds)
    encoder.tokenizer = None  # type: ignore[assignment]
    cut = Reconstruction(PieceEncoder(Coarse()), Half(), {})(conditioning, seeds)
    assert encoder(video)[0].keep.all()
    assert ClipPSNR().score(whole.video, video).tolist() == pytest.approx([100] * 6)
    assert ClipSSIM().score(whole.video, video).tolist() == pytest.approx([1] * 6, abs=1e-3)
    assert whole.tokens is not None
    assert cut.tokens is not None
    assert whole.tokens.keep.sum((1, 2)).tolist() == [8] * 6
    assert cut.tokens.keep.sum((1, 2)).tolist() == [4] * 6
    assert float(ClipPSNR().score(cut.video, video).mean()) < 40


def test_longer_videos_go_through_a_tokenizer_in_pieces() -> None:
    class Short(Coarse):
        spec = replace(Coarse.spec, max_blocks=2)

    video = grey_clips(2).repeat(1, 1, 3, 1, 1)[:, :, :22]
    output = Reconstruction(PieceEncoder(Short()), None, {})({"video": video}, torch.arange(2))
    assert torch.allclose(output.video, video, atol=1e-6)
    assert output.tokens is not None
    assert output.tokens.keep.shape == (2, 6, 4)


def test_rounding_gives_values_that_files_hold() -> None:
    video = torch.linspace(-1.2, 1.2, 1001)
    rounded = round_to_bytes(video)
    assert torch.equal(((rounded + 1) * 127.5).round(), (rounded.double() + 1).mul(127.5).float().round())
    assert len(rounded.unique()) == 256
    assert (rounded - video.clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-6


def test_scored_pixels_are_quantised_and_resized_as_the_protocol_says() -> None:
    video = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    levels = (video.double() + 1) * 127.5
    for how, expected in (("round", levels.round()), ("truncate", (levels + 1e-4).floor()), ("no", levels)):
        scored = as_scored(video, replace(DEMO, quantize=how))
        assert ((scored.double() + 1) * 127.5 - expected).abs().max() < 1e-3
    assert as_scored(video, replace(DEMO, scored_resolution=8)).shape == (2, 3, 4, 8, 8)


def test_half_a_protocol_does_not_bear_its_name() -> None:
    full = protocol("ucf101-gfvd-larp-10k")
    assert full.adapted(count=16).name == f"{full.name} [count 16 instead of 10000]"
    assert "features motion classifier instead of I3D" in full.adapted(features="motion classifier").name
    cut = full.adapted(count=16)
    assert cut.name != full.name
    assert cut.count == 16
    assert full.adapted(count=10_000, features="I3D Kinetics-400") is full
    with pytest.raises(ValueError, match="published protocol"):
        Number("FVD", 1.0, replace(full, count=16), count=16)
    with pytest.raises(ValueError, match="there are ucf101"):
        protocol("ucf")


def test_published_protocols_are_what_the_papers_did() -> None:
    assert all(name == record.name for name, record in PROTOCOLS.items())
    larp, tats = PROTOCOLS["ucf101-gfvd-larp-10k"], PROTOCOLS["ucf101-gfvd-tats-2048"]
    assert (larp.count, larp.ddof, larp.quantize, larp.clips, larp.seed) == (10_000, 0, "no", "windows", 42)
    assert (tats.count, tats.ddof, tats.quantize) == (2048, 1, "truncate")
    kinetics = PROTOCOLS["k600-prediction-larp-50k"]
    assert (kinetics.count, kinetics.scored_resolution, kinetics.condition_frames) == (50_000, 64, 5)


def test_report_round_trip_and_rows(tmp_path: Path) -> None:
    written = report("ILP", 31.25)
    written.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == written
    assert written.markdown_row() == "| ILP | 31.25 dB |"
    table = compare([written, report("uniform", 29.0)])
    assert table.splitlines() == ["|  | PSNR |", "| --- | --- |", "| ILP | **31.25 dB** |", "| uniform | 29.00 dB |"]


def test_different_protocols_do_not_stand_in_one_column() -> None:
    with pytest.raises(ValueError, match=r"count 8 against 4"):
        compare([report("a", 30), report("b", 31, DEMO.adapted(count=8))])


def test_bad_reports_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no report"):
        Report.load(tmp_path / "absent.json")
    for content in (b"{", b"\xa9 a video"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.json is not a report"):
            Report.load(tmp_path / "bad.json")


def test_provenance_names_the_code() -> None:
    assert Provenance.now({"tokenizer": "abc"}).code.startswith("0.")
