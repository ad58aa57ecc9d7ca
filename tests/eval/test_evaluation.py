"""Protocols run: what is drawn, what is shown to models, what survives a stop, what two processes agree on."""

from __future__ import annotations

import base64
import csv
import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import CLIPS, TOY, Colours, Noisy

from genvid import noise
from genvid.batch import Batch
from genvid.data import FolderConfig, to_float, write_video
from genvid.data.dataset import ClipDataset
from genvid.data.sources.prepared import Preparation, index_file, prepare_video, write_index
from genvid.data.video import probe, read_clip
from genvid.eval.evaluation import Candidate, Evaluation, Execution, Measures, Output
from genvid.eval.listings import listed
from genvid.eval.metrics.fidelity import ClipPSNR, ClipSSIM
from genvid.eval.metrics.frechet import frechet_distance, real_halves
from genvid.eval.pages.evaluation_page import evaluation_page
from genvid.eval.protocols import PROTOCOLS, EvaluationProtocol, protocol
from genvid.eval.report import Number, Provenance, Report
from genvid.eval.selection import EvaluationClips, protocol_clips
from genvid.eval.sources import protocol_source, unseen_source
from genvid.eval.summary import Summary
from genvid.eval.table import ClipTable
from genvid.tokens import BlockTokens

NOW = Provenance("0.1", "evaluate", "2026-01-01")


class Toy(Evaluation):
    """An evaluation of one model, in a folder."""

    def __init__(self, folder: Path, clips: EvaluationClips, measures: Measures, execution: Execution) -> None:
        super().__init__(clips, measures, execution)
        self.folder = folder

    def of(self, model: Noisy) -> Candidate:
        return Candidate("noise", model, self.folder)


def toy(folder: Path, record: EvaluationProtocol = TOY, *, features: Colours | None = None, **options: Any) -> Toy:
    execution = Execution(7, **{key: options.pop(key) for key in EXECUTION & options.keys()})
    network = features or Colours()
    clips = protocol_clips(record, CLIPS, features=network, **options)
    return Toy(folder, clips, Measures(network, [ClipPSNR(), ClipSSIM()]), execution)


EXECUTION = {"drawn_groups", "rank", "world_size", "device"}


def values(report: Report) -> dict[str, float]:
    return {number.name: number.value for number in report.numbers}


def finish(evaluation: Toy, model: Noisy, resamples: int = 0) -> Report:
    evaluation.measure(evaluation.of(model))
    return summed(evaluation, model, resamples).report(NOW)


def summed(evaluation: Toy, model: Noisy, resamples: int = 0) -> Summary:
    return Summary(evaluation, evaluation.of(model), resamples=resamples)


def test_windows_are_drawn_as_larp_draws_them() -> None:
    """LARP's sample.py: random.Random(42).sample(range(windows), 10000) over the windows of the sorted files."""
    record = protocol("ucf101-gfvd-larp-10k")
    assert record.draw(104_321) == random.Random(42).sample(range(104_321), 10_000)
    others = record.draw_others(104_321, record.draw(104_321))
    assert len(others) == 10_000
    assert not set(others) & set(record.draw(104_321))
    assert record.draw_others(15_000, record.draw(15_000)) == []
    with pytest.raises(ValueError, match="compares 10,000 clips, but the data hold 9,999"):
        record.draw(9_999)


def test_numbers_are_those_of_the_rows(tmp_path: Path) -> None:
    evaluation, model = toy(tmp_path), Noisy()
    report = finish(evaluation, model, resamples=8)
    found, name = values(report), "Frechet distance (colours)"
    videos = to_float(torch.stack([evaluation.clips.dataset[item]["video"] for item in evaluation.clips.real.items]))
    rows = [model({"video": v[None]}, s[None]) for v, s in zip(videos, _seeds(evaluation), strict=True)]
    made = torch.cat([row.video for row in rows]).clamp(-1, 1)
    expected = frechet_distance(Colours()(videos), Colours()(made))
    assert found[name] == pytest.approx(expected, rel=1e-6)
    assert found["PSNR"] == pytest.approx(float(ClipPSNR().score(made, videos).double().mean()), rel=1e-6)
    tokens = torch.stack([row.tokens.keep.sum() for row in rows if row.tokens]).double()
    assert found["tokens per clip"] == pytest.approx(float(tokens.mean()))
    assert report.numbers[0].interval is not None
    low, high = next(number for number in report.numbers if number.name == name).interval or (0, 0)
    assert low <= expected <= high
    floor = next(number for number in report.numbers if "real against real" in number.name)
    assert (floor.count, "count 20 instead of all" in floor.protocol.name) == (20, True)


