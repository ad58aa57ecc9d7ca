from dataclasses import dataclass, field

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
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")


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
    run = config.load(Run, file, ["--train.steps", "7", "--other.lr=0.5", "--shape.sides", "[5, 6]"])
    assert run == Run(Inner(1e-3, 7), Box((5, 6)), Inner(0.5))


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
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(file, overrides, words):
    with pytest.raises(ConfigError) as caught:
        config.load(Run, file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_and_malformed_files(tmp_path):
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
