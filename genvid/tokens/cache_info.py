"""The fingerprint of a token cache: origin and shape of its tokens, which are read without opening them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genvid import config as configuration

FINGERPRINT, UNFINISHED = "fingerprint.json", "unfinished.json"


class CacheError(ValueError):
    """A token cache that cannot be read or written."""


@dataclass(frozen=True)
class CacheInfo:
    """Origin and shape of the tokens of a cache."""

    tokenizer: str
    """Fingerprint of the tokenizer's model folder."""
    allocator: dict[str, Any]
    """Config of the allocator."""
    data: str
    """Fingerprint of the dataset (`ClipDataset.fingerprint`)."""
    group_size: int
    """Clips that shared one token budget: the allocator's groups."""
    frames: int
    """Frames of a clip."""
    num_blocks: int
    block_capacity: int
    sizes: list[int]
    """Lengths that a block may have, ascending."""
    codebook_size: int
    classes: list[str]
    made_from: dict[str, str] = field(default_factory=dict)
    """Fingerprints of what the allocator reads, by role: scorer, calibration."""

    def __post_init__(self) -> None:
        if not 1 <= self.codebook_size <= 2**31:
            raise ValueError(f"a token cache holds codebooks of 1 to 2^31 codes, got {self.codebook_size}")


def read_fingerprint(folder: Path) -> tuple[CacheInfo, int, list[str]]:
    """A finished cache -> its info, the number of its clips and the names of its shards; CacheError for any other
    folder."""
    if not folder.is_dir():
        raise CacheError(f"no token cache {folder}")
    if not (folder / FINGERPRINT).is_file():
        raise CacheError(f"{folder} is not a finished token cache: it has no {FINGERPRINT}; run the caching again")
    record = configuration.read_json(folder / FINGERPRINT)
    if not {"clips", "shards"} <= record.keys():
        raise CacheError(f"{folder / FINGERPRINT} lacks clips or shards: it is not of a token cache")
    clips, shards = record.pop("clips"), record.pop("shards")
    return configuration.decode(CacheInfo, record, source=str(folder / FINGERPRINT)), clips, shards
