"""Model folders: `config.json` beside `model.safetensors`, read strictly.

A model folder is what users load; the state of a training run is something else (genvid.train.checkpoints).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast, overload

import safetensors.torch
import torch
from torch import Tensor, nn

from genvid import config as configuration
from genvid.config import ConfigError
from genvid.files import save_tensors, sha256, temporary_path, write_json
from genvid.provenance import Origin, check_made_from
from genvid.values import typed

MODELS = {
    "adaptok": "genvid.tokenizer.adaptok.model:AdapTok",
    "adaptok_scorer": "genvid.tokenizer.adaptok.scorer:Scorer",
    "adaptok_ar": "genvid.ar.published:PublishedTransformer",
    "llama": "genvid.ar.model:BlockTransformer",
    "draft_heads": "genvid.ar.draft:DraftHeads",
    "group_llama": "genvid.ar.groups:GroupTransformer",
    "lit": "genvid.tokenizer.lit.model:LIT",
    "cell_autoencoder": "genvid.tokenizer.lit.codecs.cells:CellAutoencoder",
    "video_classifier": "genvid.eval.features.classifier:VideoClassifier",
}
"""`model_type` of config.json -> the class that reads the folder, imported when a folder of it is loaded."""


CONFIG, WEIGHTS = "config.json", "model.safetensors"
EXPORT = "export"
"""Folder in a run folder: the model of the run."""
SHIPPED = Path(__file__).parent / "models"
"""Folder of the model folders that are installed with genvid, each under its name."""
T = TypeVar("T")


class CheckpointError(ValueError):
    """A model folder that cannot be read."""


class Model(nn.Module):
    """A network that is built from one config dataclass and is saved as a model folder."""

    model_type: ClassVar[str]
    config_type: ClassVar[type]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.origin = Origin()
        """Fingerprints of the data and models that it was trained from; saved with it."""
        self.folder: Path | None = None
        """Folder that `load_model` read; None for a new model."""

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """Fingerprint of its folder; None for a model that was not loaded from one."""
        return None if self.folder is None else fingerprint(self.folder)

    def check_made_from(self, **given: object) -> None:
        """ProvenanceError unless the models `given`, by role, are those that this one was trained from.

        Models that were not loaded from a folder are not compared.
        """
        what = self.folder or f"this {type(self).__name__}"
        for role, part in given.items():
            if isinstance(part, Model) and part.fingerprint is not None:
                way_out = f"use the {role} that it was made from in place of {part.folder}, or make {what} anew"
                check_made_from(what, self.origin.made_from, {role: part.fingerprint}, way_out)

    def save(self, folder: str | Path) -> None:
        """Replace the files of the model folder; other files in it stay.

        All are written under temporary names first. config.json is removed first and written last, so a folder with a
        config.json is complete.
        """
        target = Path(folder).resolve()
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"cannot save a model to {folder}: it is a file, not a folder")
        is_new = not target.exists()
        temporary = temporary_path(target / "save")
        try:
            temporary.mkdir(parents=True)
            self._write(temporary)
            (target / CONFIG).unlink(missing_ok=True)
            for file in sorted(temporary.iterdir(), key=lambda file: file.name == CONFIG):
                file.replace(target / file.name)
        except BaseException:
            if is_new:
                shutil.rmtree(target, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        data = {"model_type": self.model_type, **configuration.encode(self.config), **self._origin_json()}
        write_json(folder / CONFIG, data)
        save_tensors(folder / WEIGHTS, self.state_dict(), {"format": "pt"})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model of a folder that `save` wrote, in eval mode. A missing or unknown key or weight is an error."""
        data = read_config(folder)
        if data.pop("model_type", None) != cls.model_type:
            raise CheckpointError(f"{folder} does not hold a {cls.model_type} model")
        origin = read_origin(data, folder)
        config: Any = configuration.decode(cls.config_type, data, source=str(folder / CONFIG))
        missing = _missing_keys(configuration.encode(config), typed(cls.config_type, data))
        if missing:
            raise CheckpointError(f"{folder / CONFIG} lacks {', '.join(missing)}")
        model = cls(config)
        model.origin = origin or model.origin
        load_weights(model, read_weights(folder), source=str(folder))
        return model.eval()

    @classmethod
    def open(cls, source: str | Path) -> Self:
        """A folder or Hub id that holds a model of this class -> the model; CheckpointError for any other."""
        return load_model(source, cls)

    def _origin_json(self) -> dict[str, Any]:
        """{"origin": ...} for config.json; empty for an empty origin."""
        return {} if self.origin == Origin() else {"origin": configuration.encode(self.origin)}


def read_pickled(file: Path) -> dict[str, Tensor]:
    """Weights of a file of torch.save; CheckpointError for any other file."""
    try:
        state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file of another kind the unpickler may raise anything
        raise CheckpointError(f"{file} is no PyTorch checkpoint of weights ({type(error).__name__})") from error
    return state


@overload
def load_model(source: str | Path) -> Model: ...


