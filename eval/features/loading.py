"""Feature networks for Fréchet distances, behind one contract, each with the input treatment it was published with.

Only numbers of DeepMind's I3D (Kinetics-400, RGB, trained from scratch) are called FVD, and that network exists in two
published files. They are recognised by content. A number of any other network has the name of that network.
"""

from __future__ import annotations

import hashlib
import importlib
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvid.checkpoint import fingerprint, load_model, load_weights, read_config, read_pickled, resolve, weights_hash
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.features.classifier import VideoClassifier
from genvid.eval.features.i3d import I3D
from genvid.eval.features.transnet import load_transnet

I3D_FILES = {
    "93daef59c7ae0e9e8f76225521407e60cbafa6aa": "i3d_torchscript.pt",
    "a867b87ac3a9097d200598b1d48a1b890d8ec744": "i3d_pretrained_400.pt",
}
"""git blob id -> usual name of the two published files of the FVD network."""

WHERE_I3D_IS = (
    "the FVD network is published as i3d_torchscript.pt (StyleGAN-V, LARP, AdapTok) and as i3d_pretrained_400.pt "
    "(VideoGPT, TATS); download either, check it with `git hash-object`, and pass its path (`--i3d FILE`); numbers of "
    "any other network bear that network's name and are not FVD"
)
I3D_NAME = "I3D Kinetics-400"
"""The feature network of FVD, as protocols name it."""


class I3DFeatures(FeatureNetwork):
    """Logits of I3D, of one published file or the other."""

    num_features = 400
    min_frames = 9

    def __init__(self, network: nn.Module, *, name: str, weights: str, is_fvd: bool) -> None:
        super().__init__()
        self.network = network
        self.name, self.weights, self.is_fvd = name, weights, is_fvd
        self.requires_grad_(False).train()


class I3DStateDict(I3DFeatures):
    """I3D from a state dict, frames resized to 224x224: bilinear, half-pixel, no antialiasing, aspect not kept."""

    def extract(self, video: Tensor) -> Tensor:
        frames = video.transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, (224, 224), mode="bilinear", align_corners=False)
        logits: Tensor = self.network(frames.view(len(video), -1, 3, 224, 224).transpose(1, 2))
        return logits


class I3DTorchScript(I3DFeatures):
    """I3D as StyleGAN-V scripted it: with `resize` it resizes by itself, without `rescale` it takes [-1, 1]."""

    def extract(self, video: Tensor) -> Tensor:
        # TorchScript would compile kernels at run time, which fails where CUDA's compiler and driver disagree.
        with torch.jit.fuser("none"):  # type: ignore[attr-defined]
            features: Tensor = self.network(video, rescale=False, resize=True, return_features=True)
        return features


class ClassifierFeatures(FeatureNetwork):
    """Inputs of the last layer of our own classifier. Only for comparing the models of one run."""

    def __init__(self, classifier: VideoClassifier, name: str, weights: str = "") -> None:
        super().__init__()
        self.classifier = classifier
        self.name, self.weights = name, weights
        self.num_features = classifier.num_features
        self.min_frames = classifier.config.frames
        self.requires_grad_(False).train()

    def extract(self, video: Tensor) -> Tensor:
        return self.classifier.features(video)


class ModuleFeatures(FeatureNetwork):
    """Any module (B, 3, T, H, W) -> (B, num_features)."""

    min_frames = 1

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        size = getattr(network, "num_features", None)
        if not isinstance(size, int):
            raise ValueError(f"{name} needs the length of its vectors as an int attribute `num_features`, got {size!r}")
        self.network, self.num_features = network, size
        self.weights = weights_hash(network)
        self.name = f"{name} {self.weights[:8]}"
        self.requires_grad_(False).train()

    def extract(self, video: Tensor) -> Tensor:
        features: Tensor = self.network(video)
        if features.shape != (len(video), self.num_features):
            raise ValueError(f"{self.name} gave {tuple(features.shape)} for {len(video)} videos: not (B, num_features)")
        return features


def load_features(source: str | Path) -> FeatureNetwork:
    """A file of weights of I3D or (.npz) of TransNet V2; a model folder or Hub id of a video classifier or of
    transformers' VideoMAE; or `package.module:name`, a callable without arguments that gives a module (B, 3, T, H, W)
    in [-1, 1] -> (B, num_features). ValueError in words otherwise."""
    path, text = Path(source), str(source)
    if path.is_file():
        return load_transnet(path) if path.suffix == ".npz" else load_i3d(path)
    if ":" in text and not path.exists():
        return _load_dotted(text)
    if not path.exists() and text.count("/") != 1:
        raise ValueError(f"no feature network at {path}; {WHERE_I3D_IS}")
    path = resolve(source)
    if read_config(path).get("model_type") == "videomae":
        from genvid.eval.features.videomae import VideoMAEFeatures

        return VideoMAEFeatures(path)
    model = load_model(path, VideoClassifier)
    weights = fingerprint(path)
    return ClassifierFeatures(model, f"video classifier {weights[:8]}", weights)


def _load_dotted(text: str) -> FeatureNetwork:
    module, _, name = text.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"no feature network {text} ({error}); give package.module:callable") from None
    if isinstance(made, FeatureNetwork):
        made.is_fvd = False
        return made
    if not isinstance(made, nn.Module):
        raise ValueError(f"{text} gave a {type(made).__name__}, but a feature network is a torch module")
    return ModuleFeatures(made, text)


def load_i3d(path: str | Path) -> FeatureNetwork:
    """Either of the published I3D files, recognised by its git blob id. Another file of I3D weights loads too, but is
    named after its id and its numbers are not FVD."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no I3D weights at {path}; {WHERE_I3D_IS}")
    blob = git_blob_id(path)
    is_fvd = blob in I3D_FILES
    name = I3D_NAME if is_fvd else f"unverified I3D {blob[:8]}"
    if _is_torchscript(path):
        scripted = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        return I3DTorchScript(scripted, name=name, weights=blob, is_fvd=is_fvd)
    network = I3D()
    load_weights(network, read_pickled(path), source=str(path))
    return I3DStateDict(network, name=name, weights=blob, is_fvd=is_fvd)


def git_blob_id(path: str | Path) -> str:
    """The SHA-1 that `git hash-object` prints for a file."""
    path = Path(path)
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).name == "constants.pkl" for name in archive.namelist())
