"""Which module may import which (docs/architecture.md), read from the sources: imports inside functions count too."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = {
    "tokens",
    "replay",
    "precision",
    "config",
    "values",
    "noise",
    "files",
    "provenance",
    "pieces",
    "checkpoint",
    "frozen",
    "batch",
    "hardware",
}
SUPPORT = {"data", "allocation", "train", "perceptual"}
LIBRARY = CORE | SUPPORT | {"ar", "generation", "tokenizer", "eval", "device", "command"}
MAY_IMPORT = {
    **dict.fromkeys(CORE, CORE),
    **{name: CORE | {name} for name in SUPPORT},
    "device": set(),
    "command": set(),
    "ar": CORE | {"train", "ar"},
    "generation": CORE | {"ar", "generation", "allocation", "data"},
    "tokenizer": CORE | SUPPORT | {"tokenizer"},
    "eval": CORE | {"data", "allocation", "perceptual", "eval"},
    "api": LIBRARY,
    "": {"api"},  # genvid.load
    "studio": LIBRARY | {"api", "studio"},
    "cli": LIBRARY | {"api", "studio", "cli"},
    "recipes": LIBRARY | {"api", "recipes"},
}
ONLY_IN = {
    "pulp": {"allocation"},
    "av": {"data"},
    "PIL": {"data"},
    "datasets": {"data", "tokens"},
    "accelerate": {"train", "recipes"},
    "torchmetrics": {"eval", "perceptual"},
    "transformers": {"ar", "generation", "eval", "tokenizer"},
    "draccus": {"config"},
    "gradio": {"studio"},
    "constriction": {"tokens"},
}
FORBIDDEN = {"torchvision", "timm", "lpips", "scipy", "sklearn", "deepspeed"}


def _module(source: Path) -> str:
    """The name that a source is imported under."""
    name = ".".join(source.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name if source.is_relative_to(ROOT / "genvid") else f"genvid.{name}"


SOURCES = {
    _module(source): ast.parse(source.read_text(), str(source))
    for top in ("genvid", "tokenizer", "eval", "recipes")
    for source in sorted((ROOT / top).rglob("*.py"))
}
"""Module -> its syntax tree."""


def _imports(module: str) -> Iterator[str]:
    """Modules that a module imports, one for each imported name: `from genvid import a, b` is genvid.a and genvid.b."""
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in SOURCES else str(node.module) for name in names)


def _area(module: str) -> str:
    """genvid.data.clips -> data."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", SOURCES)
def test_imports_follow_the_design(module):
    area = _area(module)
    for imported in _imports(module):
        top = imported.partition(".")[0]
        assert top not in FORBIDDEN, f"{module} imports {top}"
        if top in ONLY_IN:
            assert area in ONLY_IN[top], f"{module} imports {top}, which belongs in {sorted(ONLY_IN[top])}"
        if top == "genvid" and imported != "genvid":  # the package itself holds the version alone
            assert _area(imported) in MAY_IMPORT[area], f"{module} may not import {imported}"


def test_imports_form_no_circle():
    try:
        TopologicalSorter({module: set(_imports(module)) & set(SOURCES) for module in SOURCES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", [name for name in SOURCES if _area(name) in ("cli", "generation")])
def test_models_are_used_by_their_contract(module):
    """No `isinstance` of a model class: a subclass of genvid.checkpoint.Model, by its name."""
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            named = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            assert not named & MODELS, f"{module}, line {node.lineno}: isinstance of {sorted(named & MODELS)}"


def _models() -> set[str]:
    """Names of genvid.checkpoint.Model and of all classes below it."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"Model"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


MODELS = _models()


def test_no_script_shadows_a_module_it_needs():
    taken = set(sys.stdlib_module_names) | {"datasets", "torch", "accelerate", "tokenizer", "genvid"}
    assert not [script for script in (ROOT / "recipes").glob("*.py") if script.stem in taken]