@pytest.mark.gpu
def test_features_in_a_stream_of_their_own_are_those_of_the_clips(tmp_path: Path, gpu: torch.device) -> None:
    class Slow(Colours):
        weights = "slow"

        def extract(self, video: torch.Tensor) -> torch.Tensor:
            torch.cuda._sleep(20_000_000)  # by then the next batches have overwritten whatever was not held
            return super().extract(video)

    def run(folder: str, network: Colours, device: str) -> dict[str, float]:
        clips = protocol_clips(TOY, CLIPS, features=network)
        evaluation = Toy(tmp_path / folder, clips, Measures(network), Execution(2, device=device))
        return values(finish(evaluation, Noisy()))

    expected = run("processor", Colours(), "cpu")
    assert run("device", Slow(), "cuda") == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_floor_does_not_split_classes_that_take_turns(tmp_path: Path) -> None:
    evaluation = toy(tmp_path)
    near = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) * 0.1
    features = near + torch.arange(40)[:, None] % 2 * 5.0
    real = evaluation.real_table(evaluation.clips.real)
    real.add(torch.arange(40), {"features": features})
    real.flush()
    floor = values(finish(evaluation, Noisy()))["Frechet distance (colours), real against real"]
    assert 0 < floor < 0.2 * frechet_distance(features[0::2], features[1::2])


@pytest.mark.parametrize("clips", [4, 5, 9, 10, 32])
def test_a_floor_of_few_clips_is_that_of_exact_halves(tmp_path: Path, clips: int) -> None:
    data = protocol_clips(TOY, replace(CLIPS, clips=clips), features=Colours())
    evaluation = Toy(tmp_path, data, Measures(Colours()), Execution())
    floor = finish(evaluation, Noisy()).numbers[-1]
    real = summed(evaluation, Noisy()).real_features(data.real)
    assert (floor.name, floor.count) == ("Frechet distance (colours), real against real", clips // 2)
    assert floor.value == pytest.approx(frechet_distance(*real_halves(real)), rel=1e-9)


def _seeds(evaluation: Evaluation) -> torch.Tensor:
    return noise.sample_seeds(evaluation.clips.protocol.seed, "sampler 0", torch.arange(len(evaluation.clips.real)))


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    expected = values(finish(toy(tmp_path / "straight"), Noisy()))
    stopped = Noisy(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        finish(toy(tmp_path / "halves"), stopped)
    with pytest.raises(ValueError, match="lacks 19 of 40 clips"):
        summed(toy(tmp_path / "halves"), stopped)
    resumed = Noisy()
    assert values(finish(toy(tmp_path / "halves"), resumed)) == expected
    assert resumed.calls == 3
    with pytest.raises(ValueError, match=r"another evaluation \(producer.noise is 0.2 there, 0.5 here\)"):
        finish(toy(tmp_path / "halves"), Noisy(0.5))


def test_real_features_are_computed_once_for_all_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(TOY, task="generation", clips="windows", count=15)
    finish(toy(tmp_path / "first", record), Noisy())

    def fail(*_: object) -> None:
        raise AssertionError("a real clip was read again")

    monkeypatch.setattr("genvid.eval.selection.ClipDataset.__getitem__", fail)
    finish(toy(tmp_path / "second", record), Noisy(0.5))
    with pytest.raises(AssertionError, match="read again"):
        finish(toy(tmp_path / "third", replace(record, quantize="round")), Noisy())


def test_real_features_are_those_of_the_weights_in_use(tmp_path: Path) -> None:
    """Also where a network does not say which weights it has: its hash of them is empty."""

    class Scaled(Colours):
        weights = ""

        def __init__(self, scale: float) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor(scale))

        def extract(self, video: torch.Tensor) -> torch.Tensor:
            return super().extract(video) * self.scale

    found = [finish(toy(tmp_path / str(scale), features=Scaled(scale)), Noisy()) for scale in (1.0, 3.0)]
    once, thrice = (values(report)["Frechet distance (colours)"] for report in found)
    assert thrice == pytest.approx(9 * once, rel=1e-4)


def test_models_see_what_the_task_shows(tmp_path: Path) -> None:
    frames = {"generation": None, "prediction": (7, 3, 5, 32, 32), "reconstruction": (7, 3, 16, 32, 32)}
    for task, shown in frames.items():
        model = Noisy()
        record = replace(TOY, task=task, condition_frames=5)  # type: ignore[arg-type]
        report = finish(toy(tmp_path / task, record), model)
        assert model.shown[0] == shown
        assert ("PSNR" in values(report)) == (task == "reconstruction")


def test_sampler_seeds_have_a_spread_and_a_floor_of_as_many_clips(tmp_path: Path) -> None:
    record = replace(TOY, task="generation", count=15, sampler_seeds=3, clips="windows")
    evaluation = toy(tmp_path, record)
    report = finish(evaluation, Noisy())
    distance, floor = report.numbers[-2:]
    assert (distance.name, floor.name) == (
        "Frechet distance (colours)",
        "Frechet distance (colours), real against real",
    )
    assert distance.spread is not None
    assert distance.spread > 0
    assert distance.count == floor.count == 15
    others = evaluation.clips.others
    assert others is not None
    assert not set(evaluation.clips.real.items) & set(others.items)
    assert distance.protocol == floor.protocol


def test_the_name_of_a_distance_has_the_clips_of_a_smaller_test_split(tmp_path: Path) -> None:
    record = replace(TOY, task="generation", clips="windows", count=15)
    clips = protocol_clips(record, CLIPS, features=Colours(), test_source=replace(CLIPS, clips=6, seed=4))
    evaluation = Toy(tmp_path / "out", clips, Measures(Colours()), Execution(7))
    numbers = {number.name: number for number in finish(evaluation, Noisy()).numbers}
    unseen, seen = numbers["Frechet distance (colours), test split"], numbers["Frechet distance (colours)"]
    assert seen.protocol == record
    assert unseen.count == seen.count == 15
    assert unseen.protocol.name == "toy [split test instead of all, count 6 instead of 15]"


def test_half_a_protocol_is_refused_under_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"would not be toy but 'toy \[sampler seeds 2 instead of 1\]'"):
        toy(tmp_path, sampler_seeds=2)
    evaluation = toy(tmp_path, sampler_seeds=2, partial=True)
    assert evaluation.clips.protocol.name == "toy [sampler seeds 2 instead of 1]"
    with pytest.raises(ValueError, match="resolution 16 instead of 32"):
        toy(tmp_path, resolution=16)
    with pytest.raises(ValueError, match="videos 0 instead of 40"):
        toy(tmp_path, replace(TOY, videos=40))


