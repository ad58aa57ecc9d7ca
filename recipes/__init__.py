"""Imported as `genvid.recipes`; see package-dir in pyproject.toml.

One script per verb; the only place where tokenizers, generators and metrics meet.
"""

if __name__ != "genvid.recipes":
    raise ImportError("recipes/ is the package genvid.recipes: pip install -e . and import that")
