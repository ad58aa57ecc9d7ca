"""`genvid evaluate` and `genvid report` as a user runs them, on tiny models and the real UCF-101 files."""

from __future__ import annotations

import csv
import json
import math
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genvid.allocation import UniformAllocator
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.checkpoint import load_model
from genvid.cli import main
from genvid.cli.video_models import Sampling
from genvid.data import to_float, write_video
from genvid.data.sources.synthetic import MOTIONS
from genvid.eval.features.classifier import VideoClassifier, VideoClassifierConfig
from genvid.eval.features.loading import load_features
from genvid.eval.pixels import truncate_to_bytes
from genvid.eval.protocols import protocol
from genvid.eval.report import Report
from genvid.eval.samples import PixelFile, open_samples
from genvid.generation.folder import SampleWriter
from genvid.generation.sampler import SamplingConfig
from genvid.provenance import Origin
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens import TokenizerSpec
from genvid.tokens.rows import BlockLayout

LAUNCH_FILE = Path(__file__).resolve().parents[2] / "recipes/configs/accelerate/ddp.yaml"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 4 blocks of 4 frames at 32x32, its scorer, a model of eight classes, a classifier."""
    folder, network, sizes = tmp_path_factory.mktemp("models"), StackConfig(16, 1, 2), (2, 4, 8)
    torch.manual_seed(0)
    config = AdapTokConfig(16, (32, 32), (4, 8, 8), 8, network, network, VQConfig(codebook_size=20, code_dim=4))
    tokenizer = AdapTok(config)
    torch.nn.init.normal_(tokenizer.output.weight, std=0.1)
    tokenizer.save(folder / "tokenizer")
    Scorer(ScorerConfig.for_tokenizer(config, network, sizes=sizes, metric="x")).save(folder / "scorer")
    layout = BlockLayout(codebook_size=20, num_classes=8, num_blocks=4, block_capacity=8, sizes=sizes)
    rows = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=80)
    BlockTransformer(ARConfig(layout, rows)).save(folder / "ar")
    classifier = VideoClassifierConfig(2, frames=16, resolution=32, width=8)
    VideoClassifier(classifier).save(folder / "classifier")
    return folder


def evaluate(protocol: str, data: Path, output: Path, models: Path, *options: str) -> None:
    fixed = ["--data", str(data), "--output", str(output), "--workers", "0"]
    main(["evaluate", protocol, *fixed, "--tokenizer", str(models / "tokenizer"), *options])


def test_budgets_of_a_tokenizer_become_reports_and_a_page(
    ucf: Path,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scored = ["--scorer", str(models / "scorer"), "--tokens", "12", "20"]
    tiny = ["--features", str(models / "classifier"), "--count", "3", "--partial", "--html"]
    evaluate("ucf101-rfvd-first", ucf, tmp_path / "out", models, *scored, *tiny)
    reports = [tmp_path / "out" / f"tokens{budget}" / "report.json" for budget in (12, 20)]
    first = Report.load(reports[0])
    assert {n.name: n.value for n in first.numbers}["tokens per clip"] == 12
    assert set(first.provenance.weights) == {"tokenizer", "scorer", "features"}
    assert (tmp_path / "out" / "tokens12" / "page.html").read_text().count("<video") == 6
    assert (tmp_path / "out" / "comparison.html").is_file()
    capsys.readouterr()
    main(["report", *map(str, reports), "--html", str(tmp_path / "all.html")])
    assert "| tokenizer @ 12 |" in capsys.readouterr().out
    assert "polyline" in (tmp_path / "all.html").read_text()


def test_refined_codes_are_named_and_nearer(ucf: Path, models: Path, tmp_path: Path) -> None:
    tiny = ["--scorer", str(models / "scorer"), "--tokens", "12", "--features", "none", "--count", "3", "--partial"]
    reports = []
    for steps in ("0", "4"):
        evaluate("ucf101-rfvd-first", ucf, tmp_path / steps, models, *tiny, "--refine", steps)
        reports.append(Report.load(tmp_path / steps / "tokens12" / "report.json"))
    assert [report.title for report in reports] == ["tokenizer @ 12", "tokenizer, refined by 4 steps @ 12"]
    plain, refined = ({number.name: number.value for number in report.numbers} for report in reports)
    assert refined["tokens per clip"] == plain["tokens per clip"] == 12
    assert refined["PSNR"] > plain["PSNR"]


def test_tokens_are_measured_under_a_model_and_by_a_probe(ucf: Path, models: Path, tmp_path: Path) -> None:
    scored = ["--scorer", str(models / "scorer"), "--tokens", "20", "--model", str(models / "ar"), "--probe"]
    tiny = ["--features", "none", "--count", "3", "--partial", "--html"]
    evaluate("ucf101-rfvd-first", ucf, tmp_path / "out", models, *scored, *tiny)
    report = Report.load(tmp_path / "out" / "tokens20" / "report.json")
    assert report.title == "tokenizer @ 20"
    found = {number.name: number for number in report.numbers}
    assert found["bits per token"].value == pytest.approx(math.log2(23), rel=0.2)  # of an untrained model
    probes = [name for name in found if name.startswith("class by a linear probe")]
    assert [name.rpartition("first ")[2] for name in probes] == [f"{k} of 8 tokens of a block" for k in (1, 2, 8)]
    assert all(0 <= found[name].value <= 1 for name in probes)
    assert set(report.provenance.weights) == {"tokenizer", "scorer", "model"}
    assert "Bits of a token under the model" in (tmp_path / "out" / "tokens20" / "page.html").read_text()


def test_samples_are_of_the_classes_of_the_real_windows(
    ucf: Path,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--features", str(models / "classifier"), "--count", "4", "--seeds", "2", "--partial"]
    out = tmp_path / "out"
    evaluate("ucf101-gfvd-larp-10k", ucf, out, models, "--model", str(models / "ar"), *options)
    numbers = {number.name: number for number in Report.load(out / "report.json").numbers}
    distance = next(number for name, number in numbers.items() if name.endswith(")"))
    assert distance.spread is not None
    assert "sampler seeds 2 instead of 4" in distance.protocol.name
    assert len((out / "clips.csv").read_text().splitlines()) == 9
    other = json.loads((out / "report.json").read_text())
    other["numbers"][0]["protocol"]["name"], other["numbers"][0]["protocol"]["count"] = "mine", 5
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit):
        main(["report", str(out / "report.json"), str(tmp_path / "other.json")])
    assert "numbers of different protocols do not share a column" in capsys.readouterr().err


def test_samples_made_elsewhere_are_scored_as_they_are(
    ucf: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = torch.randint(256, (3, 3, 20, 128, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for number, video in enumerate(made):
        write_video(tmp_path / "made" / f"{number}.mp4", video, 25)
    data = ["--data", str(ucf), "--videos", str(tmp_path / "made"), "--features", str(models / "classifier")]
    command = ["evaluate", "ucf101-gfvd-tats-2048", *data, "--partial", "--workers", "0", "--output"]
    main([*command, str(tmp_path / "out"), "--count", "3"])
    report = Report.load(tmp_path / "out" / "report.json")
    distance = report.numbers[0]
    assert distance.value > 0
    assert "count 3 instead of 2048" in distance.protocol.name
    assert any("compression is measured too" in remark for remark in report.remarks)
    assert set(report.provenance.weights) == {"videos", "features"}
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "more"), "--count", "4"])
    assert "holds 3 videos, ucf101-gfvd-tats-2048 [count 4 instead of 2048] compares 4" in capsys.readouterr().err


def test_of_more_samples_than_are_compared_not_the_first_classes_are_taken(tmp_path: Path) -> None:
    for label in range(4):
        for number in range(6):
            video = torch.full((3, 16, 16, 16), 60 * label, dtype=torch.uint8)
            write_video(tmp_path / "made" / f"class{label}" / f"{number}.mp4", video, 25)
    record = protocol("ucf101-gfvd-tats-2048").adapted(count=12)
    samples = open_samples(tmp_path / "made", record)
    shades = samples({"position": torch.arange(12)}, torch.zeros(12)).video.mean((1, 2, 3, 4))
    drawn = sorted(random.Random(42).sample(range(24), 12))
    assert [round((float(shade) + 1) * 127.5 / 60) for shade in shades] == [number // 6 for number in drawn]
    assert samples.describe()["videos there"] == 24


def test_samples_in_png_folders_are_read_bit_for_bit(tmp_path: Path) -> None:
    made = torch.randint(256, (3, 3, 16, 128, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    writer = SampleWriter(("tokenizer", "0123"), TokenizerSpec(4, (128, 128), 8, 4, 512), fps=8, format="png")
    for number, video in enumerate(made):
        writer.write_video(tmp_path / "made", number, to_float(video))
    (tmp_path / "made" / "tokens").mkdir()
    (tmp_path / "made" / "tokens" / "00000.tok").write_bytes(b"")
    (tmp_path / "made" / "index.jsonl").write_text("{}\n")
    samples = open_samples(tmp_path / "made", protocol("ucf101-gfvd-tats-2048").adapted(count=3))
    videos = samples({"position": torch.arange(3)}, torch.arange(3)).video
    assert torch.equal(videos, to_float(made))


@pytest.mark.parametrize("layout", ["one compressed file", "one plain file", "a file for each"])
def test_samples_in_npz_files_are_scored_bit_for_bit(
    layout: str, ucf: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.randint(256, (4, 20, 128, 128, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save = np.savez if layout == "one plain file" else np.savez_compressed
    if layout == "a file for each":
        (tmp_path / "made" / "tokens").mkdir(parents=True)
        samples = tmp_path / "made"
        for number, clip in enumerate(pixels):
            save(samples / f"{number:05d}.npz", frames=clip.numpy(), fps=25)
            np.savez(samples / "tokens" / f"{number:05d}.npz", codes=np.zeros(4))
    else:
        samples = tmp_path / "made.npz"
        save(samples, pixels.numpy(), np.arange(4))  # as guided-diffusion writes: arr_0 the clips, arr_1 their labels
    command = ["evaluate", "ucf101-gfvd-tats-2048", "--data", str(ucf), "--partial", "--workers", "0"]
    command += ["--videos", str(samples), "--features", str(models / "classifier"), "--batch-size", "2"]
    main([*command, "--output", str(tmp_path / "out"), "--count", "3"])
    report = Report.load(tmp_path / "out" / "report.json")
    assert not any("compression" in remark for remark in report.remarks)
    rows = [load_file(file) for file in (tmp_path / "out" / "measured" / "seed0").glob("rows-*")]
    found = torch.cat([part["features"] for part in rows])[torch.cat([part["position"] for part in rows]).argsort()]
    drawn = sorted(random.Random(42).sample(range(4), 3))  # of more clips than are compared
    videos = to_float(pixels[drawn, :16].permute(0, 4, 1, 2, 3))
    expected = load_features(models / "classifier")(truncate_to_bytes(videos))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_clip_of_a_large_array_is_read_alone(tmp_path: Path) -> None:
    pixels = np.broadcast_to(np.arange(160, dtype=np.uint8).reshape(-1, 1, 1, 1, 1), (160, 4, 256, 256, 3))
    np.savez_compressed(tmp_path / "made.npz", pixels)
    file = PixelFile(tmp_path / "made.npz")
    tracemalloc.start()
    for row in (3, 4, 40, 159, 0):
        assert np.array_equal(file.read(row).numpy(), pixels[row])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pixels.nbytes / 2


def test_npz_files_that_hold_no_samples_are_said_to(tmp_path: Path) -> None:
    record, clip = protocol("ucf101-gfvd-tats-2048").adapted(count=1), np.zeros((20, 8, 8, 3), np.uint8)

    def refused(said: str) -> None:
        with pytest.raises(ValueError, match=said):
            open_samples(tmp_path / "made", record)

    (tmp_path / "made").mkdir()
    file = tmp_path / "made" / "0.npz"
    np.savez(file, video=clip[..., :1], real=clip.astype(np.float32))
    refused(r"must hold one array of clips.*; it holds video uint8 \(20, 8, 8, 1\), real float32 \(20, 8, 8, 3\)")
    np.savez(file, np.asfortranarray(clip))
    refused("in C order")
    np.savez(file, clip[:15])
    refused("clips of 15 frames, but 16 are compared")
    np.savez(file, clip)
    damaged = bytearray(file.read_bytes())
    whole = PixelFile(file)
    damaged[200:300] = bytes(range(100))
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged"):
        whole.read(0)
    file.write_bytes(damaged[:100])
    refused("is not an .npz file")
    write_video(tmp_path / "made" / "1.mp4", torch.zeros(3, 16, 16, 16, dtype=torch.uint8), 25)
    refused("mixes .npz and video files")


@pytest.fixture
def synthetic(models: Path, tmp_path: Path) -> list[str]:
    """Arguments of an evaluation on a few generated clips."""
    (tmp_path / "clips.yaml").write_text("{type: synthetic, clips: 8}")
    data = ["--source", str(tmp_path / "clips.yaml"), "--partial", "--workers", "0", "--count", "4"]
    return [*data, "--features", str(models / "classifier"), "--tokenizer", str(models / "tokenizer")]


def test_classes_are_asked_for_by_name(
    models: Path, synthetic: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = []
    model = load_model(models / "ar")
    assert isinstance(model, BlockTransformer)
    table, first = model.backbone.embed_tokens.weight.data, model.layout.num_outputs
    torch.nn.init.normal_(table, std=1.0)
    for name, classes in (("data", MOTIONS), ("reversed", MOTIONS[::-1])):
        model.origin = Origin(classes=list(classes))
        model.save(tmp_path / name)
        made = ["--model", str(tmp_path / name), "--output", str(tmp_path / f"out {name}"), "--seeds", "1"]
        main(["evaluate", "ucf101-gfvd-larp-10k", *synthetic, *made])
        values.append(Report.load(tmp_path / f"out {name}" / "report.json").numbers[0].value)
        table[first : first + 8] = table[first : first + 8].flip(0)
    assert values[0] == values[1]
    model.origin = Origin(classes=["cat", "dog", "owl", *MOTIONS[3:]])
    model.save(tmp_path / "pets")
    made = ["--model", str(tmp_path / "pets"), "--output", str(tmp_path / "refused")]
    with pytest.raises(SystemExit):
        main(["evaluate", "ucf101-gfvd-larp-10k", *synthetic, *made])
    said = capsys.readouterr().err
    assert "pets was trained on the classes cat, dog, owl, up" in said
    assert "these data have still, right, left, up" in said
    assert not (tmp_path / "refused" / "measured").exists()


def predictor(models: Path, folder: Path, *, sizes: tuple[int, ...] = (2, 4, 8), origin: Origin | None = None) -> Path:
    layout = BlockLayout(codebook_size=20, num_classes=8, num_blocks=4, block_capacity=8, sizes=sizes)
    rows = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=80)
    model = BlockTransformer(ARConfig(layout, rows, context_blocks=1))
    model.origin = origin or Origin()
    model.save(folder)
    return folder


def test_a_frame_predictor_has_what_differs_in_the_name_of_its_number(
    models: Path, synthetic: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = predictor(models, tmp_path / "predictor")
    command = ["evaluate", "k600-prediction-larp-50k", *synthetic, "--model", str(model)]
    main([*command, "--output", str(tmp_path / "out")])
    number = Report.load(tmp_path / "out" / "report.json").numbers[0]
    assert "condition frames 4 instead of 5" in number.protocol.name
    assert number.protocol.frames == 16
    with pytest.raises(SystemExit):
        main([*[word for word in command if word != "--partial"], "--output", str(tmp_path / "whole")])
    assert "condition frames 4 instead of 5]'; --partial runs it under that name" in capsys.readouterr().err


def test_given_frames_are_returned_as_the_tokenizer_decodes_them(models: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(predictor(models, tmp_path / "predictor")), load_model(models / "tokenizer")
    assert isinstance(model, BlockTransformer)
    assert isinstance(tokenizer, AdapTok)
    video = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for length, rule in ((8, None), (4, UniformAllocator(4))):
        made = Sampling(model, tokenizer, SamplingConfig(), {}, context=rule)({"video": video}, torch.arange(2))
        tokens = tokenizer.encode(video)
        cut = tokens if rule is None else rule(tokens)
        assert made.video.shape[2] == 16
        assert torch.allclose(made.video[:, :, :4], tokenizer.decode(cut).clamp(-1, 1), atol=1e-5)
        assert made.tokens is not None
        assert made.tokens.lengths[:, 0].tolist() == [length, length]


def test_given_frames_are_cut_as_in_training(
    models: Path, synthetic: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, *options: str, **changes: Any) -> None:
        model = predictor(models, tmp_path / name, **changes)
        command = ["evaluate", "k600-prediction-larp-50k", *synthetic, "--model", str(model), *options]
        main([*command, "--output", str(tmp_path / f"out {name}")])

    def refused(said: str, *options: str, **changes: Any) -> None:
        with pytest.raises(SystemExit):
            run("refused", *options, **changes)
        assert said in capsys.readouterr().err

    joint = Origin({"cache": {"allocator": {"type": "joint", "tokens_per_video": 16}}})
    uniform = Origin({"cache": {"allocator": {"type": "uniform", "tokens_per_video": 16}}})
    cut = ["--scorer", str(models / "scorer"), "--tokens"]
    refused("trained on clips of at most 16 tokens: give --scorer and --tokens", origin=joint)
    refused("was trained on clips of 16 tokens: give --tokens 16", *cut, "12", origin=joint)
    refused("trained on clips of at most 16 tokens: give --scorer and --tokens", sizes=(2, 4))
    run("joint", *cut, "16", origin=joint)
    run("uniform", origin=uniform)
    with (tmp_path / "out uniform" / "clips.csv").open() as lines:
        assert all(float(row["tokens per clip"]) <= 4 + 3 * 8 for row in csv.DictReader(lines))


@pytest.mark.gpu
def test_two_processes_give_the_very_numbers_of_one(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.device_count() == 1:
        pytest.skip("needs two GPUs")
    (tmp_path / "clips.yaml").write_text("{type: synthetic, clips: 24}")
    described = ["--source", str(tmp_path / "clips.yaml"), "--partial", "--count", "12", "--seeds", "2"]
    scored = ["--features", str(models / "classifier"), "--batch-size", "4", "--workers", "0"]
    made = ["--tokenizer", str(models / "tokenizer"), "--model", str(models / "ar")]
    command = ["evaluate", "ucf101-gfvd-larp-10k", *described, *scored, *made]
    folders = [tmp_path / "one", tmp_path / "two"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    main([*command, "--output", str(folders[0])])
    torch.set_num_threads(threads)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the real features are computed again
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1"]
    launch += ["--config_file", str(LAUNCH_FILE), "--num_processes", "2", "-m", "genvid.cli"]
    ended = subprocess.run([*launch, *command, "--output", str(folders[1])], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    numbers = [Report.load(folder / "report.json").numbers for folder in folders]
    assert len(numbers[0]) == 4
    assert numbers[0] == numbers[1]
    assert (folders[0] / "clips.csv").read_text() == (folders[1] / "clips.csv").read_text()
    assert len(list((folders[1] / "measured" / "seed0").glob("rows-*"))) == 2


@pytest.mark.parametrize(
    ("protocol", "options", "said"),
    [
        ("ucf101-rfvd-first", [], "pass its path (`--i3d FILE`)"),
        ("ucf101-rfvd-first", ["--features", "none"], "pass `partial` (--partial)"),
        ("ucf101-rfvd", [], "no protocol 'ucf101-rfvd'; there are ucf101-gfvd-larp-10k"),
        ("ucf101-gfvd-larp-10k", ["--features", "none"], "measures generation: give --model"),
        ("k600-rfvd-first", ["--features", "none"], "needs the CSV file of the val split (--lists)"),
        ("ucf101-rfvd-first", ["--i3d", __file__], "test_evaluate_command.py is no PyTorch checkpoint"),
        ("ucf101-rfvd-first", ["--features", "none", "--partial", "--count", "0"], "--count is at least 1, got 0"),
        ("ucf101-rfvd-first", ["--features", "none", "--workers", "-1"], "--workers is at least 0, got -1"),
        ("ucf101-gfvd-larp-10k", ["--model", "m", "--scorer", "s", "--tokens", "8", "32"], "it would change nothing"),
        ("ucf101-gfvd-tats-2048", ["--videos", "v", "--tokens", "8"], "cut the input of a model: it would"),
        ("ucf101-gfvd-larp-10k", ["--model", "m", "--lpips", "vgg"], "--lpips compares reconstructions"),
        ("ucf101-rfvd-first", ["--temperature", "0"], "are of samples of a --model: it would change nothing"),
        ("ucf101-gfvd-larp-10k", ["--videos", "v", "--seeds", "2"], "--seeds is of samples of a --model"),
        ("ucf101-rfvd-first", ["--model", "m", "--seeds", "2"], "--seeds is of samples of a --model"),
        ("ucf101-gfvd-larp-10k", ["--model", "m", "--probe"], "--probe is of reconstructed clips of equal length"),
        (
            "ucf101-gfvd-larp-10k",
            ["--model", "m", "--refine", "2"],
            "--refine changes the tokens of reconstructed clips",
        ),
        ("ucf101-rfvd-first", ["--lpips-weights", "f"], "is the trunk of --lpips"),
        ("ucf101-rfvd-first", ["--tokens", "8", "32", "8"], "--tokens are budgets that differ, got 8, 32, 8"),
        ("ucf101-rfvd-first", ["--tokens", "8", "--batch-size", "4"], "clips share --tokens in groups of 64"),
    ],
)
def test_what_is_missing_is_said(
    protocol: str,
    options: list[str],
    said: str,
    ucf: Path,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        evaluate(protocol, ucf, tmp_path / "out", models, *options)
    assert said in capsys.readouterr().err
