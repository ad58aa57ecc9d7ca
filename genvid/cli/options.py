"""Options of a verb: one frozen dataclass, from which its command line is made.

A field without a default is a positional argument, unless it is keyword-only; all others are options: `batch_size` is
`--batch-size`, `class_` is `--class`. The docstring below a field is its help, and its type decides how words are read.
Fields of a nested dataclass are options of the same verb.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import types
import typing
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from genvid import config as configuration

Options = TypeVar("Options")

_METAVARS = {int: "N", float: "X", Path: "PATH"}


def add_options(parser: argparse.ArgumentParser, options: type[Any]) -> None:
    """Add an argument for each field of a dataclass."""
    hints, helps = typing.get_type_hints(options), _docstrings(options)
    for field in fields(options):
        if is_dataclass(hints[field.name]):
            add_options(parser, hints[field.name])
        else:
            _add(parser, field, hints[field.name], helps[field.name])


def read_options(options: type[Options], arguments: argparse.Namespace) -> Options:
    """The dataclass of the arguments that were given, checked by its `__post_init__`."""
    hints, given, values = typing.get_type_hints(options), vars(arguments), dict[str, Any]()
    for field in fields(options):  # type: ignore[arg-type]
        if is_dataclass(hints[field.name]):
            values[field.name] = read_options(hints[field.name], arguments)
        elif field.name in given:
            value = given[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return options(**values)


def _add(parser: argparse.ArgumentParser, field: Field[Any], hint: Any, text: str) -> None:
    """One argument. Where it is not given it is absent from the namespace, so that defaults are stated once."""
    name, settings = field.name.strip("_").replace("_", "-"), _settings(hint)
    if field.default is MISSING and not field.kw_only:
        metavar = name.upper().rstrip("S" if "nargs" in settings else "")
        parser.add_argument(field.name, **{**settings, "metavar": metavar}, help=text, default=argparse.SUPPRESS)
        return
    if field.default not in (MISSING, None, ()) and settings.get("action") is None:
        text = f"{text.removesuffix('.')} (default: {field.default})."
    if "type" in settings and "metavar" not in settings:
        settings["metavar"] = _METAVARS.get(settings["type"], name.upper())
    required = field.default is MISSING
    parser.add_argument(
        f"--{name}", dest=field.name, required=required, help=text, default=argparse.SUPPRESS, **settings
    )


def _settings(hint: Any) -> dict[str, Any]:
    """Type of a field -> keyword arguments of `add_argument`."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType and issubclass(members[-1], configuration.Choice):
        return {"type": partial(_read_choice, hint), "metavar": f"{_METAVARS[members[0]]}|NAME"}
    if hint is bool:
        return {"action": "store_true"}
    if origin is types.UnionType:  # X | None
        return _settings(members[0])
    if origin is tuple:  # tuple[X, ...]
        return {**_settings(members[0]), "nargs": "+", "action": "extend"}
    return {"choices": members} if origin is typing.Literal else {"type": hint}


def _read_choice(hint: Any, text: str) -> Any:
    """A number, a name, or a section of a configuration in YAML."""
    try:
        return configuration.read_value(hint, text, "it")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _docstrings(options: type[Any]) -> dict[str, str]:
    """Field -> the docstring below it, with % doubled for argparse."""
    body = ast.parse(inspect.getsource(options)).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(str(below.value.value)).replace("%", "%%")
        for field, below in pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }
