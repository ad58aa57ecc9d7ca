import math
from dataclasses import dataclass, field
from typing import Literal

import pytest

from genvid import config
from genvid.config import Choice, ConfigError


@dataclass(frozen=True)
class Shape(Choice):
    pass


@Shape.register_subclass("ball")
@dataclass(frozen=True)
class Ball(Shape):
    radius: float = 1.0


@Shape.register_subclass("box")
@dataclass(frozen=True)
class Box(Shape):
    sides: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Inner:
    lr: float = 1e-4
    steps: int = 10

    def __post_init__(self) -> None:
        if 100 % self.steps:
            raise ValueError(f"steps must divide 100, got {self.steps}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")


@Shape.register_subclass("group")
@dataclass(frozen=True)
class Group(Shape):
    name: str
    members: list[Shape] = field(default_factory=list)
    note: str | None = None
    tags: tuple[str, ...] = ()
    kind: Literal["no", "yes"] = "yes"
    core: Inner | None = None


@dataclass(frozen=True)
class Run:
    train: Inner = field(default_factory=Inner)
    shape: Shape = field(default_factory=Ball)
    other: Inner | None = None


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {lr: 1e-3}\nshape: {type: box, sides: [3, 4]}\n")
    return path


def test_yaml_then_overrides(file):
    run = config.load(Run, file, ["--train.steps", "5", "--other.lr=0.5", "--shape.sides", "[5, 6]"])
    assert run == Run(Inner(1e-3, 5), Box((5, 6)), Inner(0.5))


