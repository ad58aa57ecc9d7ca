"""Token caches: the kept codes of every clip, ragged, in memory-mapped Arrow files beside a fingerprint.

Padded rows are never stored, and codes are uint16, or int32 for codebooks above 65,536. The fingerprint names
tokenizer, allocator and data; it is written last, so a folder without one is not a cache. Until then unfinished.json
records everything that the shards depend on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from numpy.typing import NDArray
from torch import Tensor

from genvid import config as configuration
from genvid.files import write_atomically, write_json
from genvid.pieces import check_about
from genvid.tokens import BlockTokens
from genvid.tokens.blocks import first_tokens
from genvid.tokens.cache_info import FINGERPRINT, UNFINISHED, CacheError, CacheInfo, read_fingerprint


class TokenCacheWriter:
    """Writes the shards of a cache, on any number of processes; an interrupted cache goes on with those that it lacks.

    writer = TokenCacheWriter(folder, info, shards=8)
    (barrier); on one process: writer.begin(); (barrier)
    for number in writer.missing(): (each on one process)
        with writer.shard(number) as shard:
            shard.add(tokens, labels, indices, sources)
    (barrier); on one process: writer.finish()
    """

    def __init__(
        self, folder: str | Path, info: CacheInfo, *, shards: int = 1, about: Mapping[str, Any] | None = None
    ) -> None:
        """`about`: everything beside `info` that the shards depend on. CacheError or PiecesError when the folder holds
        anything but the unfinished shards of this cache."""
        self.folder, self.info, self.shards = Path(folder), info, shards
        if (self.folder / FINGERPRINT).exists():
            raise CacheError(f"{folder} already holds a token cache; choose another folder or remove it")
        names = (path.name for path in self.folder.glob("*"))
        strangers = [name for name in names if not name.lstrip(".").startswith(("tokens-", UNFINISHED))]
        if strangers:
            raise CacheError(f"{folder} holds other files ({sorted(strangers)[0]}); a token cache needs its own folder")
        self._about = {**(about or {}), **configuration.encode(info), "shards": shards}
        check_about(self.folder / UNFINISHED, self._about)

    def begin(self) -> None:
        """Write unfinished.json; shards without one are removed. On one process, once all have made their writer."""
        if not check_about(self.folder / UNFINISHED, self._about):
            for unknown in self.folder.glob("*tokens-*"):
                unknown.unlink()
            write_json(self.folder / UNFINISHED, self._about)

    def missing(self) -> list[int]:
        """Shards that are not written yet."""
        return [number for number in range(self.shards) if not self._file(number).is_file()]

    @contextmanager
    def shard(self, number: int) -> Iterator[ShardWriter]:
        """Write a shard, which is complete or absent."""
        with write_atomically(self._file(number)) as temporary:
            writer = ArrowWriter(path=str(temporary), features=_features(self.info))
            yield ShardWriter(self.info, writer)
            writer.finalize()

    def finish(self) -> None:
        """Write the fingerprint. On one process, once all shards are written."""
        files = [self._file(number) for number in range(self.shards)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CacheError(f"{self.folder} lacks {', '.join(missing)}: a process has not finished writing its part")
        for stale in set(self.folder.glob("*tokens-*")) - set(files):
            stale.unlink()
        clips = sum(len(_read_shard(file)) for file in files)
        if not clips:
            raise CacheError(f"no clip was written to {self.folder}")
        record = {**configuration.encode(self.info), "clips": clips, "shards": [file.name for file in files]}
        write_json(self.folder / FINGERPRINT, record)
        (self.folder / UNFINISHED).unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"tokens-{number:05d}-of-{self.shards:05d}.arrow"


class ShardWriter:
    """Adds clips to a shard."""

    def __init__(self, info: CacheInfo, writer: ArrowWriter) -> None:
        self.info, self._writer = info, writer

    def add(self, tokens: BlockTokens, labels: Tensor, indices: Tensor, sources: list[str]) -> None:
        """Store the kept codes of B clips: `labels` and item `indices` (B,) int64, and a name for each."""
        info, lengths = self.info, tokens.lengths
        if tokens.codes is None:
            raise CacheError("a token cache holds codes; a continuous tokenizer has none")
        if tuple(tokens.keep.shape[1:]) != (info.num_blocks, info.block_capacity):
            raise CacheError(
                f"the cache is for {info.num_blocks} blocks of {info.block_capacity} tokens, "
                f"got {tokens.keep.shape[1]} of {tokens.keep.shape[2]}"
            )
        positions = torch.arange(info.block_capacity, device=tokens.keep.device)
        if (tokens.keep != (positions < lengths[..., None])).any():
            raise CacheError(
                "a token cache stores the first codes of each block, but tokens inside a block were dropped"
            )
        kept = [codes[keep].cpu().numpy() for codes, keep in zip(tokens.codes, tokens.keep, strict=True)]
        largest = max((int(codes.max()) for codes in kept if codes.size), default=0)
        smallest = min((int(codes.min()) for codes in kept if codes.size), default=0)
        if smallest < 0 or largest >= info.codebook_size:
            raise CacheError(f"codes run from {smallest} to {largest}, outside the codebook of {info.codebook_size}")
        self._writer.write_batch(
            {
                "codes": kept,
                "lengths": list(lengths.cpu().numpy()),
                "label": labels.tolist(),
                "index": indices.tolist(),
                "source": sources,
            }
        )


class TokenCache(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A finished cache, in the order of the items' indices, memory-mapped.

    `cache[i, seed]` (or `cache[i]`: seed i) -> {"codes": (G, L) int64, 0 beyond each length, "lengths": (G,) int64,
    "label", "index" (of the clip in its dataset), "seed": () int64}.
    """

    def __init__(self, folder: Path, info: CacheInfo, rows: Dataset) -> None:
        self.folder, self.info = folder, info
        self._rows = rows.with_format("arrow")
        self._order: NDArray[np.int64] = np.argsort(rows.data.column("index").to_numpy(), kind="stable")
        lengths = rows.data.column("lengths").combine_chunks().flatten().to_numpy()
        self.lengths = torch.from_numpy(lengths.reshape(-1, info.num_blocks)[self._order])
        """(clips, G) int32: kept codes of every block."""

    @classmethod
    def open(cls, folder: str | Path, **expected: Any) -> Self:
        """Open a finished cache; CacheError unless the fields of `CacheInfo` named in `expected` have these values."""
        folder = Path(folder)
        info, clips, shards = read_fingerprint(folder)
        for name, value in expected.items():
            if getattr(info, name) != value:
                raise CacheError(f"{folder} was made with {name} {getattr(info, name)!r}, but {value!r} is needed")
        rows = concatenate_datasets([_read_shard(folder / shard) for shard in shards])
        if len(rows) != clips:
            raise CacheError(f"{folder} holds {len(rows)} of its {clips} clips; copy it again")
        return cls(folder, info, rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def classes(self) -> list[str]:
        return self.info.classes

    @property
    def num_classes(self) -> int:
        return len(self.info.classes)

    def describe(self) -> dict[str, Any]:
        """Record of the cache (genvid.provenance), without the paths of the machine that made it."""
        allocator = self.info.allocator.get("allocator", self.info.allocator)
        return {"clips": len(self), "data": self.info.data, "allocator": allocator, **self.info.made_from}

    def source(self, i: int) -> str:
        """Name of the clip of an item."""
        return str(self._row(i).column("source")[0])

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Tensor]:
        i, seed = item if isinstance(item, tuple) else (item, item)
        row = self._row(i)
        lengths = torch.from_numpy(row.column("lengths")[0].values.to_numpy().astype(np.int64))
        keep = first_tokens(lengths, self.info.block_capacity)
        codes = torch.zeros(keep.shape, dtype=torch.int64)
        codes[keep] = torch.from_numpy(row.column("codes")[0].values.to_numpy().astype(np.int64))
        numbers = {"label": row.column("label")[0].as_py(), "index": row.column("index")[0].as_py(), "seed": seed}
        return {"codes": codes, "lengths": lengths, **{name: torch.tensor(value) for name, value in numbers.items()}}

    def _row(self, i: int) -> Any:
        """An Arrow table of one row."""
        return self._rows[int(self._order[i])]


def _features(info: CacheInfo) -> Features:
    code = "uint16" if info.codebook_size <= 2**16 else "int32"
    return Features(
        codes=List(Value(code)),
        lengths=List(Value("int32")),
        label=Value("int64"),
        index=Value("int64"),
        source=Value("string"),
    )


def _read_shard(file: Path) -> Dataset:
    try:
        return Dataset.from_file(str(file))
    except Exception as error:
        raise CacheError(f"{file} cannot be read ({error}); copy the cache again") from None
