"""Imported as `genvid.tokenizer`; see package-dir in pyproject.toml.

Adaptive video tokenizers: each is a `genvid.tokens.VideoTokenizer`.
"""

from pathlib import Path

if __name__ != "genvid.tokenizer":
    raise ImportError("tokenizer/ is the package genvid.tokenizer: pip install -e . and import that")

from genvid.checkpoint import CheckpointError, load_model
from genvid.tokens import VideoTokenizer


def load_tokenizer(source: str | Path) -> VideoTokenizer:
    """A model folder or a Hugging Face Hub id -> the tokenizer in it, in eval mode."""
    model = load_model(source)
    if not isinstance(model, VideoTokenizer):
        raise CheckpointError(f"{source} holds a {model.model_type} model, which is not a tokenizer")
    return model
