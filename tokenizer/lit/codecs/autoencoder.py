"""A small causal video autoencoder trained from scratch: a codec where no weights can be downloaded.

The network is diffusers' AutoencoderKLCosmos at a small size, and the export is a folder that diffusers loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from genvid.batch import Batch
from genvid.checkpoint import Model, load_weights
from genvid.frozen import Frozen
from genvid.tokenizer.lit.codecs.cells import CellAutoencoder
from genvid.tokenizer.lit.codecs.diffusers_codec import CosmosCodec, DiffusersCodecConfig, import_diffusers
from genvid.tokenizer.losses import Distortion
from genvid.tokenizer.statistics import moment_sums
from genvid.train.task import StepOutput, TrainingTask


@dataclass(frozen=True)
class AutoencoderConfig:
    """Size of the network. Widths are from the pixels inwards; the last one is that of the middle.

    Pixels enter as patches of 4 x 4 x 4. Encoder and decoder each have
    2 + log2(temporal_stride / 4) + log2(spatial_stride / 4) widths.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {"time": "temporal_stride", "space": "spatial_stride"}

    channels: int = 16
    encoder_widths: tuple[int, ...] = (64, 128, 128)
    decoder_widths: tuple[int, ...] = (128, 256, 256)
    layers: int = 2
    temporal_stride: int = 4
    spatial_stride: int = 8

    def __post_init__(self) -> None:
        time, space = self.temporal_stride, self.spatial_stride
        if time not in (4, 8) or space not in (8, 16):
            raise ValueError(f"temporal_stride is 4 or 8 and spatial_stride 8 or 16, got {time} and {space}")
        widths = space.bit_length() - 1 + (time == 8)
        if {len(self.encoder_widths), len(self.decoder_widths)} != {widths}:
            raise ValueError(
                f"strides of {time}x{space}x{space} need {widths} encoder_widths and as many decoder_widths, "
                f"got {len(self.encoder_widths)} and {len(self.decoder_widths)}"
            )


class VideoAutoencoder(Model):
    """The network. Running latent mean and variance are exported as latents_mean and latents_std."""

    model_type = "autoencoder"
    config_type = AutoencoderConfig
    config: AutoencoderConfig
    moments: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.network = import_diffusers().AutoencoderKLCosmos(
            latent_channels=config.channels,
            encoder_block_out_channels=config.encoder_widths,
            decode_block_out_channels=config.decoder_widths,
            attention_resolutions=(),
            num_layers=config.layers,
            # Haar wavelets would be convolutions at full resolution; a reshape costs nothing.
            patch_type="rearrange",
            temporal_compression_ratio=config.temporal_stride,
            spatial_compression_ratio=config.spatial_stride,
            latents_mean=None,
            latents_std=None,
        )
        # Six convolutions follow each other between the last norm of the encoder and the first of the decoder. A
        # product of random square ones passes hardly half of the channels, so these four start as identities.
        network = self.network
        for convolution in (
            network.encoder.conv_out.conv_t,
            network.quant_conv,
            network.post_quant_conv,
            network.decoder.conv_in.conv_t,
        ):
            _start_as_identity(convolution)
        self.register_buffer("moments", torch.stack([torch.zeros(config.channels), torch.ones(config.channels)]))

    @classmethod
    def open(cls, source: str | Path) -> Self:
        """An export, or another AutoencoderKLCosmos of diffusers whose sizes `AutoencoderConfig` can express."""
        codec = DiffusersCodecConfig(str(source)).load()
        if not isinstance(codec, CosmosCodec):
            raise ValueError(f"{source} holds a {codec.name}, and this stage trains an AutoencoderKLCosmos")
        held = codec.model.config
        config = AutoencoderConfig(
            channels=held.latent_channels,
            encoder_widths=tuple(held.encoder_block_out_channels),
            decoder_widths=tuple(held.decode_block_out_channels),
            layers=held.num_layers,
            temporal_stride=held.temporal_compression_ratio,
            spatial_stride=held.spatial_compression_ratio,
        )
        model = cls(config)
        load_weights(model.network, codec.model.state_dict(), source=str(source))
        if (statistics := codec.statistics()) is not None:
            mean, std = statistics
            model.moments = torch.stack([mean, std.square() + mean.square()])
        model.fingerprint = codec.fingerprint()
        return model.eval()

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, T, H, W) in [-1, 1] -> its reconstruction and its latents (B, C, G, h, w)."""
        latents: Tensor = self.network.encode(video).latent_dist.mode()
        return self.network.decode(latents).sample, latents

    def matrices(self) -> set[Tensor]:
        """The kernels of all convolutions."""
        return {layer.weight for layer in self.modules() if isinstance(layer, nn.Conv3d)}

    def _write(self, folder: Path) -> None:
        mean, square = self.moments.cpu().double()
        std = (square - mean.square()).clamp(min=1e-12).sqrt()
        self.network.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
        self.network.save_pretrained(folder)


@torch.no_grad()
def _start_as_identity(convolution: nn.Conv3d) -> None:
    """An identity on the present frame, the last tap in time."""
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    convolution.weight[:, :, -1, 0, 0].fill_diagonal_(1)


class AutoencoderTask(TrainingTask):
    """Distortion, and a small penalty that keeps latents near unit scale."""

    compiled_across_layers = True
    MOMENTUM = 0.02

    def __init__(
        self, autoencoder: VideoAutoencoder | CellAutoencoder, distortion: Distortion, latent_penalty: float
    ) -> None:
        super().__init__()
        self.autoencoder, self.latent_penalty = autoencoder, latent_penalty
        self._distortion = Frozen(distortion)

    def exportable(self) -> VideoAutoencoder | CellAutoencoder:
        return self.autoencoder

    def matrices(self) -> set[Tensor]:
        return self.autoencoder.matrices()

    def use_compiler(self, mode: str | None) -> None:
        """The network in one piece: shapes are fixed, and it is many small kernels."""
        self.autoencoder.compile(mode=mode)

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        restored, latents = self.autoencoder(batch["video"])
        parts = self._distortion.network.parts(restored, batch["video"])
        parts["penalty"] = self.latent_penalty * latents.float().square().flatten(1).mean(1)
        losses = torch.stack(list(parts.values())).sum(0)
        terms = {name: value.detach().mean() for name, value in parts.items()}
        error = (restored.detach().float() - batch["video"]).square().flatten(1).mean(1) / 4
        terms["psnr"] = -10 * error.clamp(min=1e-10).log10().mean()
        every = torch.ones_like(latents[:, 0], dtype=torch.bool)
        return StepOutput(losses.sum(), terms, sums={"latents": moment_sums(latents.movedim(1, -1), every)})

    def update_statistics(self, phase: str, step: int, sums: dict[str, Tensor]) -> None:
        count, *moments = sums["latents"]
        newest = torch.stack(moments) / count
        self.autoencoder.moments.lerp_(newest.to(self.autoencoder.moments), self.MOMENTUM)
