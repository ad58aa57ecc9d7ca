"""`genvid studio`: a page to try a tokenizer on one's own videos."""

from __future__ import annotations

import importlib.util
from dataclasses import KW_ONLY, dataclass

from genvid.api import Generator, Tokenizer
from genvid.checkpoint import without_export
from genvid.cli.coding import DEFAULT_TOKENIZER, load_as


@dataclass(frozen=True)
class StudioOptions:
    """Options of `studio`."""

    _: KW_ONLY
    tokenizer: tuple[str, ...] = (DEFAULT_TOKENIZER,)
    """Tokenizers: model folders, Hub ids or names of models that are installed with genvid."""
    scorer: tuple[str, ...] = ()
    """Their scorers, in the same order (by default those in the folder `scorer` of each tokenizer)."""
    model: tuple[str, ...] = ()
    """Autoregressive models of these tokenizers, for samples: model folders or Hub ids."""
    port: int = 7860
    """Port on this machine."""

    def __post_init__(self) -> None:
        if self.scorer and len(self.scorer) != len(self.tokenizer):
            got = f"{len(self.scorer)} for {len(self.tokenizer)} tokenizers"
            raise ValueError(f"--scorer takes one scorer for each tokenizer, got {got}")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"--port is a number from 1 to 65535, got {self.port}")


def studio(options: StudioOptions) -> None:
    """Serve a page that shows a video at any token budget, with its tokens, and samples of models.

    The page is for browsers on this machine, and no file leaves it.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the studio needs the optional extra `studio`: pip install 'genvid[studio]'")
    from genvid.studio import page

    scorers = options.scorer or [None] * len(options.tokenizer)
    tokenizers = {
        str(without_export(source)): load_as(Tokenizer, source, scorer)
        for source, scorer in zip(options.tokenizer, scorers, strict=True)
    }
    generators = {str(without_export(source)): load_as(Generator, source) for source in options.model}
    built = page.build(tokenizers, generators)
    print(f"{page.serve(built, options.port)} (end with Ctrl+C)", flush=True)
    built.block_thread()
