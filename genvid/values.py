"""Values of a configuration by the type of their field, before draccus makes dataclasses of them.

YAML infers from the spelling whether an unquoted word is a number, a date or text, and draccus converts every value to
the type of the field: the path `007` becomes `7`, `on` becomes `True`, a missing number `None`. Here words stay as
written until they meet the type of their field, and any other value must have that type already.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, cast

import yaml

_INT64 = range(-(2**63), 2**63)


class ConfigError(ValueError):
    """A configuration that cannot be used."""


class Word(str):
    """A value as written in a file or on a command line, without quotes."""

    __slots__ = ()


class Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML whose unquoted values stay `Word`s, but for null."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.style is None and not node.tag.endswith(":null"):
            return Word(node.value)
        return super().construct_object(node, deep)


def parse_word(word: Word, path: str) -> Any:
    """A word parsed as YAML, with `Word`s inside; ConfigError where it is not valid YAML."""
    try:
        return yaml.load(word, Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--{path} {word} is not valid YAML: {' '.join(str(error).split())}") from None


def typed(cls: Any, value: Any, path: str = "") -> Any:
    """The plain dicts, lists and scalars that `cls` is made of; ConfigError names the field that has another type."""
    origin, arguments = typing.get_origin(cls), typing.get_args(cls)
    if origin in (typing.Union, types.UnionType):
        return _optional([member for member in arguments if member is not types.NoneType], value, path)
    if origin is typing.Literal:
        return _literal(arguments, value, path)
    if origin in (list, tuple):
        return _sequence(origin, arguments, value, path)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: typed(arguments[1], item, f"{path}.{key}") for key, item in _section(value, path).items()}
    if dataclasses.is_dataclass(cls) or hasattr(cls, "get_known_choices"):
        return _fields(cls, _section(value, path), path)
    if cls in _SCALARS:
        return _SCALARS[cls](value, path)
    return _spelled(value) if isinstance(value, Word) else value


def _fields(cls: Any, data: dict[str, Any], path: str) -> dict[str, Any]:
    """The values of a section. Keys that `cls` lacks are kept, and draccus refuses them."""
    hints = {}
    if hasattr(cls, "get_known_choices") and cls not in cls.get_known_choices().values():
        choices = cls.get_known_choices()
        hints["type"] = typing.Literal[tuple(choices)]
        cls = choices[typed(hints["type"], data.get("type"), f"{path}.type".lstrip("."))]
    hints |= typing.get_type_hints(cls)
    return {
        key: typed(hints[key], value, f"{path}.{key}".lstrip(".")) if key in hints else value
        for key, value in _current(cls, data, path).items()
    }


def _current(cls: Any, data: dict[str, Any], path: str) -> dict[str, Any]:
    """Keys of older versions (`RENAMED` of a config: old name -> new name) under their new names, and those that older
    versions lacked with the values that they imply (`IMPLIED`)."""
    renamed: Mapping[str, str] = getattr(cls, "RENAMED", {})
    for old, new in renamed.items():
        if old in data and new in data:
            both = " and ".join(f"{path}.{key}".lstrip(".") for key in (old, new))
            raise ConfigError(f"{both} are one key: {old} is now called {new}, remove {old}")
    implied: Mapping[str, Any] = getattr(cls, "IMPLIED", {})
    return {**implied, **{renamed.get(key, key): value for key, value in data.items()}}


def _section(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, Word):
        value = parse_word(value, path)
    if not isinstance(value, Mapping):
        raise _wrong(path, "hold keys and values", value)
    return dict(value)


def _optional(members: list[Any], value: Any, path: str) -> Any:
    """None, or a value of the one other type. On a command line text is None where it is the word null."""
    if hasattr(members[-1], "get_known_choices") and len(members) == 2:
        return _scalar_or_choice(members[0], members[1], value, path)
    if value is None:
        return None
    if isinstance(value, Word) and (value == "null" if members == [str] else parse_word(value, path) is None):
        return None
    return typed(members[0], value, path)


def _scalar_or_choice(scalar: type, choice: Any, value: Any, path: str) -> Any:
    """A scalar, the section of a choice, or the name of one, which has its defaults."""
    try:
        return typed(scalar, value, path)
    except ConfigError:
        names = tuple(choice.get_known_choices())
    if value in names:
        return {"type": str(value)}
    if isinstance(value, Word):
        value = parse_word(value, path)
    if not isinstance(value, Mapping):
        raise _wrong(path, f"be a {scalar.__name__} or one of {', '.join(names)}", value)
    section: dict[str, Any] = typed(choice, value, path)
    keys = ["type", *(field.name for field in dataclasses.fields(choice.get_known_choices()[section["type"]]))]
    for key in section:
        if key not in keys:  # draccus would report that the section is no scalar
            raise ConfigError(f"{path} {section['type']} has no key '{key}' (valid keys: {', '.join(keys)})")
    return section


def _literal(allowed: tuple[Any, ...], value: Any, path: str) -> Any:
    if value in allowed:
        return str(value) if isinstance(value, Word) else value
    raise _wrong(path, f"be one of {', '.join(map(str, allowed))}", value)


def _sequence(kind: type, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if isinstance(value, Word):
        value = parse_word(value, path)
    count = None if kind is list or Ellipsis in arguments else len(arguments)
    if not isinstance(value, (list, tuple)) or count not in (None, len(value)):
        example = f"[{', '.join('abcdef'[: count or 2])}{'' if count else ', ...'}]"
        raise _wrong(path, f"be a list {example}", value)
    members = arguments if count else [arguments[0]] * len(value)
    return [typed(member, item, f"{path}.{i}") for i, (member, item) in enumerate(zip(members, value, strict=True))]


def _spelled(value: Any) -> Any:
    """The number, truth value or date that YAML reads in text; any other value as it is."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError):
        return value


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _wrong(path, "be text", value)
    return str(value)


def _bool(value: Any, path: str) -> bool:
    found = _spelled(value)
    if not isinstance(found, bool):
        raise _wrong(path, "be true or false", value)
    return found


def _int(value: Any, path: str) -> int:
    found = _spelled(value)
    if not isinstance(found, int) or isinstance(found, bool):
        raise _wrong(path, "be an integer", value)
    if found not in _INT64:
        raise _wrong(path, "be an integer of 64 bits", value)
    return found


def _float(value: Any, path: str) -> float:
    """A number. In text it must be finite; stored results may be infinite."""
    found = _spelled(value)
    try:
        number = float(cast(Any, found))  # YAML takes 1e-3 for text
    except (TypeError, ValueError, OverflowError):
        raise _wrong(path, "be a number (float)", value) from None
    if isinstance(found, bool) or (isinstance(value, str) and not math.isfinite(number)):
        raise _wrong(path, "be a number (float)", value)
    return number


_SCALARS: dict[Any, Callable[[Any, str], Any]] = {str: _text, bool: _bool, int: _int, float: _float}


def _wrong(path: str, wanted: str, value: Any) -> ConfigError:
    got = "null" if value is None else repr(str(value) if isinstance(value, Word) else value)
    return ConfigError(f"{path} must {wanted}, got {textwrap.shorten(got, 120)}".lstrip())
