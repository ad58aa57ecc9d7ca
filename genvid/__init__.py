"""genvid: generative video modelling on adaptive tokens.

tokenizer = genvid.load("folder or hub id")  # see genvid.api
tokens = tokenizer.encode(video, tokens=256)
video = tokenizer.decode(tokens)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genvid.api import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load`, imported at its first use, because parts of genvid work without its dependencies."""
    if name != "load":
        raise AttributeError(f"module 'genvid' has no attribute {name!r}")
    import genvid.api

    return genvid.api.load
