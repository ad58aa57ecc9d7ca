"""Protocols keep their names, reports keep their protocols, and evaluation runs end to end on stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from genvid.eval.features.classifier import VideoClassifier, VideoClassifierConfig
from genvid.eval.features.loading import ClassifierFeatures
from genvid.eval.generation import class_accuracy, evaluate_generation
from genvid.eval.metrics.fidelity import ClipPSNR, ClipSSIM
from genvid.eval.metrics.frechet import FrechetVideoDistance, frechet_distance, real_halves
from genvid.eval.pixels import as_scored, round_to_bytes
from genvid.eval.protocols import PROTOCOLS, EvaluationProtocol, protocol
from genvid.eval.reconstruction import evaluate_reconstruction
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


def everything(tokens: BlockTokens) -> BlockTokens:
    return tokens


def half(tokens: BlockTokens) -> BlockTokens:
    return tokens.tail_drop(torch.full(tokens.keep.shape[:2], 2))


def grey_clips(count: int, seed: int = 0) -> Tensor:
    grey = torch.randint(16, (count, 8), generator=torch.Generator().manual_seed(seed)) / 7.5 - 1
    return grey[:, None, :, None, None].expand(-1, 3, -1, 16, 16).clone()


def classifier() -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier(VideoClassifierConfig(num_classes=2, frames=8, resolution=16, width=8)).eval()


def report(title: str, value: float, record: EvaluationProtocol = DEMO) -> Report:
    number = Number("PSNR", value, record, count=4, unit="dB", better="higher")
    return Report(title, [number], Provenance("0.1", "evaluate", "2026-01-01", {"tokenizer": "abc"}))


def test_reconstruction_end_to_end() -> None:
    video = grey_clips(6)
    frechet = FrechetVideoDistance(ClassifierFeatures(classifier(), "test classifier"))
    whole = evaluate_reconstruction(
        Coarse(), everything, video.split(4), fidelity=[ClipPSNR(), ClipSSIM()], frechet=frechet
    )
    assert whole["PSNR"] == pytest.approx(100)
    assert whole["SSIM"] == pytest.approx(1, abs=1e-3)
    assert whole["Frechet distance (test classifier)"] == pytest.approx(0, abs=1e-6)
    assert whole["tokens per clip"] == 8
    cut = evaluate_reconstruction(Coarse(), half, video.split(3), fidelity=[ClipPSNR()], frechet=frechet)
    assert cut["tokens per clip"] == 4
    assert cut["bits per clip"] == pytest.approx(4 * 4 + 2 * 2.3219, abs=1e-3)
    assert cut["PSNR"] < 40
    assert cut["Frechet distance (test classifier)"] > whole["Frechet distance (test classifier)"]


def test_generation_end_to_end_with_floor() -> None:
    real = grey_clips(40)
    noise = torch.rand(real.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    record = replace(DEMO, task="generation", quantize="round", scored_resolution=32)
    results = evaluate_generation(
        real.split(7),
        noise.split(9),
        features=ClassifierFeatures(classifier(), "test classifier"),
        protocol=record,
    )
    name = "Frechet distance (test classifier)"
    assert results[name] > results[f"{name}, real against real"] > 0
    assert (results["real clips"], results["generated clips"]) == (40, 40)


@pytest.mark.parametrize("clips", [4, 5, 9, 10, 32])
def test_a_floor_of_few_clips_is_that_of_exact_halves(clips: int) -> None:
    real, features = grey_clips(clips), ClassifierFeatures(classifier(), "test classifier")
    results = evaluate_generation(real.split(3), [-real], features=features, protocol=DEMO)
    expected = frechet_distance(*real_halves(features(real)))
    assert results["Frechet distance (test classifier), real against real"] == pytest.approx(expected, rel=1e-4)


def test_too_few_real_clips_are_said_before_samples_are_asked_for() -> None:
    def samples() -> Iterator[torch.Tensor]:
        raise AssertionError("a sample was asked for")
        yield

    features = ClassifierFeatures(classifier(), "test classifier")
    with pytest.raises(ValueError, match="at least 4 real clips, got 3"):
        evaluate_generation([grey_clips(3)], samples(), features=features, protocol=DEMO)


def test_8_bit_scores_round_originals_too() -> None:
    video = grey_clips(2)
    between = video * 0.99 + 0.001  # what Coarse restores is `video`: as near to it as a file can be to `between`
    near = (round_to_bytes(between) - video).square().mean()
    values = evaluate_reconstruction(Coarse(), everything, [between], fidelity=[ClipPSNR()], quantize=True)
    errors = (round_to_bytes(between) - round_to_bytes(video)).square().mean((1, 2, 3, 4)) / 4
    assert near > 0
    assert values["PSNR"] == pytest.approx(float((-10 * errors.log10()).mean()), abs=1e-3)


def test_the_floor_does_not_split_classes_that_take_turns() -> None:
    bright = grey_clips(40) * 0.1 + 0.5
    real = torch.stack([bright, bright - 1], 1).flatten(0, 1)
    features = ClassifierFeatures(classifier(), "test classifier")
    name = "Frechet distance (test classifier)"
    apart = evaluate_generation([bright], [bright - 1], features=features, protocol=DEMO)[name]
    floor = evaluate_generation([real], [real], features=features, protocol=DEMO)[f"{name}, real against real"]
    assert floor < 0.2 * apart


def _one_of_two(rank: int, rendezvous: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    clips = grey_clips(20)
    real, fake = clips[rank::2], -clips[rank::2] * 0.3
    features = ClassifierFeatures(classifier(), "test classifier")
    values = evaluate_generation([real], [fake], features=features, protocol=DEMO, start=10 * rank)
    values |= evaluate_reconstruction(Coarse(), half, [real], fidelity=[ClipPSNR()])
    torch.save(values, f"{results}{rank}")
    dist.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path / "meet"), str(tmp_path / "values")), nprocs=2)
    clips = grey_clips(20)
    features = ClassifierFeatures(classifier(), "test classifier")
    # The floor's halves are drawn by number, so the single process reads the clips in the order of their numbers.
    order = torch.cat([clips[rank::2] for rank in (0, 1)])
    expected = evaluate_generation([order], [-order * 0.3], features=features, protocol=DEMO)
    expected |= evaluate_reconstruction(Coarse(), half, [clips], fidelity=[ClipPSNR()])
    for rank in (0, 1):
        assert torch.load(tmp_path / f"values{rank}") == pytest.approx(expected, rel=1e-5)


def test_class_accuracy_counts() -> None:
    judge = classifier()
    video = grey_clips(6)
    labels = judge(video).argmax(-1)
    labels[0] = 1 - labels[0]
    values = class_accuracy(judge, [(video[:4], labels[:4]), (video[4:], labels[4:])])
    assert values == {"class as asked": pytest.approx(5 / 6), "clips": 6}
    with pytest.raises(ValueError, match="no clips"):
        class_accuracy(judge, [])


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
    full.require(count=10_000, features="I3D Kinetics-400")
    with pytest.raises(ValueError, match="count 16 instead of 10000"):
        full.require(count=16, features="I3D Kinetics-400")
    with pytest.raises(ValueError, match="features motion classifier instead of I3D"):
        full.require(count=10_000, features="motion classifier")
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
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="is not a report"):
        Report.load(tmp_path / "bad.json")


def test_provenance_names_the_code() -> None:
    assert Provenance.now({"tokenizer": "abc"}).code.startswith("0.")
