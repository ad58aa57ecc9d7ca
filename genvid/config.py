"""Configuration: frozen dataclasses <- YAML <- dotted command line, parsed by draccus, errors in one sentence.

A config is a dataclass beside the class it configures. A choice between several (`quantizer: {type: fsq, ...}`) is a
`Choice` with registered subclasses. The type of a field determines the meaning of an unquoted word: where it is text,
`007`, `on` and `2024-05-01` are text (genvid.values).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import draccus
import yaml
from draccus import ChoiceRegistry as Choice
from draccus.utils import DecodingError, ParsingError

from genvid.files import write_text
from genvid.values import ConfigError, Loader, Word, parse_word, typed

__all__ = [
    "Choice",
    "ConfigError",
    "check_counts",
    "decode",
    "difference",
    "dotted",
    "dump",
    "encode",
    "load",
    "parse",
    "read",
    "read_json",
    "read_value",
]

T = TypeVar("T")


def decode(cls: type[T], data: dict[str, Any], *, source: str = "the configuration") -> T:
    """A dict as read from YAML or JSON -> an instance of the dataclass `cls`; ConfigError in words otherwise."""
    try:
        data = typed(cls, data)
        return typing.cast(T, draccus.decode(cls, data))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except ParsingError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ArithmeticError):
            raise ConfigError(f"{source}: its values cannot be combined ({cause})") from None
        if not isinstance(cause, DecodingError):  # raised by __post_init__
            raise ConfigError(f"{source}: {cause}") from None
        lines = str(cause).replace("`", "'").splitlines()
        message = " ".join(line.strip() for line in lines if line.strip(" -"))
        raise ConfigError(f"{source}: {message}{_advice(cls, data)}") from None
    except ArithmeticError as error:
        raise ConfigError(f"{source}: its values cannot be combined ({error})") from None


def encode(config: Any) -> dict[str, Any]:
    """The inverse of `decode`: plain dicts, lists and scalars."""
    return typing.cast(dict[str, Any], draccus.encode(config))


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """A YAML file and dotted overrides (`--train.steps 10` or `--train.steps=10`) -> a config of type `cls`."""
    return decode(cls, read(path, overrides), source=str(path))


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The input of `load`: keys and values of a YAML file, overridden. Unquoted values are `Word`s."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no configuration file {file}")
    try:
        data = yaml.load(file.read_bytes(), Loader) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file} must hold keys and values, not a {type(data).__name__}")
    for key, value in _pairs(overrides):
        _set(data, key, value)
    return data


def read_json(file: Path) -> dict[str, Any]:
    """The keys and values of a JSON file that genvid or another program wrote; ConfigError when it is not valid."""
    try:
        data = json.loads(file.read_text())
    except ValueError as error:  # JSONDecodeError, or bytes that are not UTF-8
        raise ConfigError(f"{file} is not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file} must hold keys and values, not a {type(data).__name__}")
    return data


def read_value(hint: Any, text: str, name: str) -> Any:
    """A value as written on a command line -> a value of a type; ConfigError in words."""
    return draccus.decode(hint, typed(hint, Word(text), name))


def parse(cls: type[T], argv: Sequence[str], *, usage: str) -> T:
    """`[CONFIG.yaml, --key value, ...]` as a recipe receives it -> a config."""
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"usage: {usage}")
    return load(cls, argv[0], argv[1:])


def check_counts(config: Any, *names: str, section: str = "") -> None:
    """ValueError unless these fields of a config are at least 1 or None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{section}{name} must be at least 1, got {value}")


def dump(config: Any, path: str | Path) -> None:
    """Write a config as YAML that `load` reads back to an equal one (as JSON when `path` ends in .json)."""
    path = Path(path)
    data = encode(config)
    text = json.dumps(data, indent=2) + "\n" if path.suffix == ".json" else yaml.safe_dump(data, sort_keys=False)
    write_text(path, text)


def dotted(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys -> dotted names of the values that are no sections."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def difference(held: Any, wanted: Any, name: str = "") -> str | None:
    """The first key, at any depth, in which two encoded configs differ, with both values; None: they are equal."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        deeper = (difference(held.get(key), wanted.get(key), f"{name}.{key}".lstrip(".")) for key in {**held, **wanted})
        return next((found for found in deeper if found), None)
    return None if held == wanted else f"{name} is {held} there, {wanted} here"


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Word]]:
    pairs, words = [], list(overrides)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"expected --section.key value, got '{word}'")
        key, separator, value = word[2:].partition("=")
        if not separator:
            if not words:
                raise ConfigError(f"--{key} needs a value")
            value = words.pop(0)
        pairs.append((key, Word(value)))
    return pairs


def _set(data: dict[str, Any], dotted: str, value: Word) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        child = data.get(parent)
        if isinstance(child, Word):  # an earlier override gave the whole section
            child = parse_word(child, parent)
        data[parent] = child = child if isinstance(child, dict) else {}
        data = child
    data[last] = value


def _advice(cls: Any, data: Any, path: str = "") -> str:
    """The valid keys beside the first unknown one, at any depth."""
    cls = _dataclass_of(cls, data)
    if cls is None or not isinstance(data, dict):
        return ""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key, value in data.items():
        if key == "type" and issubclass(cls, Choice):
            continue
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            meant = f"; did you mean '{near[0]}'?" if near else ""
            return f"{meant} (valid {f'keys of {path}' if path else 'keys'}: {', '.join(names)})"
        deeper = _advice(hints[key], value, f"{path}.{key}".lstrip("."))
        if deeper:
            return deeper
    return ""


def _dataclass_of(cls: Any, data: Any) -> type | None:
    if typing.get_origin(cls) in (typing.Union, types.UnionType):
        members = [m for m in typing.get_args(cls) if dataclasses.is_dataclass(m)]
        cls = members[0] if len(members) == 1 else None
    if isinstance(cls, type) and issubclass(cls, Choice) and isinstance(data, dict):
        cls = typing.cast(Any, cls).get_known_choices().get(data.get("type"))
    return cls if isinstance(cls, type) and dataclasses.is_dataclass(cls) else None
