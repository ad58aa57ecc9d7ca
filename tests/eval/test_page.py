"""Pages hold everything they show, escape what they are given, and draw what the numbers say."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from genvid.eval.pages.charts import LineChart, Series
from genvid.eval.pages.histograms import Histograms
from genvid.eval.pages.page import Clip, Page
from genvid.eval.protocols import EvaluationProtocol
from genvid.eval.report import Number, Provenance, Report

DEMO = EvaluationProtocol(
    "demo", "reconstruction", "generated clips", "val", frames=8, clips="first", count=4, resolution=16
)
VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Fails on tags that do not nest; collects attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in {"src", "href", "data"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def report(title: str, value: float) -> Report:
    numbers = [Number("PSNR", value, DEMO, count=4, unit="dB", better="higher")]
    return Report(title, numbers, Provenance("0.1", "evaluate --all", "2026-01-01", {"tokenizer": "abc"}))


def full_page() -> Page:
    page = Page("A <bold> title", lead="With `code` & signs.")
    section = page.section("One").text("First.\n\nSecond <script>.").facts({"clips": 12.0, "score": "93 %"})
    section.note("small, a < b")
    clip = Clip(b"mp4", "static", tokens=(8, 2), capacity=16)
    section.clips([clip]).comparison(["Original", "Half"], {"clip 1": [Clip(b"mp4"), clip]})
    section.table(["name", "PSNR"], [["a", 30.0], ["b", 31.25], ["c", None]], best={"PSNR": "higher"})
    page.section("Two").numbers([report("ILP", 31.25), report("uniform", 29.0)])
    page.section("Three").charts(LineChart("Loss", [Series("a", [0, 1], [1, 2])], "step", "loss"))
    return page


def test_page_is_whole_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    full_page().write(tmp_path / "page.html")
    parser = Balance()
    html = (tmp_path / "page.html").read_text()
    parser.feed(html)
    assert not parser.open
    assert all(source.startswith(("data:", "#")) for source in parser.sources)
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("data:video/mp4;base64,bXA0") == 3
    text = " ".join(parser.text)
    for words in ("A <bold> title", "Second <script>.", "a < b", "static", "evaluate --all", "demo, 4 clips"):
        assert words in text


def test_links_reach_their_sections() -> None:
    html = full_page().html()
    anchors = re.findall(r'href="#([^"]+)"', html)
    assert len(anchors) == 3
    assert all(f'id="{anchor}"' in html for anchor in anchors)


def test_bars_are_as_high_as_blocks_are_full() -> None:
    html = Clip(b"", tokens=(0, 4, 16), capacity=16).html()
    assert re.findall(r"--part:([\d.]+)%", html) == ["0.0", "25.0", "100.0"]
    assert "tokens per block: 0, 4, 16" in html
    with pytest.raises(ValueError, match="17 tokens does not fit a capacity of 16"):
        Clip(b"", tokens=(17,), capacity=16)


def test_the_best_value_is_marked_and_decimals_agree() -> None:
    html = full_page().html()
    assert re.findall(r'<td class="best"><span>([^<]+)</span>', html) == ["31.25", "31.25 dB"]
    assert "<td>30.00</td>" in html
    assert "<td>29.00 dB</td>" in html


def test_ragged_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="2 cells does not fit a header of 1"):
        Page("t").section("s").table(["a"], [["b", 1.0]])
    with pytest.raises(ValueError, match="row 'x' has 1 clips for 2 columns"):
        Page("t").section("s").comparison(["a", "b"], {"x": [Clip(b"")]})


def line(html: str) -> list[tuple[float, float]]:
    points = re.search(r'points="([^"]+)"', html)
    assert points is not None
    return [(float(x), float(y)) for x, y in (point.split(",") for point in points[1].split())]


def test_chart_puts_points_where_they_belong() -> None:
    (x0, y0), (x1, y1), (x2, y2) = line(LineChart("t", [Series("s", [0, 5, 10], [1, 2, 3])], "x", "y").html())
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 > y1 > y2
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    log = line(LineChart("t", [Series("s", [0, 1, 2], [1, 10, 100])], "x", "y", log_y=True).html())
    assert log[0][1] - log[1][1] == pytest.approx(log[1][1] - log[2][1], abs=0.11)


def test_chart_skips_what_cannot_be_drawn_and_shortens_long_curves() -> None:
    values = [math.nan, math.inf, *range(1, 10_000)]
    points = line(LineChart("t", [Series("s", list(range(len(values))), values)], "x", "y").html())
    assert 100 < len(points) <= 300
    assert len(line(LineChart("t", [Series("s", [0, 1, 2], [0, 1, 2])], "x", "y", log_y=True).html())) == 2
    assert "circle" in LineChart("t", [Series("s", [3], [7])], "x", "y").html()
    with pytest.raises(ValueError, match="no finite points"):
        LineChart("t", [Series("s", [0], [math.nan])], "x", "y").html()
    with pytest.raises(ValueError, match="2 x values but 1 y"):
        Series("s", [0, 1], [1])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.1, 0.12), (-3, 5), (1e-6, 3e-6), (0, 123456), (7, 7)])
def test_axes_have_a_few_ticks(low: float, high: float) -> None:
    html = LineChart("t", [Series("s", [0, 1], [low, high])], "x", "y").html()
    assert 2 <= html.count('class="grid"') <= 8


def cells(html: str) -> list[tuple[float, float, float, str]]:
    """Place, width, shade and text of every cell."""
    pattern = r'class="cell" x="([\d.]+)" y="\d+" width="([\d.]+)" height="\d+" fill-opacity="([\d.]+)"><title>([^<]+)'
    return [(float(x), float(w), float(shade), text) for x, w, shade, text in re.findall(pattern, html)]


def test_histograms_share_their_bins() -> None:
    html = Histograms("t", {"a": [3, 3, 3, 5], "b & c": [5, 5]}, "tokens").html()
    (left, wide, pale, said), middle, below = cells(html)
    assert said == "a: 3 tokens, 75 % of 4"
    assert (pale, middle[2], below[2]) == (0.75, 0.25, 1.0)
    assert middle[:2] == below[:2]
    assert middle[0] - left == pytest.approx(2 * (wide + 1), abs=0.2)
    assert below[3] == "b &amp; c: 5 tokens, 100 % of 2"
    means = [float(x) for x in re.findall(r'class="mean" x1="([\d.]+)"', html)]
    assert means[0] == pytest.approx(left + wide / 2 + 0.25 * (middle[0] - left), abs=0.6)


def test_histograms_of_wide_ranges_and_of_one_value() -> None:
    values = list(range(100, 1100))
    drawn = cells(Histograms("t", {"a": values}, "tokens").html())
    assert len(drawn) == 24
    assert drawn[0][3].startswith("a: 100 to 141 tokens")
    assert {shade for *_, shade, _ in drawn[:-1]} == {1.0}
    assert len(cells(Histograms("t", {"a": [7], "b": [7, 7]}, "tokens").html())) == 2
    with pytest.raises(ValueError, match="numbers in every group"):
        Histograms("t", {"a": []}, "tokens")


def test_strong_words_are_marked_and_stars_of_code_are_left() -> None:
    html = Page("t").section("s").text("A **left** turn, 2 ** 3, `a**b**`.").heading("**right**").html("a")
    assert "<strong>left</strong>" in html
    assert "<h3><strong>right</strong></h3>" in html
    assert "2 ** 3" in html
    assert "<code>a**b**</code>" in html
