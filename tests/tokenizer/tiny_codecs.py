"""Codecs of a few thousand weights, in folders as users have them, and LIT on one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.lit.codecs.codec import CodecConfig
from genvid.tokenizer.lit.codecs.diffusers_codec import DiffusersCodecConfig
from genvid.tokenizer.lit.inpainter import InpainterConfig
from genvid.tokenizer.lit.model import LIT, LITConfig

CLASSES: dict[str, dict[str, Any]] = {
    "AutoencoderKLCosmos": {
        "latent_channels": 4,
        "encoder_block_out_channels": (8, 16, 16),
        "decode_block_out_channels": (8, 16, 16),
        "attention_resolutions": (),
        "num_layers": 1,
        "patch_type": "rearrange",
        "spatial_compression_ratio": 8,
        "temporal_compression_ratio": 4,
        "latents_mean": None,
        "latents_std": None,
    },
    "AutoencoderKLWan": {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "latents_mean": [0.1, 0.2, 0.3, 0.4],
        "latents_std": [1.0, 2.0, 3.0, 4.0],
        "scale_factor_spatial": 4,
    },
    "AutoencoderKLCogVideoX": {
        "block_out_channels": (8, 8, 8, 8),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "scaling_factor": 0.5,
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "patch_size": 2,
    },
}


def save_codec(name: str, folder: Path) -> Path:
    """A codec of the class `name` with random weights, as diffusers saves it."""
    diffusers = pytest.importorskip("diffusers", reason="codecs of diffusers need the extra genvid[lit]")
    torch.manual_seed(0)
    getattr(diffusers, name)(**CLASSES[name]).save_pretrained(folder)
    return folder


def cosmos(folder: Path, window: int | None = None) -> CodecConfig:
    """The configuration of a small Cosmos codec, made in `folder` when it is not there."""
    if not folder.exists():
        save_codec("AutoencoderKLCosmos", folder)
    return DiffusersCodecConfig(str(folder), codec_window=window)


def make_lit(codec: CodecConfig, *, causal: bool = True, trained: bool = True, resolution: int = 32) -> LIT:
    """LIT at 32x32 with a tiny inpainter; `trained` gives its last layer and its biases numbers that matter."""
    torch.manual_seed(1)
    config = InpainterConfig(StackConfig(32, 2, 2), context=3, tile=3, causal=causal)
    lit = LIT(LITConfig(codec, (resolution, resolution), config)).eval()
    lit.measure(drifting(2, 9))
    if trained:
        with torch.no_grad():
            inpainter = lit.inpainter
            around = [layer.weight for layer in inpainter.around]
            for parameter in (inpainter.output.weight, inpainter.lag_bias, inpainter.mask_embedding, *around):
                parameter.normal_(std=0.3)
    return lit


def drifting(clips: int = 2, frames: int = 17, size: int = 32) -> torch.Tensor:
    """(clips, 3, frames, size, size) in [-1, 1]: half of the picture moves, half stands still."""
    generator = torch.Generator().manual_seed(2)
    picture = torch.rand(clips, 3, size, size, generator=generator) * 2 - 1
    moving = torch.stack([picture.roll(frame, -1) for frame in range(frames)], 2)
    return torch.where(torch.arange(size) < size // 2, moving, picture[:, :, None].expand_as(moving))
