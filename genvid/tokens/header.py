"""The header of a token file: a small JSON object, read strictly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any, NoReturn, Self

from genvid.tokens.blocks import TokenizerSpec


class TokenFileError(ValueError):
    """A token file that cannot be read or written."""


@dataclass(frozen=True)
class Header:
    """Everything that a reader needs before the first segment."""

    frames: int
    """Of the video; a file that holds fewer was cut."""
    height: int
    width: int
    """Of the frames that the tokenizer decodes, in pixels."""
    rate: tuple[int, int]
    """Frames per second: numerator and denominator."""
    tokenizer: str
    """Name of the tokenizer."""
    fingerprint: str
    """Fingerprint of its model folder."""
    frames_per_block: int
    block_capacity: int
    codebook_size: int
    codes: dict[str, str]
    """Type and fingerprint of the model by which the codes are coded."""
    made_from: dict[str, Any] = field(default_factory=dict)
    """What else the tokens depend on, such as the fingerprints of the video and the scorer, and the token budget."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if not 1 <= number <= most:
                    raise TokenFileError(f"{name} of a token file is at least 1 and at most {most}, got {number}")
        for text in (self.tokenizer, self.fingerprint, *self.codes, *self.codes.values()):
            if not text.isprintable() or len(text) > _MOST_TEXT:
                raise TokenFileError(f"names in a token file are printable and of at most {_MOST_TEXT} characters")

    @classmethod
    def of(
        cls, spec: TokenizerSpec, frames: int, rate: Fraction, *, tokenizer: tuple[str, str], codes: dict[str, str]
    ) -> Self:
        """The header of a video of a tokenizer, which is given by its name and fingerprint."""
        if spec.codebook_size is None:
            raise TokenFileError("a continuous tokenizer has no codes to store: give a discrete one")
        shape = (spec.frames_per_block, spec.block_capacity, spec.codebook_size)
        return cls(frames, *spec.resolution, rate.as_integer_ratio(), *tokenizer, *shape, codes)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The header of its JSON; TokenFileError where a key is missing, unknown or has another type."""
        try:
            values = json.loads(data, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise TokenFileError(f"the header is not valid JSON ({type(error).__name__})") from None
        names = [known.name for known in fields(cls)]
        if not isinstance(values, dict) or sorted(values) != sorted(names):
            raise TokenFileError(f"the header must hold {', '.join(names)}")
        rate, codes = values["rate"], values["codes"]
        fits = all(_is_int(values[name]) for name in _MOST if name != "rate")
        fits &= isinstance(rate, list) and len(rate) == 2 and all(map(_is_int, rate))
        fits &= isinstance(codes, dict) and all(isinstance(value, str) for value in codes.values())
        fits &= isinstance(values["tokenizer"], str) and isinstance(values["fingerprint"], str)
        if not fits or not isinstance(values["made_from"], dict):
            raise TokenFileError("the header has values of wrong types")
        return cls(**{**values, "rate": tuple(rate)})

    def encode(self) -> bytes:
        """The inverse of `decode`."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @property
    def fps(self) -> float:
        return self.rate[0] / self.rate[1]

    def fits(self, blocks: int, frames: int) -> bool:
        """Whether so many blocks can hold so many frames."""
        return blocks >= 1 and (1 <= frames <= blocks * self.frames_per_block)


_MOST = {
    "frames": 2**40,
    "height": 2**14,
    "width": 2**14,
    "rate": 2**31,
    "frames_per_block": 2**10,
    "block_capacity": 2**16,
    "codebook_size": 2**20,
}
_MOST_TEXT = 256


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