@overload
def load_model(source: str | Path, expected: type[T]) -> T: ...


def load_model(source: str | Path, expected: type = Model) -> Any:
    """A model folder or a Hugging Face Hub id -> the model, in eval mode, which is an instance of `expected`.

    CheckpointError in one sentence otherwise.
    """
    folder = resolve(source)
    model_type = read_config(folder).get("model_type")
    if not isinstance(model_type, str) or model_type not in MODELS:
        raise CheckpointError(
            f"{folder / CONFIG} names model type {model_type!r}; genvid reads {', '.join(MODELS)} "
            "(published AdapTok folders: run `genvid convert` first)"
        )
    module, _, name = MODELS[model_type].partition(":")
    cls = cast(type[Model], getattr(importlib.import_module(module), name))
    model = cls.load(folder)
    if not isinstance(model, expected):
        raise CheckpointError(
            f"{source} holds a model of type {model_type}, not a {expected.__name__}: give the folder or Hub id of one"
        )
    model.folder = folder
    return model


def resolve(source: str | Path) -> Path:
    """A folder that exists, a model that is installed with genvid by its name, or the local copy of a Hub repository
    `owner/name`, downloaded at first use; the first of these that there is.

    Where a folder `owner` exists, `owner/name` is a path: a mistyped path is refused without a network request.
    """
    folder, text = Path(source), str(source)
    if folder.is_dir():
        return folder
    if (SHIPPED / text / CONFIG).is_file():
        return SHIPPED / text
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        shipped = ", ".join(sorted(file.parent.name for file in SHIPPED.glob(f"*/{CONFIG}"))) or "none"
        raise CheckpointError(
            f"no model folder {text} (and it is not a Hub id of the form owner/name, nor one of the models that are "
            f"installed with genvid: {shipped})"
        )
    if folder.parent.is_dir():
        raise CheckpointError(
            f"no model folder {text}: there is a folder {folder.parent}, but it holds no {folder.name}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"no local folder {text}, and the Hub gave no such model ({reason})") from error


def check_free(destination: Path) -> None:
    """CheckpointError where there is anything but an empty folder."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination} exists already; choose another destination or remove it first")


def without_export(source: str | Path) -> Path:
    """A model folder; where it is the export of a run, the folder of the run."""
    folder = Path(source)
    return folder.parent if folder.name == EXPORT else folder


def model_name(source: str | Path) -> str:
    """Name of the model of a folder or Hub id: that of the folder, and of the run where it is the export of one."""
    return without_export(Path(source).absolute()).name


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder as a dict."""
    file = folder / CONFIG
    if not file.is_file():
        export = folder / EXPORT
        way_out = f"give that of the run, {export}" if (export / CONFIG).is_file() else f"it has no {CONFIG}"
        raise CheckpointError(f"{folder} is not a model folder: {way_out}")
    try:
        return configuration.read_json(file)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def read_origin(data: dict[str, Any], folder: Path) -> Origin | None:
    """Remove the origin from the contents of config.json and decode it; None in folders of older versions."""
    if (origin := data.pop("origin", None)) is None:
        return None
    if not isinstance(origin, dict):
        raise CheckpointError(f"origin in {folder / CONFIG} must hold keys and values, not a {type(origin).__name__}")
    return configuration.decode(Origin, origin, source=f"{folder / CONFIG}: origin")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """`model.safetensors` of a model folder as named tensors on the CPU."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{folder} is not a model folder: it has no model.safetensors")
    try:
        return cast(dict[str, Tensor], safetensors.torch.load_file(file))
    except Exception as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy it again") from None


def load_weights(model: nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """Strict `load_state_dict` whose error names the entries that are missing, unexpected or of another shape."""
    expected = {name: value.shape for name, value in model.state_dict().items()}
    if mismatch := describe_mismatch(expected, weights):
        raise CheckpointError(f"{source} does not fit {type(model).__name__}: {mismatch}")
    model.load_state_dict(weights)


def describe_mismatch(expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]) -> str:
    """The entries that are missing, unexpected or of another shape, of many the first four; empty where all fit."""
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)} but should be {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    return "; ".join(problems[:4]) + (f" and {len(problems) - 4} more" if len(problems) > 4 else "")


def fingerprint(folder: str | Path) -> str:
    """Short hash of config.json and model.safetensors of a model folder. Its other files (a scorer) do not count."""
    folder = Path(folder)
    files = [folder / CONFIG, folder / WEIGHTS]
    if not all(file.is_file() for file in files):
        raise CheckpointError(f"{folder} is not a model folder: it needs {CONFIG} and {WEIGHTS}")
    hashes = [sha256(file) for file in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of the names and values of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _missing_keys(full: dict[str, Any], given: dict[str, Any], prefix: str = "") -> list[str]:
    missing = []
    for key, value in full.items():
        if key not in given:
            missing.append(prefix + key)
        elif isinstance(value, dict) and isinstance(given[key], dict):
            missing += _missing_keys(value, given[key], f"{prefix}{key}.")
    return missing
