"""Imported as `genvid.eval`; see package-dir in pyproject.toml.

Metrics, feature networks, protocols and reports.
"""

if __name__ != "genvid.eval":
    raise ImportError("eval/ is the package genvid.eval: pip install -e . and import that")
