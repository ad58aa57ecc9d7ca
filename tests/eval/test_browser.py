"""The page of an evaluation in a real browser: its videos can be decoded, its plots are drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_evaluation import NOW, toy
from toy_models import TOY, Noisy

from genvid.eval.evaluation import Candidate
from genvid.eval.pages.evaluation_page import comparison_page, evaluation_page
from genvid.eval.pages.page import Page
from genvid.eval.report import Number, Report
from genvid.eval.summary import Summary

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROBE = """<script>
// After everything has loaded: what the browser made of the page, as text that --dump-dom prints.
addEventListener('load', async () => {
  const videos = [...document.querySelectorAll('video')];
  const ready = video => video.readyState >= 2 ? null
    : new Promise(done => { video.addEventListener('loadeddata', done); video.addEventListener('error', done); });
  await Promise.all(videos.map(ready));
  const size = video => `${video.videoWidth}x${video.videoHeight}/${video.duration.toFixed(2)}`;
  const lines = [...document.querySelectorAll('svg polyline')].filter(line => line.getTotalLength() > 10);
  const cells = [...document.querySelectorAll('svg .cell')].filter(cell => cell.getBoundingClientRect().width > 2);
  const wider = element => element.scrollWidth > element.clientWidth;
  const scrolled = [...document.querySelectorAll('.scroll')].some(wider);
  const wide = scrolled || document.documentElement.scrollWidth > innerWidth;
  const report = document.createElement('p');
  report.id = 'probe';
  const drawn = `lines ${lines.length}; cells ${cells.length}; overflow ${wide}`;
  report.textContent = `videos ${videos.map(size).join(' ')}; ${drawn}`;
  document.body.append(report);
});
</script>"""


def in_browser(page: Path, folder: Path, width: int = 1280) -> str:
    """What the probe says of a page in a window of so many pixels."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome on this machine")
    probed = folder / "probed.html"
    probed.write_text(page.read_text().replace("</head>", f"{PROBE}</head>", 1))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder / 'profile'}"]
    options.append(f"--window-size={width},900")
    command = [browser, *options, "--virtual-time-budget=20000", "--dump-dom", probed.as_uri()]
    try:
        dumped = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    except subprocess.TimeoutExpired:
        pytest.skip("the browser did not start within two minutes")
    if not dumped:
        pytest.skip("the browser does not run here")
    found = re.search(r'<p id="probe">([^<]*)</p>', dumped)
    assert found, dumped[-2000:]
    return found[1]


def test_the_page_of_an_evaluation_plays_and_draws(tmp_path: Path) -> None:
    reports = []
    for amount in (0.1, 0.3):
        evaluation = toy(tmp_path / f"{amount}")
        candidate = Candidate(f"noise @ {amount}", Noisy(amount), tmp_path / f"{amount}")
        evaluation.measure(candidate)
        summary = Summary(evaluation, candidate, resamples=4)
        reports.append(summary.report(NOW))
    evaluation_page(reports[0], summary).write(tmp_path / "page.html")
    said = in_browser(tmp_path / "page.html", tmp_path)
    videos = re.findall(r"(\d+)x(\d+)/([\d.]+)", said)
    assert videos == [("32", "32", "0.64")] * 32
    assert int(re.findall(r"cells (\d+)", said)[0]) > 40
    assert "overflow false" in said
    comparison_page(reports).write(tmp_path / "comparison.html")
    assert "lines 3; cells 0; overflow false" in in_browser(tmp_path / "comparison.html", tmp_path)


@pytest.mark.parametrize("width", [1280, 400])
def test_no_table_scrolls_sideways(width: int, tmp_path: Path) -> None:
    names = [f"a distance of a long name, part {number}" for number in range(14)]
    numbers = [Number(name, 12345.678 / (1 + i), TOY, 40, spread=1.5) for i, name in enumerate(names)]
    page = Page("Tables")
    page.section("Many columns").numbers([Report(f"method {i} @ 0.35", numbers, NOW) for i in range(2)])
    page.section("Few columns").table(["method", *names[:3]], [["joint", 1.0, None, 3.0], ["uniform", 2.0, 1.0, 3.0]])
    page.write(tmp_path / "page.html")
    assert "overflow false" in in_browser(tmp_path / "page.html", tmp_path, width)
