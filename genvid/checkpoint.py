"""Model folders: `config.json` beside `model.safetensors`, read strictly.

A model folder is what users load; the state of a training run is something else (genvid.train.checkpoints).
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from genvid import config as configuration
from genvid.files import sha256, write_atomically

MODELS = {
    "adaptok": "genvid.tokenizer.adaptok.model:AdapTok",
    "adaptok_scorer": "genvid.tokenizer.adaptok.scorer:Scorer",
    "adaptok_ar": "genvid.ar.published:PublishedTransformer",
    "llama": "genvid.ar.model:BlockTransformer",
    "lit": "genvid.tokenizer.lit.model:LIT",
    "video_classifier": "genvid.eval.classifier:VideoClassifier",
}
"""`model_type` of config.json -> the class that reads the folder, imported when it is asked for."""


MODEL_FILES = ("config.json", "model.safetensors")


class CheckpointError(ValueError):
    """A model folder that cannot be read, said in one sentence."""


class Model(nn.Module):
    """A network that is built from one config dataclass and is saved as a model folder."""

    model_type: ClassVar[str]
    config_type: ClassVar[type]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def save(self, folder: str | Path) -> None:
        """Write the model folder; an existing one is replaced when the new one is whole."""
        with write_atomically(folder) as temporary:
            temporary.mkdir()
            self._write(temporary)

    def _write(self, folder: Path) -> None:
        data = {"model_type": self.model_type, **configuration.encode(self.config)}
        (folder / "config.json").write_text(json.dumps(data, indent=2) + "\n")
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote: every key and every weight must be there, and no other. In eval mode."""
        data = read_config(folder)
        if data.pop("model_type", None) != cls.model_type:
            raise CheckpointError(f"{folder} does not hold a {cls.model_type} model")
        config: Any = configuration.decode(cls.config_type, data, source=str(folder / "config.json"))
        missing = _missing_keys(configuration.encode(config), data)
        if missing:
            raise CheckpointError(f"{folder / 'config.json'} lacks {', '.join(missing)}")
        model = cls(config)
        load_weights(model, read_weights(folder), source=str(folder))
        return model.eval()


def read_pickled(file: Path) -> dict[str, Tensor]:
    """Weights as torch.save wrote them; CheckpointError where it did not."""
    try:
        state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file of another kind the unpickler may raise anything
        raise CheckpointError(f"{file} is no PyTorch checkpoint of weights ({type(error).__name__})") from error
    return state


def load_model(source: str | Path) -> Model:
    """A model folder or a Hugging Face Hub id -> the model, in eval mode. CheckpointError in words otherwise."""
    folder = resolve(source)
    model_type = read_config(folder).get("model_type")
    if model_type not in MODELS:
        raise CheckpointError(
            f"{folder / 'config.json'} names model type {model_type!r}; genvid reads {', '.join(MODELS)} "
            "(published AdapTok folders: run `genvid convert` first)"
        )
    module, _, name = MODELS[model_type].partition(":")
    cls = cast(type[Model], getattr(importlib.import_module(module), name))
    return cls.load(folder)


def resolve(source: str | Path) -> Path:
    """A folder that exists, or the local copy of a Hub repository `owner/name`, fetched when it is not there yet.

    Where there is a folder `owner`, `owner/name` is taken for a path: a mistyped one never waits for the network.
    """
    folder, text = Path(source), str(source)
    if folder.is_dir():
        return folder
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(f"no model folder {text} (and it is not a Hub id of the form owner/name)")
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


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder as a dict."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} is not a model folder: it has no config.json")
    try:
        return cast(dict[str, Any], json.loads(file.read_text()))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error})") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """`model.safetensors` of a model folder as named tensors on the CPU."""
    file = folder / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{folder} is not a model folder: it has no model.safetensors")
    try:
        return cast(dict[str, Tensor], safetensors.torch.load_file(file))
    except Exception as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy it again") from None


def load_weights(model: nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """Strict `load_state_dict` whose error names the entries that are missing, unexpected or of another shape."""
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)} but should be {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(f"{source} does not fit {type(model).__name__}: {'; '.join(problems[:4])}{more}")
    model.load_state_dict(weights)


def fingerprint(folder: str | Path) -> str:
    """Short hash of a model folder's configuration and weights: provenance of what was made with it.

    What else lies there (a scorer, a README) does not count.
    """
    folder = Path(folder)
    hashes = [sha256(file) for name in MODEL_FILES if (file := folder / name).is_file()]
    if len(hashes) != len(MODEL_FILES):
        raise CheckpointError(f"{folder} is not a model folder: it needs {' and '.join(MODEL_FILES)}")
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def _missing_keys(full: dict[str, Any], given: dict[str, Any], prefix: str = "") -> list[str]:
    missing = []
    for key, value in full.items():
        if key not in given:
            missing.append(prefix + key)
        elif isinstance(value, dict) and isinstance(given[key], dict):
            missing += _missing_keys(value, given[key], f"{prefix}{key}.")
    return missing
