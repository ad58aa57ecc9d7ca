"""Provenance: models, runs, caches and files record the parts that they were made from, and other parts are refused.

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
    """Parts that do not belong together, such as a model and another tokenizer than its own."""


@dataclass(frozen=True)
class Origin:
    """The parts that a model was trained from: in config.json of its folder and origin.json of its run folder."""

    made_from: dict[str, Any] = field(default_factory=dict)
    """Role -> fingerprint or description."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes by number; empty where there are none, or in folders of older versions."""

    def record(self) -> dict[str, Any]:
        """The class list and `made_from`, by role."""
        return {**({"class list": self.classes} if self.classes else {}), **self.made_from}


def check_made_from(what: object, recorded: Mapping[str, Any], given: Mapping[str, Any], way_out: str) -> None:
    """ProvenanceError where the record of `what` differs from the value `given` for a role.

    A role that the record lacks is logged as unchecked. `way_out` ends the sentence.
    """
    for role, value in given.items():
        if role not in recorded:
            _warn(f"nothing was checked: {what} has no record of the {role} that it was made from")
            continue
        difference = configuration.difference(recorded[role], value, role)
        if difference:
            raise ProvenanceError(f"{what} was not made from this {role} ({difference}): {way_out}")


def class_numbers(what: object, known: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Number in a model `what` with the classes `known`, for each of the classes `wanted` of the data.

    ProvenanceError where the names differ; their order may. A model without recorded names takes the numbers of the
    data, with a warning. A single class needs no name.
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
    """Names, joined; of more than 20 the first ten, beginning with those that are not among the others."""
    if len(names) <= 20:
        return ", ".join(names)
    first = sorted(names, key=lambda name: name in others)[:10]
    return f"{', '.join(first)} and {len(names) - len(first)} more"


@functools.cache
def _warn(message: str) -> None:
    """Log a warning once in a process: checks are repeated for every batch."""
    logger.warning(message)
