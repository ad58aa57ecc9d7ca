"""The header of a token file: a small JSON object, read strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any, NoReturn, Self

from genvid.tokens.blocks import LatentSteps, TokenizerSpec


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
    codebook_size: int | None
    """None for latents."""
    codes: dict[str, str]
    """Type and fingerprint of the model by which the codes are coded; empty for latents."""
    latents: LatentSteps | None = None
    """How latents are rounded; None for codes."""
    made_from: dict[str, Any] = field(default_factory=dict)
    """Everything else that the tokens depend on, such as fingerprints of the video and the scorer, and the budget."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else () if value is None else (value,):
                if not 1 <= number <= most:
                    raise TokenFileError(f"{name} of a token file is at least 1 and at most {most}, got {number}")
        for text in (self.tokenizer, self.fingerprint, *self.codes, *self.codes.values()):
            if not text.isprintable() or len(text) > _MOST_TEXT:
                raise TokenFileError(f"names in a token file are printable and of at most {_MOST_TEXT} characters")
        if (self.codebook_size is None) != (self.latents is not None):
            raise TokenFileError("a token file holds either codes of a codebook or latents with their steps")
        if self.latents is not None:
            self._check(self.latents)

    def _check(self, latents: LatentSteps) -> None:
        channels = len(latents.step)
        if not 1 <= channels <= _MOST_CHANNELS or len(latents.mean) != channels:
            raise TokenFileError(f"latents have 1 to {_MOST_CHANNELS} channels, each with a mean and a step")
        if not all(abs(mean) < 1e20 for mean in latents.mean) or not all(1e-20 < step < 1e20 for step in latents.step):
            raise TokenFileError("the means of latents are below 1e20, and their steps above 1e-20 and below 1e20")
        if latents.columns < 1 or self.block_capacity % latents.columns:
            raise TokenFileError(f"{latents.columns} columns are no grid of {self.block_capacity} positions")

    @classmethod
    def of(
        cls,
        spec: TokenizerSpec,
        frames: int,
        rate: Fraction,
        *,
        tokenizer: tuple[str, str],
        codes: Mapping[str, str],
        latents: LatentSteps | None = None,
    ) -> Self:
        """The header of a video of a tokenizer, which is given by its name and fingerprint."""
        name, fingerprint = tokenizer
        return cls(
            frames=frames,
            height=spec.resolution[0],
            width=spec.resolution[1],
            rate=rate.as_integer_ratio(),
            tokenizer=name,
            fingerprint=fingerprint,
            frames_per_block=spec.frames_per_block,
            block_capacity=spec.block_capacity,
            codebook_size=spec.codebook_size,
            codes=dict(codes),
            latents=latents,
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The header of its JSON; TokenFileError where a key is missing, unknown or has another type."""
        try:
            values = json.loads(data, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise TokenFileError(f"the header is not valid JSON ({type(error).__name__})") from None
        if not isinstance(values, dict):
            raise TokenFileError("the header is no JSON object")
        names = [known.name for known in fields(cls)]
        wrong = sorted({*names} ^ {*values}) or [name for name in names if not _TYPES[name](values[name])]
        if wrong:
            raise TokenFileError(f"the header must hold {', '.join(names)}, and its {wrong[0][:_MOST_TEXT]!r} is wrong")
        latents = values["latents"]
        if latents is not None:
            latents = LatentSteps(latents["columns"], tuple(latents["mean"]), tuple(latents["step"]))
        return cls(**{**values, "rate": tuple(values["rate"]), "latents": latents})

    def encode(self) -> bytes:
        """The inverse of `decode`."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @property
    def fps(self) -> float:
        return self.rate[0] / self.rate[1]

    @property
    def channels(self) -> int:
        """Of a latent; 1 for codes."""
        return 1 if self.latents is None else len(self.latents.step)

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
_MOST_CHANNELS = 1024


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_latents(value: object) -> bool:
    if not isinstance(value, dict) or sorted(value) != ["columns", "mean", "step"] or not _is_int(value["columns"]):
        return value is None
    lists = (value["mean"], value["step"])
    return all(isinstance(part, list) and all(isinstance(number, float) for number in part) for part in lists)


_TYPES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("frames", "height", "width", "frames_per_block", "block_capacity"), _is_int),
    **dict.fromkeys(("tokenizer", "fingerprint"), lambda value: isinstance(value, str)),
    "rate": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_int, value)),
    "codebook_size": lambda value: value is None or _is_int(value),
    "codes": lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in value.values()),
    "latents": _is_latents,
    "made_from": lambda value: isinstance(value, dict),
}
"""Key -> whether a JSON value has its type."""


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
