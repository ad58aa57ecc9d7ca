"""A small causal codec on cells of pixels: their principal components, and networks that add to these.

Latents are the principal components of each cell plus a causal convolutional network; the decoder mirrors that. The
components are fixed and the networks add nothing at the start, so training begins at the best linear codec. All layers
work on the grid of latents, which is cheap: there is no layer at the resolution of the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from genvid.checkpoint import Model, load_model
from genvid.tokenizer.lit.codecs.codec import Codec, CodecConfig, Geometry
from genvid.tokens.frame_blocks import fill_first

_REFINEMENT = 0.1
"""Unit of the encoder's network, in standard deviations of a component."""


@dataclass(frozen=True)
class CellAutoencoderConfig:
    """Size of the network."""

    channels: int = 64
    temporal_stride: int = 4
    spatial_stride: int = 8
    width: int = 256
    encoder_depth: int = 3
    decoder_depth: int = 9

    def __post_init__(self) -> None:
        cell = 3 * self.temporal_stride * self.spatial_stride**2
        if not 1 <= self.channels <= cell:
            raise ValueError(f"channels are 1 to {cell}, the numbers of a cell of pixels, got {self.channels}")


class CellAutoencoder(Model):
    """The network. The first frame of a clip is a cell of its own, repeated in time."""

    model_type = "cell_autoencoder"
    config_type = CellAutoencoderConfig
    config: CellAutoencoderConfig
    moments: Tensor
    """(2, C) running mean and mean square of the latents."""
    mean: Tensor
    """(N,) of the cells, N = 3 * temporal_stride * spatial_stride ** 2."""
    directions: Tensor
    """(N, C) orthonormal: the principal components."""
    scale: Tensor
    """(C,) their standard deviations, which are the units of the latents."""
    remainder: Tensor
    """() root mean square of what they leave of a pixel: the unit of the decoder's network."""

    def __init__(self, config: CellAutoencoderConfig) -> None:
        super().__init__(config)
        cell = 3 * config.temporal_stride * config.spatial_stride**2
        self.encoder = _Network(cell, config.channels, config.width, config.encoder_depth)
        self.decoder = _Network(config.channels, cell, config.width, config.decoder_depth)
        self.register_buffer("moments", torch.stack([torch.zeros(config.channels), torch.ones(config.channels)]))
        self.register_buffer("mean", torch.zeros(cell))
        self.register_buffer("directions", torch.eye(cell)[:, : config.channels].contiguous())
        self.register_buffer("scale", torch.ones(config.channels))
        self.register_buffer("remainder", torch.ones(()))

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, T, H, W) in [-1, 1] -> its reconstruction and its latents (B, C, G, h, w)."""
        latents = self.encode(video)
        return self.decode(latents), latents

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, 1 + n * temporal_stride, H, W) -> latents (B, C, 1 + n, h, w)."""
        time, space = self.config.temporal_stride, self.config.spatial_stride
        cells = fill_first(video, time).unfold(2, time, time).unfold(3, space, space).unfold(4, space, space)
        cells = cells.movedim(1, 4).flatten(4)  # (B, G, h, w, 3 * time * space * space)
        with torch.autocast(video.device.type, enabled=False):
            components = (cells.float() - self.mean) @ self.directions / self.scale
        latents: Tensor = components + _REFINEMENT * self.encoder(cells)
        return latents.movedim(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, 1 + n, h, w) -> (B, 3, 1 + n * temporal_stride, H, W)."""
        time, space = self.config.temporal_stride, self.config.spatial_stride
        x = latents.movedim(1, -1)
        with torch.autocast(latents.device.type, enabled=False):
            flat = (x.float() * self.scale) @ self.directions.T + self.mean
        flat = flat + self.remainder * self.decoder(x)
        cells = torch.unflatten(flat, -1, (3, time, space, space))
        # (B, G, h, w, 3, t, y, x) -> (B, 3, G, t, h, y, w, x)
        video = cells.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(2, 3).flatten(3, 4).flatten(4, 5)
        return video[:, :, time - 1 :]

    def matrices(self) -> set[Tensor]:
        """Weights of all linear layers and kernels of all convolutions."""
        return {layer.weight for layer in self.modules() if isinstance(layer, nn.Linear | nn.Conv3d)}

    @torch.no_grad()
    def start_from_components(self, video: Tensor) -> None:
        """Set the principal components to those of the cells of `video` (B, 3, T, H, W)."""
        time, space = self.config.temporal_stride, self.config.spatial_stride
        cells = video[:, :, 1:].unfold(2, time, time).unfold(3, space, space).unfold(4, space, space)
        cells = cells.movedim(1, 4).flatten(4).flatten(0, 3).double()
        mean, count = cells.mean(0), self.config.channels
        variances, directions = torch.linalg.eigh(torch.cov((cells - mean).T))
        self.mean.copy_(mean)
        self.directions.copy_(directions[:, -count:].flip(1))
        self.scale.copy_(variances[-count:].flip(0).clamp(min=1e-8).sqrt())
        self.remainder.copy_((variances[:-count].sum() / len(mean)).clamp(min=1e-8).sqrt())


class _Network(nn.Module):
    """Residual blocks on (B, G, h, w, inputs) -> (B, G, h, w, outputs); zeros at the start."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, outputs)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for block in self.blocks:
            x = block(x)
        outputs: Tensor = self.output(self.norm(x))
        return outputs


class _Block(nn.Module):
    """A convolution over space and a causal one over time, on the normed input of a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.space = nn.Conv3d(width, 2 * width, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(2 * width, width, (3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = gelu(self.space(self.norm(x).movedim(-1, 1)))
        branch: Tensor = self.time(pad(hidden, (0, 0, 0, 0, 2, 0)))
        return x + branch.movedim(1, -1)


class CellCodec(Codec):
    """A `CellAutoencoder` as a codec."""

    def __init__(self, model: CellAutoencoder, window: int | None) -> None:
        config = model.config
        time = config.temporal_stride
        geometry = Geometry(config.channels, time, config.spatial_stride, chunk_frames=time, causal=True)
        super().__init__("CellAutoencoder", geometry, window)
        self.model = model.eval().requires_grad_(False)

    def statistics(self) -> tuple[Tensor, Tensor]:
        mean, square = self.model.moments
        return mean, (square - mean.square()).clamp(min=1e-12).sqrt()

    def use_compiler(self) -> None:
        self.model.compile()

    def _encode(self, video: Tensor) -> Tensor:
        return self.model.encode(video)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)


@CodecConfig.register_subclass("cells")
@dataclass(frozen=True)
class CellCodecConfig(CodecConfig):
    """Model folder or Hub id of a cell autoencoder."""

    source: str
    codec_window: int | None = None

    def load(self) -> Codec:
        return CellCodec(load_model(self.source, CellAutoencoder), self.codec_window)
