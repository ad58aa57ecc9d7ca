"""The page of the studio in a real browser: upload, budgets, playback, samples, on a wide and a narrow screen."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from urllib.parse import urlparse

import pytest
from browser import Browser, browser

from genvid.api import Generator, Tokenizer

pytest.importorskip("gradio", reason="the studio needs the extra genvid[studio]")

from genvid.studio import page
from genvid.studio.video import CodedVideo

MOVE = """(() => {{ const slider = document.querySelector('#rate-{screen} input[type=range]');
slider.value = {rate}; slider.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def facts(tab: Browser, screen: str) -> list[float]:
    """Tokens, kbit/s and PSNR below a screen."""
    numbers = tab.run(f"[...document.querySelectorAll('#{screen} .facts b')].map(part => part.textContent)")
    return [float(number.replace(",", "")) for number in numbers]


def ready(screen: str, request: int) -> str:
    """All eight blocks of a screen are those of this request."""
    element = f"document.querySelector('#{screen} .screen')"
    return f"{element}?.dataset.request === '{request}' && {element}.dataset.ready === '8'"


def pixels(tab: Browser, screen: str) -> int:
    """Sum of the pixels that a screen shows."""
    found = tab.run(
        f"(() => {{ const canvas = document.querySelector('#{screen} canvas'); return canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data.reduce((sum, value) => sum + value, 0); })()"
    )
    return int(found)


def test_the_studio_in_a_browser(
    tokenizers: dict[str, Tokenizer], generators: dict[str, Generator], video: Path, tmp_path: Path
) -> None:
    built = page.build(tokenizers, generators)
    address = page.serve(built, free_port())
    try:
        with browser(tmp_path) as tab:
            tab.open(address)
            tab.until("['#video [type=file]', '#rate-a [type=range]'].every(part => document.querySelector(part))")
            tab.run(MOVE.format(screen="a", rate=30))  # without a video nothing happens
            tab.choose_file("#video input[type=file]", video)
            tab.until(ready("screen-a", 1))
            tab.until(ready("screen-b", 1))
            budgets(tab, CodedVideo(tokenizers["scored"], video))
            playback(tab)
            samples(tab)
            tab.screenshot(tmp_path / "wide.png")
            tab.open(address, width=400)
            tab.until("document.querySelector('#example')")
            tab.run("document.querySelector('#example').click()")
            tab.until("document.querySelectorAll('#screen-b .bars i').length === 32 && clock.screens.size === 3")
            assert not tab.run("document.documentElement.scrollWidth > innerWidth")
            tab.screenshot(tmp_path / "narrow.png")
            assert "Error" not in tab.run("document.body.innerText")
            assert {urlparse(url).hostname for url in tab.requests() if url.startswith("http")} == {"127.0.0.1"}
    finally:
        built.close()


def budgets(tab: Browser, coded: CodedVideo) -> None:
    """Bars, tokens and bits follow the slider, and the other screen stays."""
    before = facts(tab, "screen-b")
    for request, rate in ((2, 40), (3, 10)):
        tab.run(MOVE.format(screen="a", rate=rate))
        tab.until(ready("screen-a", request))
        clips = list({clip.number: clip for clip in coded.at(rate)}.values())
        tokens = [block.tokens for clip in clips for block in clip.blocks]
        found = facts(tab, "screen-a")
        assert found[0] == sum(tokens)
        assert found[1] == pytest.approx(sum(clip.bits for clip in clips) / 1.5 / 1000, abs=0.006)
        parts = tab.run(
            "[...document.querySelectorAll('#screen-a .bars i')].map(bar => bar.style.getPropertyValue('--part'))"
        )
        assert [8 * float(part) for part in parts] == tokens
    assert "block 3: 2 tokens" in tab.run("document.querySelectorAll('#screen-a .bars i')[2].title")
    assert facts(tab, "screen-b") == before


def playback(tab: Browser) -> None:
    """Screens play together, stop together, and show the frame under the pointer."""
    tab.run("clock.playing = true")
    start = tab.run("clock.seconds")
    tab.until(f"clock.seconds !== {start}")
    tab.run("document.querySelector('.play').click()")
    stopped = tab.run("clock.seconds")
    assert tab.run("new Promise(done => setTimeout(() => done(clock.seconds), 100))") == stopped
    assert tab.run("document.querySelector('.play').textContent") == "Play"
    shown = set()
    for seconds in (0.05, 0.75, 1.45):
        tab.run(
            f"clock.seconds = {seconds}; new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        shown.add(pixels(tab, "original"))
    assert len(shown) == 3


def samples(tab: Browser) -> None:
    """Videos of a class, and those of another model, whose conditions are others."""
    sampled(tab)
    assert tab.run("document.querySelector('#condition input').value") == "swim"
    choose(tab, "Model", "predictor")
    tab.until("document.querySelector('#condition input').value === 'the video, from the playhead on'")
    sampled(tab)


def choose(tab: Browser, label: str, option: str) -> None:
    """Another option of the dropdown of this label."""
    tab.run(f"document.querySelector('input[aria-label={label}]').focus()")
    found = f"[...document.querySelectorAll('[role=option]')].find(item => item.innerText.includes('{option}'))"
    tab.until(found)
    tab.run(f"{found}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")


def sampled(tab: Browser) -> None:
    """Four other videos than before, after a click."""
    tab.run("window.before = document.querySelector('#samples').innerHTML; document.querySelector('#sample').click()")
    tab.until(
        "document.querySelectorAll('#samples video').length === 4 && "
        "document.querySelector('#samples').innerHTML !== window.before"
    )
    tab.until("[...document.querySelectorAll('#samples video')].every(video => video.readyState >= 2)")
    assert re.fullmatch(
        r"32x32", tab.run("(v => `${v.videoWidth}x${v.videoHeight}`)(document.querySelector('#samples video'))")
    )


def test_an_empty_field_of_the_seed_is_seed_0(
    tokenizers: dict[str, Tokenizer], generators: dict[str, Generator]
) -> None:
    matched = {"classes": (generators["classes"], "scored")}
    made = [page._sample(tokenizers, matched, None, "classes", "run", 1, 1.0, 1.0, seed, 0.0) for seed in (None, 0, 1)]
    assert made[0] == made[1] != made[2]
