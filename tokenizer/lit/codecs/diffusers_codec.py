"""Causal video autoencoders of diffusers as codecs: Cosmos, Wan, CogVideoX, LTX-Video.

diffusers is an optional extra and slow to import: it is imported when a codec is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from genvid.config import read_json
from genvid.tokenizer.lit.codecs.codec import Codec, CodecConfig, CodecStream, Geometry


class DiffusersCodec(Codec):
    """An autoencoder of diffusers. `window` None codes a clip of any length in one piece."""

    def __init__(self, model: Any, geometry: Geometry, window: int | None) -> None:
        super().__init__(type(model).__name__, geometry, window)
        self.model = model.eval().requires_grad_(False)

    def _encode(self, video: Tensor) -> Tensor:
        latents: Tensor = self.model.encode(video).latent_dist.mode()
        return latents

    def _decode(self, latents: Tensor) -> Tensor:
        video: Tensor = self.model.decode(latents).sample
        return video


class CosmosCodec(DiffusersCodec):
    """AutoencoderKLCosmos. Its temporal attention is over all past frames, so streams are windows, as at NVIDIA."""

    def __init__(self, model: Any, window: int | None) -> None:
        config = model.config
        time, space = config.temporal_compression_ratio, config.spatial_compression_ratio
        super().__init__(model, Geometry(config.latent_channels, time, space, chunk_frames=time, causal=True), window)

    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Published per channel and latent frame; averaged over frames."""
        config = self.model.config
        return _per_channel(config.latents_mean, config.latents_std, self.geometry.channels)

    def use_compiler(self) -> None:
        self.model.encoder.compile()
        self.model.decoder.compile()


class WanCodec(DiffusersCodec):
    """AutoencoderKLWan: coded latent frame by latent frame with convolution caches, which a stream carries on."""

    def __init__(self, model: Any, window: int | None) -> None:
        config = model.config
        time = config.scale_factor_temporal
        super().__init__(
            model, Geometry(config.z_dim, time, config.scale_factor_spatial, chunk_frames=time, causal=True), window
        )

    def statistics(self) -> tuple[Tensor, Tensor] | None:
        config = self.model.config
        return _per_channel(config.latents_mean, config.latents_std, self.geometry.channels)

    def _stream(self) -> CodecStream:
        return WanStream(self) if self.codec_window is None else super()._stream()


class WanStream(CodecStream):
    """The model's own loop over latent frames, with its caches kept from chunk to chunk."""

    def __init__(self, codec: WanCodec) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify

        self.codec, self._patchify, self._unpatchify = codec, patchify, unpatchify
        model = codec.model
        model.clear_cache()
        self._encoder: list[Any] = list(model._enc_feat_map)
        self._decoder: list[Any] = list(model._feat_map)
        self._encoded = self._decoded = 0

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        model, time = self.codec.model, self.codec.geometry.temporal_stride
        first = 0 if self._encoded else 1
        _check_chunk(self.codec.name, video.shape[2] - first, time, first)
        if model.config.patch_size is not None:
            video = self._patchify(video, patch_size=model.config.patch_size)
        parts = []
        for frames in [*([video[:, :, :1]] if first else []), *_split(video[:, :, first:], time)]:
            parts.append(model.encoder(frames, feat_cache=self._encoder, feat_idx=[0]))
        self._encoded += len(parts)
        moments = model.quant_conv(torch.cat(parts, 2))
        mean: Tensor = moments.chunk(2, 1)[0]
        return mean

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        model, parts = self.codec.model, []
        for frame in model.post_quant_conv(latents).split(1, 2):
            first = {"first_chunk": True} if not self._decoded else {}
            parts.append(model.decoder(frame, feat_cache=self._decoder, feat_idx=[0], **first))
            self._decoded += 1
        video: Tensor = torch.cat(parts, 2)
        if model.config.patch_size is not None:
            video = self._unpatchify(video, patch_size=model.config.patch_size)
        return video.clamp(-1, 1)


class CogVideoXCodec(DiffusersCodec):
    """AutoencoderKLCogVideoX: norms are over 8 frames (2 latent ones), the first of a clip joined to the next 8."""

    def __init__(self, model: Any, window: int | None) -> None:
        config = model.config
        time, space = int(config.temporal_compression_ratio), 2 ** (len(config.block_out_channels) - 1)
        geometry = Geometry(
            config.latent_channels, time, space, chunk_frames=model.num_sample_frames_batch_size, causal=True
        )
        super().__init__(model, geometry, window)

    def statistics(self) -> tuple[Tensor, Tensor]:
        channels = self.geometry.channels
        return torch.zeros(channels), torch.full((channels,), 1 / self.model.config.scaling_factor)

    def _stream(self) -> CodecStream:
        return CogVideoXStream(self) if self.codec_window is None else super()._stream()


