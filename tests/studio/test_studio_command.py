"""`genvid studio`: bad options are one sentence, before the page."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from genvid.cli.studio import StudioOptions, studio


def test_options_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="one scorer for each tokenizer, got 1 for 2"):
        StudioOptions(tokenizer=("a", "b"), scorer=("c",))
    with pytest.raises(ValueError, match="1 to 65535, got 0"):
        StudioOptions(tokenizer=("a",), port=0)


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'genvid\[studio\]'"):
        studio(StudioOptions(tokenizer=("a",)))


def test_a_port_that_is_taken(models: Path) -> None:
    pytest.importorskip("gradio", reason="the studio needs the extra genvid[studio]")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} is taken by another program: .*--port"):
            studio(StudioOptions(tokenizer=(str(models / "plain"),), port=port))


def test_models_that_do_not_fit(models: Path) -> None:
    pytest.importorskip("gradio", reason="the studio needs the extra genvid[studio]")
    with pytest.raises(ValueError, match="holds no tokenizer but a generator"):
        studio(StudioOptions(tokenizer=(str(models / "classes"),)))
    with pytest.raises(ValueError, match="other fits none of the tokenizers"):
        studio(StudioOptions(tokenizer=(str(models / "scored"),), model=(str(models / "other"),)))
