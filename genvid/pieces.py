"""Finished pieces of a long computation: after an interruption the same command resumes behind them.

A folder of pieces is temporary. `about.json` in it records everything that the pieces depend on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from genvid import config as configuration
from genvid.files import save_tensors, write_atomically, write_json

ABOUT = "about.json"
Piece = dict[str, Tensor]


class PiecesError(ValueError):
    """Pieces that cannot be used."""


def check_about(file: Path, about: Mapping[str, Any]) -> bool:
    """Whether `file` exists; PiecesError with the first key that differs when its contents are not `about`."""
    if not file.is_file():
        return False
    difference = configuration.difference(json.loads(file.read_text()), json.loads(json.dumps(about)))
    if difference:
        raise PiecesError(
            f"{file.parent} holds unfinished work on something else ({difference}); finish that, choose another "
            f"output, or delete {file.parent} to begin anew"
        )
    return True


class Pieces:
    """A folder of pieces, created if it is absent. Each piece is one file of tensors, complete or absent."""

    def __init__(self, folder: str | Path, about: Mapping[str, Any]) -> None:
        """PiecesError when the folder holds pieces of another computation."""
        self.folder = Path(folder)
        file = self.folder / ABOUT
        if check_about(file, about):
            return
        if self.folder.exists():
            raise PiecesError(f"{self.folder} is in the way, and holds no unfinished work; rename or delete it")
        with write_atomically(self.folder) as temporary:
            temporary.mkdir()
            write_json(temporary / ABOUT, about)

    def __contains__(self, name: str) -> bool:
        return self._file(name).is_file()

    def load(self, name: str) -> Piece:
        try:
            piece: Piece = safetensors.torch.load_file(self._file(name))
        except SafetensorError as error:
            raise PiecesError(f"{self._file(name)} is damaged ({error}); delete it") from None
        return piece

    def save(self, name: str, piece: Piece) -> None:
        with write_atomically(self._file(name)) as temporary:
            save_tensors(temporary, piece)

    def once(self, name: str, make: Callable[[], Piece]) -> Piece:
        """The piece: loaded, or made and saved."""
        if name not in self:
            self.save(name, make())
        return self.load(name)

    def remove(self) -> None:
        """Delete the folder, once the result is written."""
        shutil.rmtree(self.folder)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
