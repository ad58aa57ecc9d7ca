"""Imported as `genvid.tokenizer`; see package-dir in pyproject.toml.

Adaptive video tokenizers: each is a `genvid.tokens.VideoTokenizer`.
"""

if __name__ != "genvid.tokenizer":
    raise ImportError("tokenizer/ is the package genvid.tokenizer: pip install -e . and import that")
