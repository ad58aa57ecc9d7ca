"""Milliseconds from a moved slider of the studio to the first new picture on the screen, in headless Chromium.

python benchmarks/studio.py [--tokenizer FOLDER]

Without a folder the tokenizer has random weights in the size of `genvid-tiny`. Beside it: the time without the page,
from the budget to the first decoded block.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

import genvid
from genvid import config
from genvid.data import EXAMPLE_VIDEO
from genvid.studio import page
from genvid.studio.video import CodedVideo
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.layers import StackConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import browser  # noqa: E402

PORT = 7899
SHARES = (0.1, 0.6, 0.3, 0.8, 0.2, 0.5, 0.9, 0.4, 0.7, 0.15)
"""Of the largest budget: positions of the slider."""
MOVED = """new Promise(done => {{ const slider = document.querySelector('#rate-a input[type=range]');
const request = () => document.querySelector('#screen-a .screen').dataset.request, before = request();
const start = performance.now(), look = () => request() === before ? requestAnimationFrame(look)
  : done(performance.now() - start);
slider.value = {rate}; slider.dispatchEvent(new Event('input', {{bubbles: true}})); look(); }})"""


def random_tokenizer(folder: Path) -> Path:
    """The sizes of recipes/configs/tiny, with a scorer."""
    recipes = ROOT / "recipes/configs/tiny"
    sizes = config.decode(AdapTokConfig, yaml.safe_load((recipes / "tokenizer.yaml").read_text())["model"])
    scorer = yaml.safe_load((recipes / "scorer.yaml").read_text())
    torch.manual_seed(0)
    AdapTok(sizes).save(folder)
    network, lengths = StackConfig(**scorer["model"]), tuple(scorer["sizes"])
    Scorer(ScorerConfig.for_tokenizer(sizes, network, sizes=lengths, metric="x", gains=True)).save(folder / "scorer")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = genvid.load(options.tokenizer or random_tokenizer(Path(folder) / "tokenizer"))
        assert isinstance(tokenizer, genvid.api.Tokenizer)
        coded = CodedVideo(tokenizer, EXAMPLE_VIDEO)
        list(coded.at(coded.rates[1]))
        alone = []
        for share in SHARES:
            start = time.perf_counter()
            next(coded.at(share * coded.rates[1]))
            alone.append(1000 * (time.perf_counter() - start))
        address = page.serve(page.build({"tokenizer": tokenizer}, {}), PORT)
        with browser(Path(folder)) as tab:
            tab.open(address)
            tab.until("document.querySelector('#example')")
            tab.run("document.querySelector('#example').click()")
            complete = "document.querySelector('#screen-{0} .screen')?.dataset.ready === '16'"
            tab.until(f"{complete.format('a')} && {complete.format('b')}")
            shown = []
            for share in SHARES:
                shown.append(tab.run(MOVED.format(rate=round(share * coded.rates[1]))))
                tab.until(complete.format("a"))
        print(f"first block decoded: median {statistics.median(alone):.0f} ms, most {max(alone):.0f} ms")
        print(f"first picture shown: median {statistics.median(shown):.0f} ms, most {max(shown):.0f} ms")


if __name__ == "__main__":
    main()
