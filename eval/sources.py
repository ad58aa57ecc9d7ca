"""Where the data set of a protocol lies on this machine."""

from __future__ import annotations

from pathlib import Path

from genvid.data.sources.base import SourceConfig
from genvid.data.sources.davis import DavisConfig
from genvid.data.sources.files import FolderConfig
from genvid.data.sources.kinetics import Kinetics600Config
from genvid.data.sources.ucf101 import Ucf101Config
from genvid.eval.protocols import EvaluationProtocol


def protocol_source(protocol: EvaluationProtocol, path: Path, lists: Path | None = None) -> SourceConfig:
    """The protocol's data set in the folder `path`.

    `lists`: ucfTrainTestlist of UCF-101 (looked for in and beside `path`), the annotation CSV of Kinetics-600, or a
    list of DAVIS sequences (all where there is none). ValueError in words for what is missing.
    """
    if protocol.dataset == "UCF-101":
        return Ucf101Config(str(path), str(lists or _ucf_lists(path)), split=protocol.split)  # type: ignore[arg-type]
    if protocol.dataset == "Kinetics-600":
        if lists is None:
            raise ValueError(f"{protocol.name} needs the CSV file of the {protocol.split} split (--lists)")
        return Kinetics600Config(str(path), str(lists))
    if protocol.dataset == "DAVIS":
        return DavisConfig(str(path), None if lists is None else str(lists))
    return FolderConfig(str(path))


def unseen_source(protocol: EvaluationProtocol, path: Path, lists: Path | None = None) -> SourceConfig | None:
    """Videos that models trained on the protocol's split have not seen; None where the data set sets none apart."""
    if protocol.dataset != "UCF-101" or protocol.split != "train" or protocol.task != "generation":
        return None
    return Ucf101Config(str(path), str(lists or _ucf_lists(path)), split="test")


def _ucf_lists(path: Path) -> Path:
    places = [path / "ucfTrainTestlist", path.parent / "ucfTrainTestlist"]
    found = [place for place in places if place.is_dir()]
    if not found:
        raise ValueError(f"the lists of UCF-101 are neither {places[0]} nor {places[1]}; give the folder (--lists)")
    return found[0]
