"""Clips as a map-style dataset: an item is a pure function of (index, seed)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from genvid import noise
from genvid.config import encode
from genvid.data.clips import ClipConfig
from genvid.data.sources.base import SourceConfig
from genvid.data.video import VideoError
from genvid.files import json_digest

logger = logging.getLogger(__name__)

REPLACEMENTS = 8
"""Attempts to replace a clip whose file fails, before VideoError."""


@dataclass(frozen=True)
class VideoData:
    """The clips of a source, as a config describes them."""

    source: SourceConfig
    clip: ClipConfig = field(default_factory=ClipConfig)
    strict: bool = False
    """Stop at the first unusable file instead of naming, counting and skipping it."""

    def open(self) -> ClipDataset:
        return ClipDataset(self.source, self.clip, strict=self.strict)


class ClipDataset(Dataset[dict[str, Tensor]]):
    """Clips of a source.

    `dataset[index, seed]` -> {"video": (3, T, H, W) uint8, "label", "index", "seed": () int64} and the
    attributes of the item in its source. `dataset[index]` takes the index as seed: evaluation is then deterministic.

    A file that fails after it was listed is logged, counted (`failed`) and replaced by another item that the seed
    decides; "index" and "label" are those of the clip that is returned. With `strict` it raises VideoError.
    """

    def __init__(self, source: SourceConfig, clip: ClipConfig, *, strict: bool = False) -> None:
        self.source = source.open(clip, strict=strict)
        self.clip, self.strict = clip, strict
        # Shared with the data workers: the main process reads which items failed in them.
        self._failed = torch.zeros(len(self.source.names), dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.source.names)

    @property
    def classes(self) -> list[str]:
        return self.source.classes

    @property
    def num_classes(self) -> int:
        return len(self.source.classes)

    @property
    def weights(self) -> Tensor | None:
        """(N,) weights by which training draws the items; None where each comes once an epoch."""
        return self.source.weights

    @property
    def failed(self) -> list[str]:
        """Names of the items that could not be read so far, in any data worker."""
        return [self.source.names[i] for i in self._failed.nonzero().flatten().tolist()]

    def name(self, index: int) -> str:
        """Name of an item: its file below the source's folder, with the first frame where that is fixed."""
        return self.source.names[index]

    def fingerprint(self) -> str:
        """Short hash of the items, the contents of their files and the clip rule."""
        source = self.source
        rows = [encode(self.clip), source.classes, source.labels, source.names, source.contents]
        return json_digest(rows)[:16]

    def describe(self) -> dict[str, Any]:
        """Record of the data (genvid.provenance): the first key that differs names the change."""
        source = self.source
        parts = {"classes": source.classes, "names": source.names, "labels": source.labels, "contents": source.contents}
        return {"clips": len(self), **{name: json_digest(part)[:16] for name, part in parts.items()}}

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Tensor]:
        index, seed = item if isinstance(item, tuple) else (item, item)
        if not 0 <= index < len(self):
            raise IndexError(f"no clip {index} among {len(self)}")
        index, video = self._read(index, seed)
        numbers = {"label": self.source.labels[index], "index": index, "seed": seed, **self.source.attributes(index)}
        return {"video": video, **{name: torch.tensor(value) for name, value in numbers.items()}}

    def _read(self, index: int, seed: int) -> tuple[int, Tensor]:
        """The clip of an item, or of the first of its replacements that can be read."""
        errors = []
        for attempt in range(1 + REPLACEMENTS):
            try:
                return index, self.source.clip(index, seed)
            except VideoError as error:
                if self.strict:
                    raise
                errors.append(str(error))
                self._failed[index] = True
                logger.warning("%s. Another clip takes its place (%d items failed)", error, int(self._failed.sum()))
            draw = noise.uniform(torch.tensor([seed]), f"replacement {attempt}")
            index = int(draw * len(self))
        raise VideoError(f"{len(errors)} clips in a row could not be read, last: {errors[-1]}")
