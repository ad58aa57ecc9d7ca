"""The codec that starts from principal components."""

from pathlib import Path

import pytest
import torch
from tiny_codecs import drifting, make_lit

from genvid.provenance import Origin
from genvid.tokenizer.lit.codecs.cells import CellAutoencoder, CellAutoencoderConfig, CellCodec, CellCodecConfig
from genvid.tokenizer.lit.model import LIT


def components(channels: int, video: torch.Tensor) -> CellAutoencoder:
    torch.manual_seed(0)
    model = CellAutoencoder(CellAutoencoderConfig(channels, width=8, encoder_depth=1, decoder_depth=1))
    model.start_from_components(video)
    return model.eval()


def trained(channels: int = 6) -> CellAutoencoder:
    """With networks that add something."""
    model = components(channels, drifting(2, 9, 32))
    for network in (model.encoder, model.decoder):
        torch.nn.init.normal_(network.output.weight, std=0.1)
    return model


def test_it_starts_as_the_best_linear_codec_of_its_cells() -> None:
    video = drifting(4, 9, 32)
    cells = video[:, :, 1:].unfold(2, 4, 4).unfold(3, 8, 8).unfold(4, 8, 8).movedim(1, 4).reshape(-1, 768)
    variances = torch.linalg.eigvalsh(torch.cov(cells.double().T, correction=0)).flip(0)
    restored, latents = components(6, video)(video)
    error = (restored - video)[:, :, 1:].double().square().mean() * 768
    torch.testing.assert_close(error, variances[6:].sum(), rtol=1e-3, atol=1e-4)
    later = latents[:, :, 1:].movedim(1, 0).flatten(1)
    torch.testing.assert_close(later.std(1), torch.ones(6), rtol=0.1, atol=0.02)


def test_it_does_not_look_ahead_and_every_number_of_its_latents_counts() -> None:
    codec, video = CellCodec(trained(), None), drifting(1, 17, 32)
    changed = video.clone()
    changed[:, :, 9:] = 0.5
    before, after = codec.encode(video), codec.encode(changed)
    assert before.shape == (1, 6, 5, 4, 4)
    torch.testing.assert_close(before[:, :, :3], after[:, :, :3])
    restored = codec.decode(torch.cat([before[:, :, :3], after[:, :, 3:]], 2))
    torch.testing.assert_close(restored[:, :, :9], codec.decode(before)[:, :, :9], atol=1e-5, rtol=1e-4)
    latents = before.clone().requires_grad_()
    codec.decode(latents).square().sum().backward()
    assert latents.grad is not None
    assert bool((latents.grad != 0).all())


def test_lit_on_it_is_saved_and_loaded_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    model, video = trained(), drifting(2, 9, 32)
    model.moments[0] += 0.5
    model.save(tmp_path / "codec")
    lit = make_lit(CellCodecConfig(str(tmp_path / "codec")))
    lit.origin = Origin({"codec": lit.codec.fingerprint()})
    lit.save(tmp_path / "lit")
    again = LIT.load(tmp_path / "lit")
    assert again.codec.fingerprint() == lit.codec.fingerprint()
    assert again.decode(again.encode(video)).equal(lit.decode(lit.encode(video)))


def test_a_folder_of_it_is_a_codec_of_lit(tmp_path: Path) -> None:
    model, video = trained(), drifting(1, 9, 32)
    model.save(tmp_path)
    lit = make_lit(CellCodecConfig(str(tmp_path)))
    torch.testing.assert_close(lit.decode(lit.encode(video)), model(video)[0].detach(), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="channels are 1 to 768"):
        CellAutoencoderConfig(769)