def test_dump_and_load_are_inverse(file, tmp_path):
    run = config.load(Run, file)
    config.dump(run, tmp_path / "again.yaml")
    assert config.load(Run, tmp_path / "again.yaml") == run


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--train.step", "3"], ["'step'", "did you mean 'steps'", "valid keys of train: lr, steps"]),
        (["--trian.steps", "3"], ["'trian'", "did you mean 'train'"]),
        (["--other.lrr", "3"], ["'lrr'", "did you mean 'lr'"]),
        (["--train.steps", "many"], ["train.steps", "'many'", "int"]),
        (["--train.lr", "-1"], ["lr must be positive, got -1"]),
        (["--shape.type", "cone"], ["shape", "'cone'"]),
        (["--shape.radius", "2"], ["'radius'", "valid keys of shape: sides"]),
        (["train.steps", "3"], ["--section.key value"]),
        (["--train.steps"], ["--train.steps needs a value"]),
        (["--train", "{steps: 3"], ["--train {steps: 3 is not valid YAML"]),
        (["--shape.sides", "32"], ["shape.sides must be a list [a, b], got '32'"]),
        (["--shape.sides", "[1, 2, 3]"], ["shape.sides must be a list [a, b], got"]),
        (["--shape.sides", "[1, 2.5]"], ["shape.sides.1 must be an integer, got '2.5'"]),
        (["--shape", "7"], ["shape must hold keys and values, got '7'"]),
        (["--shape", "{sides: [1, 2]}"], ["shape.type must be one of ball, box, group, got null"]),
        (["--train.steps", "0"], ["its values cannot be combined (integer modulo by zero)"]),
        (["--other.lr", "-1"], ["run.yaml: lr must be positive, got -1"]),
        (["--shape", "{type: group, name: a, core: {lr: -1}}"], ["run.yaml: lr must be positive, got -1"]),
        (["--shape", "{type: group, name: a, core: {steps: 0}}"], ["cannot be combined"]),
        (["--train.steps", "null"], ["train.steps must be an integer, got 'null'"]),
        (["--train.steps", "true"], ["train.steps must be an integer, got 'true'"]),
        (["--train.steps", str(2**70)], ["train.steps must be an integer of 64 bits"]),
        (["--train.steps", "2024-13-45"], ["train.steps must be an integer, got '2024-13-45'"]),
        (["--train.lr", ".nan"], ["train.lr must be a number (float), got '.nan'"]),
        (["--train.lr", "1e999"], ["train.lr must be a number"]),
        (["--train.lr", "[1]"], ["train.lr must be a number"]),
        (["--other", "[1]"], ["other must hold keys and values, got ['1']"]),
        (["--shape", "{type: group, name: [a]}"], ["shape.name must be text, got ['a']"]),
        (["--shape", "{type: group, name: a, tags: b}"], ["shape.tags must be a list [a, b, ...], got 'b'"]),
        (["--shape", "{type: group, name: a, kind: maybe}"], ["shape.kind must be one of no, yes, got 'maybe'"]),
        (["--shape", "{type: group, name: a, members: {b: 1}}"], ["shape.members must be a list"]),
    ],
)
def test_an_error_is_one_sentence(file, overrides, words):
    with pytest.raises(ConfigError) as caught:
        config.load(Run, file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


WORDS = [
    "007",
    "/data/run #2",
    "on",
    "1e3",
    "null",
    "~",
    "2024-05-01",
    "12:30",
    "0x10",
    "1_000",
    "",
    "'a'",
    "{a",
    "*x",
    "a: b",
]


@pytest.mark.parametrize("word", WORDS)
def test_text_on_the_command_line_stays_as_written(file, word):
    overrides = ["--shape", "{type: group, name: a}", "--shape.name", word]
    assert config.load(Run, file, overrides).shape == Group(word)
    assert config.load(Run, file, [*overrides[:2], f"--shape.name={word}"]).shape == Group(word)
    noted = config.load(Run, file, [*overrides, "--shape.note", word]).shape
    assert noted.note == (None if word == "null" else word)


def test_text_in_lists_and_nested_choices_stays_as_written(file):
    text = "{type: group, name: 010, tags: [007, on, 2024-05-01], members: [{type: group, name: off, kind: no}]}"
    assert config.load(Run, file, ["--shape", text]).shape == Group(
        "010", [Group("off", kind="no")], tags=("007", "on", "2024-05-01")
    )


def test_text_in_files_stays_as_written_and_null_is_none(tmp_path):
    (tmp_path / "run.yaml").write_text("shape: {type: group, name: 007, note: ~, tags: [on, 'null']}\nother:\n")
    assert config.load(Run, tmp_path / "run.yaml") == Run(shape=Group("007", tags=("on", "null")), other=None)
    (tmp_path / "run.yaml").write_text("shape: {type: group, name: null}")
    with pytest.raises(ConfigError, match=r"run\.yaml: shape\.name must be text, got null"):
        config.load(Run, tmp_path / "run.yaml")


def test_numbers_keep_their_yaml_spelling(file):
    run = config.load(Run, file, ["--train.steps", "0x14", "--train.lr", "1_0e-1"])
    assert (run.train.steps, run.train.lr) == (20, 1.0)


def test_stored_numbers_may_be_infinite_and_stored_types_are_checked():
    assert config.decode(Inner, {"lr": math.inf, "steps": 5}).lr == math.inf
    for data, words in (([1, 2], "must hold keys and values"), ({"steps": None}, "got null"), ({"lr": "x"}, "number")):
        with pytest.raises(ConfigError, match=words):
            config.decode(Inner, data, source="config.json")


def test_missing_and_malformed_files(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml is not valid YAML"):
        config.load(Run, tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="no configuration file"):
        config.load(Run, tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(Run, tmp_path / "bad.yaml")


def test_the_first_difference_is_named_at_any_depth():
    held = {"a": 1, "b": {"c": 2, "d": [3]}}
    assert config.difference(held, {"b": {"d": [3], "c": 2}, "a": 1}) is None
    assert config.difference(held, {"a": 1, "b": {"c": 2, "d": [4]}}) == "b.d is [3] there, [4] here"
    assert config.difference(held, {"a": 1, "b": {"c": 2}}) == "b.d is [3] there, None here"
    assert config.difference(held, {"a": 1, "b": 5}) == "b is {'c': 2, 'd': [3]} there, 5 here"
