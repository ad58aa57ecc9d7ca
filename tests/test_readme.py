"""What the README tells people to paste runs."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_every_path_it_names_exists():
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    for script in re.findall(r"recipes/\w+\.py", text):
        assert (ROOT / script).exists(), script
