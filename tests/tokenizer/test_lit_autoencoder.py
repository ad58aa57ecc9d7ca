"""The small autoencoder that stands in for published codecs."""

import pytest
import torch
from tiny_codecs import drifting

from genvid.tokenizer.lit.codecs.autoencoder import AutoencoderConfig, VideoAutoencoder
from genvid.tokenizer.lit.codecs.diffusers_codec import CosmosCodec
from genvid.tokenizer.lit.metric import measure_metric


@pytest.fixture
def codec() -> CosmosCodec:
    pytest.importorskip("diffusers", reason="the autoencoder is one of diffusers: extra genvid[lit]")
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=32, encoder_widths=(16, 32, 32), decoder_widths=(32, 32, 32), layers=1)
    return CosmosCodec(VideoAutoencoder(config).network.eval(), None)


def test_an_untrained_decoder_reads_all_channels_and_the_encoder_fills_them(codec: CosmosCodec) -> None:
    video = drifting(4, 17, 64)
    reads = torch.linalg.eigvalsh(measure_metric(codec, video)[1])
    assert reads.min() > 0.1 * reads.max()
    latents = codec.encode(video).movedim(1, -1).flatten(0, -2)
    spread = torch.linalg.svdvals(latents - latents.mean(0))
    assert spread.min() > 0.01 * spread.max()
