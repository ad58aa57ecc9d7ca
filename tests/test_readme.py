"""Pages for readers: every command, path and link that they name exists, and no line is longer than 120 characters."""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser

from genvid import cli, config

ROOT = Path(__file__).resolve().parents[1]
FIRST = ("README.md", "CONTRIBUTING.md", "recipes/README.md", "integrations/vllm/README.md")
PAGES = [*(ROOT / name for name in FIRST), *sorted(ROOT.glob("docs/**/*.md"))]
NAMED = {str(page.relative_to(ROOT)): page for page in PAGES}
RECORD = r"""command_not_found_handle() { printf -v words '%s\037' "$@"; printf '%s\036' "$words" >> record; }
"""
"""Bash writes each command that it would start to the file `record`: words end in \037, commands in \036. It does so at
once, since both ends of a pipe write at the same time."""

every_page = pytest.mark.parametrize("page", NAMED.values(), ids=NAMED)


class Parsed(BaseException):
    """The arguments of an entry point were valid; its work is not begun."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points end with `Parsed` once their arguments, or their configuration, have been read."""

    def and_stop(parse: Callable[..., Any]) -> Callable[..., Any]:
        def parse_and_stop(*arguments: Any, **options: Any) -> Any:
            parse(*arguments, **options)
            raise Parsed

        return parse_and_stop

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", and_stop(argparse.ArgumentParser.parse_args))
    monkeypatch.setattr(config, "decode", and_stop(config.decode))
    monkeypatch.chdir(ROOT)


def fences(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def started(script: str, folder: Path) -> list[list[str]]:
    """The commands of a shell script as bash would start them, variables expanded. None is started."""
    (folder / "record").write_text("")
    bash = shutil.which("bash")
    assert bash
    subprocess.run([bash, "-c", RECORD + script], cwd=folder, env={"PATH": "/nonexistent"}, timeout=60, check=False)
    commands = (folder / "record").read_text().split("\036")[:-1]
    return [words.split("\037")[:-1] for words in commands]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a command in this process, as the shell would in one of its own."""
    program, *arguments = [word for word in words if word != "..."]
    if program == "accelerate":
        launch, _ = launch_command_parser().parse_known_args(arguments[1:])
        assert launch.config_file is None or Path(launch.config_file).is_file(), launch.config_file
        program, arguments = launch.training_script, launch.training_script_args
    elif program == "python":
        program, *arguments = arguments
    if program in ("genvid", "genvid.cli"):
        cli.main(arguments)
    elif program.startswith("recipes/"):
        importlib.import_module(f"genvid.recipes.{Path(program).stem}").main(arguments)
    elif program.startswith("benchmarks/"):
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        monkeypatch.syspath_prepend("benchmarks")
        runpy.run_path(program, run_name="__main__")
    elif program == "make":
        targets = re.findall(r"^(\w+):", Path("Makefile").read_text(), flags=re.M)
        assert {word for word in arguments if "=" not in word} <= set(targets), words
    elif program == "pip":
        assert arguments[0] == "install", words
    else:
        assert program in ("srun", "scontrol", "head", "vllm"), f"{words}: not a program that a page may name"


@pytest.mark.usefixtures("parse_only")
@every_page
def test_commands_are_accepted_by_their_programs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for language, text in fences(page):
        if language != "bash":
            assert not re.search(r"^(genvid|python|accelerate) ", text, flags=re.M), f"not marked as bash: {text}"
            continue
        for words in started(text, tmp_path):
            if words[0] in ("genvid", "accelerate") and words[-1] == "...":
                continue  # the beginning of a command
            try:
                run(words, monkeypatch)
            except Parsed:
                pass
            except SystemExit:
                pytest.fail(f"{' '.join(words)}: {capsys.readouterr().err}")


@every_page
def test_verbs_and_options_in_the_text_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`genvid VERB ... --option` in the text, where it need not be a complete command."""
    for verb, rest in re.findall(r"`genvid (\w+)([^`]*)`", page.read_text()):
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, "--help"])
        usage = capsys.readouterr().out
        assert ended.value.code == 0, f"genvid {verb}: no such verb"
        assert set(re.findall(r"--[\w-]+", rest)) <= set(re.findall(r"--[\w-]+", usage)), f"genvid {verb}{rest}"


@every_page
def test_files_that_a_page_names_exist(page: Path) -> None:
    """In backticks or in a shell block: `recipes/train.py`, `k600/ar.yaml`, `page.py`; not `FILE.yaml` or `*.py`."""
    text = page.read_text()
    files = [str(file) for folder in (ROOT, ROOT / "docs") for file in folder.glob("*.*")]
    for folder in ("genvid", "tokenizer", "eval", "recipes", "tests", "benchmarks", "docs"):
        files += map(str, (ROOT / folder).rglob("*.*"))
    spans = " ".join(re.findall(r"`[^`\n]+`", text) + [block for _, block in fences(page)])
    for named in re.findall(r"(?<![\w$*./-])[a-z][\w/]*\.(?:py|yaml|sh)\b", spans):
        if not named.endswith("config.yaml"):  # of a run
            assert any(file.endswith(f"/{named}") for file in files), named
    for named in re.findall(r"`((?:genvid|tokenizer|eval|recipes|tests|benchmarks|docs)/[\w/]*)`", text):
        assert (ROOT / named).exists(), named


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.M)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{target}#{anchor}"


@every_page
def test_lines_have_at_most_120_characters(page: Path) -> None:
    long = [line for line in page.read_text().splitlines() if len(line) > 120 and "](http" not in line]
    assert not long, f"{len(long)} lines, the first: {long[0]}"


def test_the_tree_of_the_readme_lists_every_file() -> None:
    """Files of the packages and the benchmarks, without configurations of recipes, `__init__.py` and `py.typed`."""
    tree = next(text for language, text in fences(NAMED["README.md"]) if not language and text.startswith("genvid/"))
    folders: list[str] = []
    listed = set()
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        listed.add("".join(folders[: depth + 1]))
    assert not [path for path in listed if not (ROOT / path).exists()]
    packages = [ROOT / name for name in ("genvid", "tokenizer", "eval", "recipes", "benchmarks")]
    files = {str(file.relative_to(ROOT)) for package in packages for file in package.rglob("*.*") if file.is_file()}
    left_out = ("__init__.py", "py.typed", ".pyc")
    missing = [f for f in files - listed if not f.endswith(left_out) and not f.startswith("recipes/configs/")]
    assert not missing, f"add a line to the tree in README.md for {sorted(missing)}"
