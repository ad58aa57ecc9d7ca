"""What was made from what: records travel with models, runs, caches and files; parts of different makes are refused.

A record maps a role (tokenizer, codec, data, class list) to a fingerprint, or to a description with several keys.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from genvid import config as configuration

logger = logging.getLogger(__name__)


class ProvenanceError(ValueError):
    """Parts that do not belong together, said in one sentence."""


@dataclass(frozen=True)
class Origin:
    """What a model was trained from. Its folder keeps it in config.json, its run folder in origin.json."""

    made_from: dict[str, Any] = field(default_factory=dict)
    """Role -> fingerprint or description."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes by number; empty where there are none, or in folders of older versions."""

    def record(self) -> dict[str, Any]:
        """All of it by role."""
        return {**({"class list": self.classes} if self.classes else {}), **self.made_from}


def check_made_from(what: object, recorded: Mapping[str, Any], given: Mapping[str, Any], way_out: str) -> None:
    """ProvenanceError where the record of `what` differs from what is `given` for a role.

    Of a role that the record lacks, a warning says that nothing was checked. `way_out` ends the sentence.
    """
    for role, value in given.items():
        if role not in recorded:
            _warn(f"nothing was checked: {what} has no record of the {role} that it was made from")
            continue
        difference = configuration.difference(recorded[role], value, role)
        if difference:
            raise ProvenanceError(f"{what} was not made from this {role} ({difference}): {way_out}")


def class_numbers(what: object, known: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Number in `what`, a model with the classes `known`, of each of the classes `wanted`, which the data have.

    Classes are their names: ProvenanceError where the names differ; their order may. A warning where no names are
    recorded, and the numbers of the data then. A single class needs no name.
    """
    if not known:
        _warn(f"nothing was checked: {what} has no record of its classes, so those of the data give their numbers")
        return list(range(len(wanted)))
    if len(known) == len(wanted) == 1:
        return [0]
    if sorted(known) != sorted(wanted):
        raise ProvenanceError(
            f"{what} was trained on the classes {_listed(known, wanted)}, but these data have "
            f"{_listed(wanted, known)}: use data of the same classes"
        )
    return [known.index(name) for name in wanted]


def _listed(names: Sequence[str], others: Sequence[str]) -> str:
    """Names in words; of many, those first that the others lack."""
    if len(names) <= 20:
        return ", ".join(names)
    first = sorted(names, key=lambda name: name in others)[:10]
    return f"{', '.join(first)} and {len(names) - len(first)} more"


@functools.cache
def _warn(message: str) -> None:
    """Once in a process: checks are repeated for every batch."""
    logger.warning(message)