def test_no_other_network_s_number_is_called_fvd() -> None:
    with pytest.raises(ValueError, match="features of colours is not FVD"):
        Number("FVD", 1.0, TOY, count=4)
    with pytest.raises(ValueError, match="is not FVD"):
        Number("FVD, test split", 1.0, TOY, count=4)


def test_a_process_that_comes_late_leaves_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(TOY, task="generation", count=15)
    expected = values(finish(toy(tmp_path / "one", record), Noisy()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the real features are computed again
    for rank in (1, 0):
        evaluation = toy(tmp_path / "two", record, rank=rank, world_size=2)
        evaluation.measure(evaluation.of(Noisy()))
    assert values(summed(toy(tmp_path / "two", record), Noisy()).report(NOW)) == expected


def test_candidates_are_measured_side_by_side_on_clips_that_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {amount: values(finish(toy(tmp_path / f"alone{amount}"), Noisy(amount))) for amount in (0.2, 0.5)}
    read: list[int] = []
    original = ClipDataset.__getitem__
    monkeypatch.setattr(ClipDataset, "__getitem__", lambda self, item: (read.append(item[0]), original(self, item))[1])
    evaluation = toy(tmp_path)
    models = {amount: Noisy(amount, stop_after=3 if amount == 0.5 else None) for amount in (0.2, 0.5)}
    candidates = {amount: Candidate("", model, tmp_path / str(amount)) for amount, model in models.items()}
    with pytest.raises(KeyboardInterrupt):
        evaluation.measure(*candidates.values())
    models[0.5].stop_after = None
    toy(tmp_path).measure(*candidates.values())
    assert (models[0.2].calls, models[0.5].calls) == (6, 6)
    assert len(read) == 28 + 19  # the fourth batch of seven was read, and is read again for the second model
    for amount, candidate in candidates.items():
        assert values(Summary(evaluation, candidate, resamples=0).report(NOW)) == alone[amount]


def test_usage_of_the_codebook_is_that_of_kept_codes(tmp_path: Path) -> None:
    class Coded(Noisy):
        def __call__(self, conditioning: Batch, seeds: torch.Tensor, /) -> Output:
            output = super().__call__(conditioning, seeds)
            assert output.tokens is not None
            codes = torch.where(output.tokens.keep, torch.arange(8) % 4, 15)
            return Output(output.video, BlockTokens(output.tokens.keep, codes=codes), {"width": seeds % 3})

    evaluation, model = toy(tmp_path), Coded()
    evaluation.measures = replace(evaluation.measures, codebook=True)
    found = values(finish(evaluation, model))
    assert found["codebook used"] == 4 / 16
    assert 3 < found["codebook perplexity"] < 4
    assert found["width"] == pytest.approx(float((_seeds(evaluation) % 3).double().mean()))


def test_clips_and_classes_are_listed(tmp_path: Path) -> None:
    evaluation, model = toy(tmp_path), Noisy()
    finish(evaluation, model)
    summary = summed(evaluation, model)
    summary.write_clips(tmp_path / "clips.csv")
    with (tmp_path / "clips.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 40
    assert list(rows[0]) == ["clip", "class", "seed", "PSNR", "SSIM", "tokens per clip", "bits per clip"]
    classes = summary.classes()
    assert len(classes) == 8
    mean = sum(float(row["PSNR"]) for row in rows if row["class"] == "circle") / classes["circle"]["clips"]
    assert classes["circle"]["PSNR"] == pytest.approx(mean)
    summary.write_classes(tmp_path / "classes.csv")
    with (tmp_path / "classes.csv").open(newline="") as stream:
        table = {row.pop("class"): row for row in csv.DictReader(stream)}
    assert {name: {key: float(value) for key, value in row.items()} for name, row in table.items()} == classes


def test_the_page_shows_originals_beside_what_was_made_and_what_classes_cost(tmp_path: Path) -> None:
    evaluation, model = toy(tmp_path), Noisy(0.0)
    report = finish(evaluation, model)
    summary = summed(evaluation, model)
    page = evaluation_page(report, summary).html()
    files = [tmp_path / f"{number}.mp4" for number in range(4)]
    for file, video in zip(files, re.findall(r"data:video/mp4;base64,([^\"]+)", page), strict=False):
        file.write_bytes(base64.b64decode(video))
    shown = [read_clip(file, 0, 16).astype(float) for file in files]
    for original, restored, other in ((0, 1, 2), (2, 3, 0)):
        assert abs(shown[original] - shown[restored]).mean() < 2
        assert abs(shown[original] - shown[other]).mean() > 10
    tokens = summary.class_lengths()
    assert {name: len(values) for name, values in tokens.items()} == dict.fromkeys(evaluation.clips.dataset.classes, 5)
    means = {name: values["tokens per clip"] for name, values in summary.classes().items()}
    assert [sum(values) / 5 for values in tokens.values()] == pytest.approx(sorted(means.values(), reverse=True))
    assert all(f"<title>{name}: " in page for name in ("all", "circle", "block 0", "block 3"))
    blocks = summary.lengths()
    assert [sum(clip) for clip in zip(*blocks.values(), strict=True)] == summary.seeds[0]["tokens per clip"].tolist()


def test_tables_keep_rows_in_order_and_refuse_another_use(tmp_path: Path) -> None:
    table = ClipTable(tmp_path, {"what": 1})
    table.add(torch.tensor([2, 0]), {"x": torch.tensor([20.0, 0.0])})
    table.flush()
    again = ClipTable(tmp_path, {"what": 1})
    again.add(torch.tensor([1, 2]), {"x": torch.tensor([10.0, 20.0])})
    with pytest.raises(ValueError, match="lacks 1 of 3"):
        again.load(3)
    again.flush()
    assert again.load(3)["x"].tolist() == [0.0, 10.0, 20.0]
    assert again.done() == {0, 1, 2}
    with pytest.raises(ValueError, match=r"another evaluation \(what is 1 there, 2 here\)"):
        ClipTable(tmp_path, {"what": 2})


def test_whole_videos_of_different_lengths(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    for number, frames in enumerate((16, 20, 33)):
        video = torch.randint(256, (3, frames, 32, 32), generator=draw, dtype=torch.uint8)
        write_video(tmp_path / "clips" / f"{number}.mp4", video, 25)
    record = replace(TOY, frames=None, clips="whole", features="")
    clips = protocol_clips(record, FolderConfig(str(tmp_path / "clips")), features=None)
    evaluation = Toy(tmp_path / "out", clips, Measures(fidelity=[ClipPSNR()]), Execution())
    model = Noisy()
    report = finish(evaluation, model)
    assert [shape[2] for shape in model.shown if shape] == [16, 20, 33]
    assert list(values(report)) == ["PSNR", "tokens per clip", "bits per clip"]
    assert summed(evaluation, model).lengths() == {}
    assert len(summed(evaluation, model).class_lengths()) == 1


def test_prepared_videos_are_not_the_data_set(tmp_path: Path) -> None:
    video = torch.randint(256, (3, 16, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(tmp_path / "original" / "a.mp4", video, 25)
    how, root = Preparation(TOY.clip_rule()), tmp_path / "prepared"
    original = tmp_path / "original" / "a.mp4"
    write_index(
        index_file(root, 0, 1),
        how.described(),
        {"a.mp4": prepare_video(original, probe(original), root / "a.mp4", how)},
    )
    record = replace(TOY, features="")
    protocol_clips(record, FolderConfig(str(original.parent)), features=None, partial=True)
    with pytest.raises(ValueError, match="resize in advance, into compressed files instead of short side"):
        protocol_clips(record, FolderConfig(str(root)), features=None)


def test_8_bit_protocols_find_nothing_lost_where_nothing_is(tmp_path: Path) -> None:
    """Frames that were resized lie between the 256 values: rounding one side only gave 58.9 dB."""
    draw = torch.Generator().manual_seed(0)
    for number in range(2):
        video = torch.randint(256, (3, 16, 48, 60), generator=draw, dtype=torch.uint8)
        write_video(tmp_path / "clips" / f"{number}.mp4", video, 25)
    for quantize in ("round", "truncate", "no"):
        record = replace(TOY, quantize=quantize, features="")  # type: ignore[arg-type]
        source, folder = FolderConfig(str(tmp_path / "clips")), tmp_path / quantize
        clips = protocol_clips(record, source, features=None)
        evaluation = Toy(folder, clips, Measures(fidelity=[ClipPSNR()]), Execution())
        assert values(finish(evaluation, Noisy(0.0)))["PSNR"] == 100


def _torchvision(video: torch.Tensor, side: int) -> torch.Tensor:
    """Resize(side, antialias=True) and CenterCrop(side) as torchvision's functional.py has them."""
    height, width = video.shape[2:]
    short, long = sorted((height, width))
    cut = int(side * long / short)
    size = (side, cut) if height <= width else (cut, side)
    video = torch.nn.functional.interpolate(video, size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (round((extent - side) / 2.0) for extent in size)
    return video[:, :, top : top + side, left : left + side]


def _tats(video: torch.Tensor, side: int) -> torch.Tensor:
    """`preprocess` of tats/data.py."""
    height, width = video.shape[2:]
    scale = side / min(height, width)
    size = (side, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), side)
    video = torch.nn.functional.interpolate(video, size, mode="bilinear", align_corners=False)
    top, left = ((extent - side) // 2 for extent in size)
    return video[:, :, top : top + side, left : left + side]


@pytest.mark.parametrize("size", [(240, 320), (480, 854), (854, 480), (226, 341), (100, 75), (128, 128)])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("ucf101-gfvd-larp-10k", _torchvision),
        ("ucf101-rfvd-first", _torchvision),
        ("ucf101-rfvd-random", _torchvision),
        ("k600-prediction-larp-50k", _torchvision),
        ("k600-rfvd-first", _torchvision),
        ("ucf101-gfvd-tats-2048", _tats),
    ],
)
def test_frames_are_resized_as_each_publication_does(
    name: str, rule: Callable[[torch.Tensor, int], torch.Tensor], size: tuple[int, int]
) -> None:
    record = protocol(name)
    video = torch.randint(256, (2, *size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = rule(video.permute(0, 3, 1, 2).float() / 255, record.resolution) * 2 - 1
    found = record.clip_rule().fit(video, 0).transpose(0, 1)
    assert (found - expected).abs().max() < 1e-5


def test_other_videos_do_not_bear_the_name_of_a_published_set(tmp_path: Path) -> None:
    for number in range(3):
        video = torch.full((3, 9, 16, 16), 40 * number, dtype=torch.uint8)
        write_video(tmp_path / "any" / f"{number}.mp4", video, 25)
    source = FolderConfig(str(tmp_path / "any"))
    for name, known in (("tokenbench-reconstruction", 520), ("davis-reconstruction", 90)):
        record = protocol(name).adapted(features="")
        with pytest.raises(ValueError, match=f"videos 3 instead of {known}, names others instead of"):
            protocol_clips(record, source, features=None)
        clips = protocol_clips(record, source, features=None, partial=True)
        assert clips.pixel_protocol.name.startswith(f"{name} [")


@pytest.mark.parametrize(
    ("published", "theirs", "others"),
    [
        ("UCF-101, groups 8 to 25", "Archery/v_Archery_g08_c01.avi#16", "Archery/v_Archery_g07_c01.avi"),
        ("UCF-101, groups 1 to 7", "Archery/v_Archery_g07_c01.avi", "Archery/v_Archery_g25_c01.avi"),
        ("UCF-101", "Archery/v_Archery_g25_c01.avi", "Archery/0001.avi"),
        ("Kinetics-600", "golf/-AAAAAAAAAA_000012_000022.mp4#48", "golf/golf_000012.mp4"),
        ("DAVIS 2017, train and val", "varanus-cage", "bear-2"),
        ("TokenBench", "bdd_100_0114bdd0-f317da84.mp4", "video_00001.mp4"),
        ("TokenBench", "cmu_bike01_2/frame_aligned_videos/cam01.mp4", "cmu_bike01_2/cam02.mp4"),
        ("TokenBench", "panda/-TfD4eKDfbI_1.mp4", "panda/-TfD4eKDfbJ.mp4"),
    ],
)
def test_names_of_published_sets(published: str, theirs: str, others: str) -> None:
    assert listed(published, [theirs]) == published
    assert listed(published, [theirs, others]) == "others"


def test_a_distance_that_cannot_be_computed_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs at least 2 clips, got 1"):
        toy(tmp_path, replace(TOY, count=1))

    class Long(Colours):
        min_frames = 17

    with pytest.raises(ValueError, match="at least 17 frames, got 16"):
        toy(tmp_path, features=Long())


def test_clips_that_share_a_budget_are_drawn(tmp_path: Path) -> None:
    """Neighbours in the order of a data set are of one class; measurements are the same, in their own rows."""
    evaluation = toy(tmp_path / "drawn", drawn_groups=True)
    groups = [part.tolist() for part in evaluation._share(40, [set()])]
    assert sorted(position for group in groups for position in group) == list(range(40))
    assert all(group != list(range(group[0], group[0] + len(group))) for group in groups)
    expected = values(finish(toy(tmp_path / "order"), Noisy()))
    assert values(finish(toy(tmp_path / "drawn", drawn_groups=True), Noisy())) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name.startswith("ucf101")])
def test_real_files_go_through_every_ucf_protocol(ucf: Path, tmp_path: Path, name: str) -> None:
    record = protocol(name)
    videos = 6 if record.split == "train+test" else 3
    count = 8 if record.clips == "windows" else videos
    source = protocol_source(record, ucf)
    with pytest.raises(ValueError, match=r"clips, but the data hold|would not be"):
        protocol_clips(record, source, features=None, partial=False)
    clips = protocol_clips(
        record.adapted(count=count),
        source,
        features=Colours(),
        test_source=unseen_source(record, ucf),
        sampler_seeds=min(2, record.sampler_seeds),
        partial=True,
    )
    evaluation = Toy(tmp_path / "out", clips, Measures(Colours(), [ClipPSNR()]), Execution(3))
    report = finish(evaluation, Noisy(side=record.resolution), resamples=4)
    for number in report.numbers:
        assert number.protocol.name.startswith(f"{name} [")
        assert f"count {number.count} instead of" in number.protocol.name
        assert f"videos {videos} instead of" in number.protocol.name
    found = values(report)
    assert "Frechet distance (colours)" in found
    assert not any(number.name.startswith("FVD") for number in report.numbers)
    assert ("PSNR" in found) == (record.task == "reconstruction")
    unseen = "Frechet distance (colours), test split"
    assert (unseen in found) == (record.task == "generation" and record.split == "train")
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
