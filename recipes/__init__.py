"""Imported as `genvid.recipes`; see package-dir in pyproject.toml.

One script per verb. Recipes, like the commands of genvid.cli, combine tokenizers, generators and metrics.
"""

if __name__ != "genvid.recipes":
    raise ImportError("recipes/ is the package genvid.recipes: pip install -e . and import that")
