"""A small causal video autoencoder trained from scratch: a frozen codec for where no weights can be downloaded.

The network is diffusers' AutoencoderKLCosmos at a small size, and the export is a folder that diffusers loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from genvid.checkpoint import Model
from genvid.tokenizer.lit.codecs.diffusers_codec import import_diffusers
from genvid.tokenizer.losses import Distortion
from genvid.tokenizer.statistics import moment_sums
from genvid.train.task import Batch, StepOutput, TrainingTask


@dataclass(frozen=True)
class AutoencoderConfig:
    """Size of the network. Widths are from the pixels inwards; the last one is that of the middle.

    Pixels enter as patches of 4 frames by 4 x 4; the rest of the strides is made by `space` / 4 halvings, of which
    there may be at most two fewer than widths (one more for `time` 8).
    """

    channels: int = 16
    encoder_widths: tuple[int, ...] = (64, 128, 128)
    decoder_widths: tuple[int, ...] = (128, 256, 256)
    layers: int = 2
    time: int = 4
    space: int = 8

    def __post_init__(self) -> None:
        if self.time not in (4, 8) or self.space not in (8, 16):
            raise ValueError(
                f"the autoencoder's strides are time 4 or 8 and space 8 or 16, got {self.time}, {self.space}"
            )
        halvings = self.space.bit_length() - 3 + (self.time == 8)
        if min(len(self.encoder_widths), len(self.decoder_widths)) != halvings + 2 or len(self.encoder_widths) != len(
            self.decoder_widths
        ):
            raise ValueError(
                f"strides of {self.time}x{self.space}x{self.space} need {halvings + 2} widths on each side"
            )


class VideoAutoencoder(Model):
    """The network and the running statistics of its latents, which its export tells."""

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
            # Haar wavelets would be separable convolutions at full size; a reshape does as well and costs nothing.
            patch_type="rearrange",
            temporal_compression_ratio=config.time,
            spatial_compression_ratio=config.space,
            latents_mean=None,
            latents_std=None,
        )
        # Between the last norm of the encoder and the first of the decoder there are six convolutions and nothing else.
        # Random square ones, multiplied, hardly pass half of the channels: these start as identities.
        network = self.network
        for convolution in (
            network.encoder.conv_out.conv_t,
            network.quant_conv,
            network.post_quant_conv,
            network.decoder.conv_in.conv_t,
        ):
            _start_as_identity(convolution)
        self.register_buffer("moments", torch.stack([torch.zeros(config.channels), torch.ones(config.channels)]))

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, T, H, W) in [-1, 1] -> its reconstruction and its latents (B, C, G, h, w)."""
        latents: Tensor = self.network.encode(video).latent_dist.mode()
        return self.network.decode(latents).sample, latents

    def _write(self, folder: Path) -> None:
        mean, square = self.moments.cpu().double()
        std = (square - mean.square()).clamp(min=1e-12).sqrt()
        self.network.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
        self.network.save_pretrained(folder)


@torch.no_grad()
def _start_as_identity(convolution: nn.Conv3d) -> None:
    """Of the present frame: kernels along time are padded in front."""
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    convolution.weight[:, :, -1, 0, 0].fill_diagonal_(1)


class AutoencoderTask(TrainingTask):
    """Distortion, and a small penalty that keeps latents near unit scale."""

    MOMENTUM = 0.02

    def __init__(self, model: AutoencoderConfig, distortion: Distortion, latent_penalty: float) -> None:
        super().__init__()
        self.autoencoder, self.latent_penalty = VideoAutoencoder(model), latent_penalty
        self._frozen = (distortion,)

    def frozen(self) -> tuple[nn.Module, ...]:
        return self._frozen

    def exportable(self) -> VideoAutoencoder:
        return self.autoencoder

    def matrices(self) -> set[Tensor]:
        """The kernels of all convolutions."""
        return {layer.weight for layer in self.modules() if isinstance(layer, nn.Conv3d)}

    def use_compiler(self, mode: str | None) -> None:
        """The network in one piece: shapes never change, and it is made of many small kernels."""
        self.autoencoder.compile(mode=mode)

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        restored, latents = self.autoencoder(batch["video"])
        parts = self._frozen[0].parts(restored, batch["video"])
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
