"""Pieces of a long computation: what was saved is loaded, and anything else is refused."""

import pytest
import torch

from genvid.pieces import Pieces, PiecesError


def test_pieces_are_made_once(tmp_path):
    pieces, made = Pieces(tmp_path / "unfinished", {"seed": 1}), []

    def make():
        made.append(1)
        return {"codes": torch.arange(6).view(2, 3), "price": torch.tensor(1 / 3, dtype=torch.float64)}

    first = pieces.once("a", make)
    again = Pieces(tmp_path / "unfinished", {"seed": 1}).once("a", make)
    assert len(made) == 1
    assert all(torch.equal(first[name], again[name]) for name in ("codes", "price"))
    assert float(again["price"]) == 1 / 3
    pieces.remove()
    assert not list(tmp_path.iterdir())


def test_an_interrupted_piece_is_absent(tmp_path):
    pieces = Pieces(tmp_path / "unfinished", {})

    def make():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pieces.once("a", make)
    assert "a" not in pieces


def test_other_pieces_are_refused(tmp_path):
    folder = tmp_path / "unfinished"
    pieces = Pieces(folder, {"data": {"seed": 1}, "sizes": (1, 2)})
    Pieces(folder, {"data": {"seed": 1}, "sizes": (1, 2)})
    with pytest.raises(PiecesError, match=r"data\.seed is 1 there, 2 here"):
        Pieces(folder, {"data": {"seed": 2}, "sizes": (1, 2)})
    pieces.save("a", {"x": torch.zeros(3)})
    (folder / "a.safetensors").write_bytes(b"cut")
    with pytest.raises(PiecesError, match=r"a\.safetensors is damaged"):
        pieces.load("a")
    (folder / "about.json").unlink()
    with pytest.raises(PiecesError, match="holds no unfinished work"):
        Pieces(folder, {})
