"""NVIDIA's TorchScript tokenizers (Cosmos-0.1-Tokenizer-CV4x8x8, CV8x8x8 and their kin) as codecs.

They come as `encoder.jit` and `decoder.jit`; their strides are measured on a small video.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from genvid.files import sha256
from genvid.tokenizer.lit.codecs.codec import Codec, CodecConfig, Geometry

_PROBE_FRAMES, _PROBE_SIDE = 17, 64


class TorchScriptCodec(Codec):
    """A pair of scripted networks in one floating-point type, which the codec casts to and from."""

    def __init__(
        self, encoder: Any, decoder: Any, geometry: Geometry, window: int | None, name: str, files: Sequence[Path]
    ) -> None:
        super().__init__(name, geometry, window)
        self.encoder, self.decoder, self._files = encoder.eval(), decoder.eval(), files
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self._dtype = next((p.dtype for p in self.parameters()), torch.float32)

    def fingerprint(self) -> str:
        """Also of the files, where a network has no parameters: torch.jit.freeze makes its weights constants."""
        weights = super().fingerprint()
        if all(any(True for _ in network.parameters()) for network in (self.encoder, self.decoder)):
            return weights
        return hashlib.sha256("".join([weights, *map(sha256, self._files)]).encode()).hexdigest()[:16]

    def _encode(self, video: Tensor) -> Tensor:
        return _latents(self.encoder(video.to(self._dtype)), self.name).to(video.dtype)

    def _decode(self, latents: Tensor) -> Tensor:
        video: Tensor = self.decoder(latents.to(self._dtype))
        return video.to(latents.dtype)


@CodecConfig.register_subclass("torchscript")
@dataclass(frozen=True)
class TorchScriptCodecConfig(CodecConfig):
    """A folder with encoder.jit and decoder.jit."""

    RENAMED: ClassVar[Mapping[str, str]] = {"window": "codec_window"}

    folder: str
    codec_window: int | None = None

    def load(self) -> Codec:
        files = [Path(self.folder) / f"{part}.jit" for part in ("encoder", "decoder")]
        encoder, decoder = map(_read, files)
        name = f"the codec in {self.folder}"
        geometry = _measure(encoder, decoder, name)
        return TorchScriptCodec(encoder, decoder, geometry, self.codec_window, name, files)


def _read(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"no {file}: a TorchScript codec is a folder with encoder.jit and decoder.jit")
    try:
        return torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(f"{file} is not a TorchScript file; download encoder.jit and decoder.jit again") from None


@torch.no_grad()
def _measure(encoder: Any, decoder: Any, name: str) -> Geometry:
    """Strides and channels, from the latents of a black video."""
    dtype = next((p.dtype for p in encoder.parameters()), torch.float32)
    video = torch.zeros(1, 3, _PROBE_FRAMES, _PROBE_SIDE, _PROBE_SIDE, dtype=dtype)
    try:
        latents = _latents(encoder(video), name)
        restored = decoder(latents)
    except (RuntimeError, torch.jit.Error) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"{name} is not an encoder.jit and decoder.jit of a continuous video tokenizer: "
            f"it cannot code a video of {tuple(video.shape)} ({lines[-1] if lines else 'no reason given'})"
        ) from None
    if not isinstance(restored, Tensor) or restored.shape != video.shape or latents.shape[2] < 2:
        shape = tuple(restored.shape) if isinstance(restored, Tensor) else type(restored).__name__
        raise ValueError(
            f"{name} is not a causal video tokenizer: {tuple(video.shape)} became latents {tuple(latents.shape)} "
            f"and then {shape}"
        )
    time = (_PROBE_FRAMES - 1) // (latents.shape[2] - 1)
    space = _PROBE_SIDE // latents.shape[3]
    return Geometry(latents.shape[1], time, space, chunk_frames=time, causal=True)


def _latents(output: Any, name: str) -> Tensor:
    """NVIDIA's encoders return the latents, alone or first in a tuple."""
    latents = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(latents, Tensor) or latents.ndim != 5 or not latents.is_floating_point():
        shape = f"{latents.dtype} {tuple(latents.shape)}" if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(
            f"{name} encodes to {shape}, not to continuous latents (B, C, G, h, w): "
            "use a continuous video (CV) tokenizer, not a discrete (DV) or an image (CI) one"
        )
    return latents
