"""The page of the demo: its first section, in a browser at two widths, and the tables in the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from browser import browser

from genvid.eval.protocols import EvaluationProtocol
from genvid.eval.report import Number, Provenance, Report
from genvid.recipes.compare_allocators import EvaluationRun
from genvid.recipes.demo import Demo
from genvid.recipes.demo_page import first_page, generation_table, reconstruction_table
from genvid.recipes.generate import GenerationRun
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig

PROTOCOL = EvaluationProtocol("toy", "reconstruction", "generated clips", "all", 16, "first", None, 32, features="")


def report(title: str, **values: float) -> Report:
    numbers = [Number(name.replace("_", " "), value, PROTOCOL, 4) for name, value in values.items()]
    return Report(title, numbers, Provenance.now({}))


@pytest.mark.parametrize("data", [None, "videos"])
def test_numbers_of_ones_own_videos_are_not_called_those_of_generated_clips(tmp_path: Path, data: str | None) -> None:
    demo = Demo(tmp_path, data, quick=True)
    runs = {"evaluation": EvaluationRun, "generation": GenerationRun, "prediction": GenerationRun}
    for name, cls in runs.items():
        assert demo.config(cls, name).protocol.endswith("held-out clips")


def test_tables_have_headings_and_aligned_columns() -> None:
    reports = [report("uniform @ 16", PSNR=20.123), report("joint @ 16", PSNR=21.5), report("uniform @ 32", PSNR=24.0)]
    reports.append(report("joint @ 32", PSNR=25.25))
    assert reconstruction_table(reports).text() == (
        "PSNR of reconstructions, dB\n"
        "  rule     16 tokens  32 tokens\n"
        "  uniform      20.12         24\n"
        "  joint         21.5      25.25"
    )
    made = {"class_as_asked": 0.9, "classifier_on_real_clips": 0.95, "tokens_per_clip": 23.75}
    lines = generation_table(report("a", **made), report("b", **made)).text().splitlines()
    assert lines[1].split("  ")[1].strip() == "clips"
    assert lines[2].split() == ["samples", "of", "a", "class", "90", "95", "23.8"]


def test_the_first_section_fits_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tokenizer that is installed with genvid; a tiny one takes its place here."""
    torch.manual_seed(0)
    network = StackConfig(16, 1, 2)
    config = AdapTokConfig(16, (128, 128), (4, 32, 32), 16, network, network, VQConfig(codebook_size=20, code_dim=4))
    AdapTok(config).save(tmp_path / "models" / "tiny")
    assert "robot arm" not in first_page("tiny").html()
    monkeypatch.setattr("genvid.checkpoint.SHIPPED", tmp_path / "models")
    first_page("tiny").write(tmp_path / "page.html")
    with browser(tmp_path) as tab:
        for width in (1280, 400):
            tab.open((tmp_path / "page.html").as_uri(), width=width)
            tab.until("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
            assert tab.run("document.querySelectorAll('video').length") == 4
            assert tab.run("document.querySelectorAll('.bars span').length") == 3 * 16
            assert not tab.run("document.documentElement.scrollWidth > innerWidth")
