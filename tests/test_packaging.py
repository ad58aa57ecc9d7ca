"""The package list, the mapped folders and the shipped files, checked in the tree and in a built wheel."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPING = PROJECT["tool"]["setuptools"]["package-dir"]
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]

STAND_IN = [
    f"genvid/models/stand-in/{file}"
    for file in ("README.md", "config.json", "model.safetensors", "scorer/config.json", "scorer/model.safetensors")
]
"""Files of a model that is installed with genvid."""


def _folder(package: str) -> Path:
    for name in sorted(MAPPING, key=len, reverse=True):
        if package == name or package.startswith(name + "."):
            return ROOT / MAPPING[name] / package[len(name) :].strip(".").replace(".", "/")
    raise AssertionError(package)


def test_every_folder_with_an_init_is_listed():
    found = {
        init.parent
        for top in set(MAPPING.values())
        for init in (ROOT / top).rglob("__init__.py")
        if "__pycache__" not in init.parts
    }
    assert {_folder(package) for package in PACKAGES} == found


@pytest.mark.parametrize("name", ["tokenizer", "eval", "recipes"])
def test_the_bare_import_of_a_mapped_folder_is_refused(name):
    run = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"genvid.{name}" in run.stderr


def test_the_wheel_holds_every_module_and_recipe_and_imports_elsewhere(tmp_path):
    build = [sys.executable, "-c", "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"]
    copy = tmp_path / "source"
    ignore = [".git", ".venv", "build", "demo", "runs", "__pycache__", ".mypy_cache", ".whl", ".shared"]
    subprocess.run(
        ["tar", "-cf", str(tmp_path / "source.tar"), *(f"--exclude=./{name}" for name in ignore), "."],
        cwd=ROOT,
        check=True,
    )
    copy.mkdir()
    subprocess.run(["tar", "-xf", str(tmp_path / "source.tar")], cwd=copy, check=True)
    for file in STAND_IN:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).touch()
    subprocess.run([*build, str(tmp_path)], cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        for source in _folder(package).glob("*.py"):
            assert f"{package.replace('.', '/')}/{source.name}" in names
    for recipe in (ROOT / "recipes" / "configs").rglob("*.yaml"):
        assert f"genvid/{recipe.relative_to(ROOT)}" in names
    assert names.issuperset(STAND_IN)
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    program = f"import sys; sys.path.insert(0, {str(site)!r}); import " + ", ".join(package for package in PACKAGES)
    program += "; import genvid.checkpoint; genvid.checkpoint.resolve('stand-in/scorer')"
    program += f"; assert genvid.__file__.startswith({str(site)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
