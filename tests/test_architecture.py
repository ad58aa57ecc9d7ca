"""Who may import whom (docs/architecture.md), read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = {"tokens", "config", "values", "noise", "files", "provenance", "pieces", "checkpoint"}
SUPPORT = {"data", "allocation", "train", "perceptual"}
MAY_IMPORT = {
    **dict.fromkeys(CORE, CORE),
    **{name: CORE | {name} for name in SUPPORT},
    "ar": CORE | {"train", "ar"},
    "generation": CORE | {"ar", "generation", "allocation", "data"},
    "tokenizer": CORE | SUPPORT | {"tokenizer"},
    "eval": CORE | {"data", "allocation", "perceptual", "eval"},
}
ONLY_IN = {
    "pulp": {"allocation"},
    "av": {"data"},
    "PIL": {"data"},
    "datasets": {"data", "tokens"},
    "accelerate": {"train", "recipes", "cli"},
    "torchmetrics": {"eval", "perceptual"},
    "transformers": {"ar", "generation", "eval"},
    "draccus": {"config"},
}
FORBIDDEN = {"torchvision", "timm", "lpips", "scipy", "sklearn", "deepspeed"}
SOURCES = [
    source
    for top in ("genvid", "tokenizer", "eval", "recipes")
    for source in sorted((ROOT / top).rglob("*.py"))
    if "__pycache__" not in source.parts
]


def _area(source: Path) -> str:
    first, *rest = source.relative_to(ROOT).parts
    return rest[0].removesuffix(".py") if first == "genvid" else first


def _imports(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            yield f"{node.module}.{node.names[0].name}" if node.module == "genvid" else str(node.module)


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: str(s.relative_to(ROOT)))
def test_imports_follow_the_design(source):
    area = _area(source)
    for module in _imports(source):
        top, *rest = module.split(".")
        assert top not in FORBIDDEN, f"{source} imports {top}"
        if top in ONLY_IN:
            assert area in ONLY_IN[top], f"{source} imports {top}, which belongs in {sorted(ONLY_IN[top])}"
        if top == "genvid" and rest and area in MAY_IMPORT and rest[0] != "__version__":
            assert rest[0] in MAY_IMPORT[area], f"{source} ({area}) may not import genvid.{rest[0]}"


def test_no_script_shadows_a_module_it_needs():
    import sys

    taken = set(sys.stdlib_module_names) | {"datasets", "torch", "accelerate", "tokenizer", "genvid"}
    assert not [s for s in (ROOT / "recipes").glob("*.py") if s.stem in taken]