class CogVideoXStream(CodecStream):
    """The model's own loop over batches of frames, with its convolution caches kept from chunk to chunk.

    Norms are over a complete batch: a chunk that splits one would change the result, so it is refused.
    """

    def __init__(self, codec: CogVideoXCodec) -> None:
        self.codec = codec
        self._encoder: Any = None
        self._decoder: Any = None

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        model, step = self.codec.model, self.codec.geometry.chunk_frames
        first = 1 if self._encoder is None else 0
        _check_batches(f"{self.codec.name} takes", "frames", video.shape[2], step, first)
        parts = []
        for frames in _batches(video, step, first):
            part, self._encoder = model.encoder(frames, conv_cache=self._encoder)
            parts.append(part if model.quant_conv is None else model.quant_conv(part))
        mean: Tensor = torch.cat(parts, 2).chunk(2, 1)[0]
        return mean

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        model, parts = self.codec.model, []
        step, first = model.num_latent_frames_batch_size, 1 if self._decoder is None else 0
        _check_batches(f"{self.codec.name} decodes", "latent frames", latents.shape[2], step, first)
        for frames in _batches(latents, step, first):
            frames = frames if model.post_quant_conv is None else model.post_quant_conv(frames)
            part, self._decoder = model.decoder(frames, conv_cache=self._decoder)
            parts.append(part)
        return torch.cat(parts, 2)


class LTXVideoCodec(DiffusersCodec):
    """AutoencoderKLLTXVideo: the encoder is causal, the published decoders are not."""

    def __init__(self, model: Any, window: int | None) -> None:
        config = model.config
        time = model.temporal_compression_ratio
        causal = config.encoder_causal and config.decoder_causal
        geometry = Geometry(
            config.latent_channels, time, model.spatial_compression_ratio, chunk_frames=time, causal=causal
        )
        super().__init__(model, geometry, window)

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self.model.latents_mean.clone(), self.model.latents_std / self.model.config.scaling_factor

    def _decode(self, latents: Tensor) -> Tensor:
        clean = latents.new_zeros(len(latents)) if self.model.config.timestep_conditioning else None
        video: Tensor = self.model.decode(latents, clean).sample
        return video


ADAPTERS: dict[str, type[CosmosCodec] | type[WanCodec] | type[CogVideoXCodec] | type[LTXVideoCodec]] = {
    "AutoencoderKLCosmos": CosmosCodec,
    "AutoencoderKLWan": WanCodec,
    "AutoencoderKLCogVideoX": CogVideoXCodec,
    "AutoencoderKLLTXVideo": LTXVideoCodec,
}


@CodecConfig.register_subclass("diffusers")
@dataclass(frozen=True)
class DiffusersCodecConfig(CodecConfig):
    """An autoencoder of diffusers: a folder or a Hub id, of which `subfolder` (often vae) holds it."""

    RENAMED: ClassVar[Mapping[str, str]] = {"window": "codec_window"}
    IMPLIED: ClassVar[Mapping[str, Any]] = {"codec_tile": None}

    source: str
    subfolder: str | None = None
    codec_window: int | None = None
    codec_tile: int | None = None
    """Side of the tiles in which frames are coded, in pixels (`Codec.set_tile`); null: frames are coded whole."""

    def load(self) -> Codec:
        diffusers = import_diffusers()
        name = self._class_name(diffusers)
        if name not in ADAPTERS:
            raise ValueError(f"{self.source} holds a {name}; genvid has codecs for {', '.join(ADAPTERS)}")
        try:
            model = getattr(diffusers, name).from_pretrained(self.source, subfolder=self.subfolder)
        except OSError as error:
            raise ValueError(f"{self.source} cannot be loaded ({_first_line(error)})") from None
        codec = ADAPTERS[name](model, self.codec_window)
        codec.set_tile(self.codec_tile)
        return codec

    def _class_name(self, diffusers: Any) -> str:
        folder = Path(self.source)
        file = folder / (self.subfolder or "") / "config.json"
        if folder.is_dir() or (folder.parent.is_dir() and str(folder.parent) != "."):
            if not file.is_file():
                raise ValueError(f"no codec at {file.parent}: there is no config.json")
            config = read_json(file)
        else:
            try:
                config = diffusers.AutoencoderKLCosmos.load_config(self.source, subfolder=self.subfolder)
            except OSError as error:
                raise ValueError(f"no folder {self.source}, and the Hub gave no codec ({_first_line(error)})") from None
        return str(config.get("_class_name", "model without a class name"))


def import_diffusers() -> Any:
    """The package; ValueError if it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(f"this codec needs diffusers ({error}): pip install 'genvid[lit]'") from None
    return diffusers


def _per_channel(mean: Any, std: Any, channels: int) -> tuple[Tensor, Tensor] | None:
    if mean is None or std is None or len(mean) % channels:
        return None
    return torch.tensor(mean).view(channels, -1).mean(1), torch.tensor(std).view(channels, -1).mean(1)


def _check_chunk(name: str, frames: int, step: int, first: int) -> None:
    if frames % step or frames + first < 1:
        given, after = frames + first, f"1 + n * {step}" if first else f"n * {step}"
        raise ValueError(f"{name} takes {after} frames in this chunk of the stream, got {given}")


def _check_batches(does: str, what: str, given: int, step: int, first: int) -> None:
    if given < step or (given - first) % step:
        wanted = ", ".join(str(first + n * step) for n in (1, 2, 3))
        raise ValueError(f"{does} {wanted}, ... {what} in this chunk of the stream, got {given}")


def _split(video: Tensor, size: int) -> list[Tensor]:
    return list(torch.split(video, size, 2)) if video.shape[2] else []


def _batches(x: Tensor, size: int, first: int) -> list[Tensor]:
    """Frames in batches of `size`, the `first` ones joined to the first batch: the model's own rule."""
    if x.shape[2] <= size + first:
        return [x]
    return [x[:, :, : size + first], *_split(x[:, :, size + first :], size)]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
