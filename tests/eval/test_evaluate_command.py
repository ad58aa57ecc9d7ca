"""`genvid evaluate` and `genvid report` as a user runs them, on tiny models and the real UCF-101 files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.cli import main
from genvid.data import write_video
from genvid.eval.classifier import VideoClassifier, VideoClassifierConfig
from genvid.eval.report import Report
from genvid.sequence import BlockLayout
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.layers import TransformerConfig as Network
from genvid.tokenizer.quantizer import VQConfig

LAUNCH_FILE = Path(__file__).resolve().parents[2] / "recipes/configs/accelerate/ddp.yaml"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 4 blocks of 4 frames at 32x32, its scorer, a model of eight classes, a classifier."""
    folder, network, sizes = tmp_path_factory.mktemp("models"), Network(16, 1, 2), (2, 4, 8)
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
    assert "numbers of different protocols do not stand in one column" in capsys.readouterr().err


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


def test_two_processes_give_the_very_numbers_of_one(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
