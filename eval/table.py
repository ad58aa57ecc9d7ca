"""Rows of numbers by position, on disk as they come: they survive a kill and are shared by processes.

A table is a folder. `table.json` describes it; every other file holds the rows of some batches. Each process writes
files of its own and reads all of them, so statistics are computed from the same rows in the same order, whatever the
number of processes.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from genvid import config as configuration
from genvid.files import save_tensors, write_atomically, write_json

_FLUSH_SECONDS = 30.0


class ClipTable:
    """Columns of clips. Rows are added in batches and reach the disk every half a minute and at `flush`."""

    def __init__(self, folder: str | Path, what: Mapping[str, Any]) -> None:
        """Open or begin a table. `what`: everything that its rows depend on; ValueError where the folder's differs."""
        self.folder = Path(folder)
        file, described = self.folder / "table.json", json.loads(json.dumps(dict(what)))
        if file.is_file() and any(self.folder.glob("rows-*.safetensors")):
            difference = configuration.difference(json.loads(file.read_text()), described)
            if difference:
                raise ValueError(
                    f"{self.folder} already holds another evaluation ({difference}); choose another output folder or "
                    "remove it"
                )
        else:
            write_json(file, described)
        self._pending: list[dict[str, Tensor]] = []
        self._flushed = time.monotonic()

    def add(self, positions: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Rows of (B,) positions: each column is (B, ...)."""
        self._pending.append({"position": positions, **columns})
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows. Only here does the processor wait for the device."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # whatever streams the rows come from
        names = self._pending[0].keys()
        rows = {name: torch.cat([part[name].cpu() for part in self._pending]) for name in names}
        self._pending.clear()
        target = self.folder / f"rows-{uuid.uuid4().hex[:12]}.safetensors"
        with write_atomically(target) as temporary:
            save_tensors(temporary, rows)

    def done(self) -> set[int]:
        """Positions that are on disk."""
        found: set[int] = set()
        for file in self.folder.glob("rows-*.safetensors"):
            with safetensors.safe_open(file, framework="pt") as rows:
                found.update(rows.get_tensor("position").tolist())
        return found

    def load(self, count: int) -> dict[str, Tensor]:
        """Columns of positions 0 to count - 1, in their order; ValueError while some are missing."""
        parts = [safetensors.torch.load_file(file) for file in sorted(self.folder.glob("rows-*.safetensors"))]
        positions = torch.cat([part["position"] for part in parts]) if parts else torch.empty(0, dtype=torch.int64)
        first = {position: row for row, position in reversed(list(enumerate(positions.tolist())))}
        missing = sum(position not in first for position in range(count))
        if missing:
            raise ValueError(f"{self.folder} lacks {missing} of {count} clips: the evaluation was not finished")
        order = torch.tensor([first[position] for position in range(count)])
        return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0] if name != "position"}
