"""The metric of latents against the pixels that a decoder makes of them."""

from pathlib import Path

import pytest
import torch
from tiny_codecs import cosmos, drifting
from torch import Tensor

from genvid.tokenizer.lit.codecs.codec import Codec, Geometry
from genvid.tokenizer.lit.metric import by_metric, measure_metric


class LinearCodec(Codec):
    """Every latent of 3 channels is decoded alone, to 1 + 4 n frames of 8 x 8 pixels, by one matrix."""

    def __init__(self) -> None:
        super().__init__(
            "linear", Geometry(channels=3, temporal_stride=4, spatial_stride=8, chunk_frames=4, causal=True), None
        )
        self.basis = torch.randn(3, 3 * 4 * 64, generator=torch.Generator().manual_seed(0)) * torch.tensor(
            [[0.1], [1.0], [3.0]]
        )
        self.basis[1] += self.basis[2]

    def _encode(self, video: Tensor) -> Tensor:
        shape = len(video), 3, 1 + video.shape[2] // 4, video.shape[3] // 8, video.shape[4] // 8
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)) + torch.tensor([1.0, 2.0, 3.0]).view(
            1, 3, 1, 1, 1
        )

    def _decode(self, latents: Tensor) -> Tensor:
        cells = torch.einsum("bcghw,cp->bghwp", latents, self.basis)
        video = cells.unflatten(-1, (3, 4, 8, 8)).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return video.flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, 3:]


def test_a_change_counts_by_its_pixels() -> None:
    codec = LinearCodec()
    mean, metric, _ = measure_metric(codec, torch.zeros(2, 3, 33, 64, 64))
    change = torch.randn(100, 3, generator=torch.Generator().manual_seed(3))
    pixels = (change @ codec.basis).square().mean(-1).sqrt()
    told = by_metric(change, metric).square().mean(-1).sqrt()
    torch.testing.assert_close(told / told.mean(), pixels / pixels.mean(), rtol=0.1, atol=0)
    torch.testing.assert_close(mean, torch.tensor([1.0, 2.0, 3.0]), rtol=0, atol=0.1)


def test_a_squared_distance_is_told_in_pixels() -> None:
    codec = LinearCodec()
    _, metric, pixel_error = measure_metric(codec, torch.zeros(2, 3, 33, 64, 64))
    change = 0.3 * torch.randn(2, 3, 33, 8, 8, generator=torch.Generator().manual_seed(4))
    distance = float(by_metric(change.movedim(1, -1), metric).square().mean())
    assert pixel_error * distance == pytest.approx(float((codec.decode(change) / 2).square().mean()), rel=0.1)


def test_it_holds_for_small_changes_of_a_network(tmp_path: Path) -> None:
    """Directions in latents rank by the metric as by the squared change of the decoded pixels, on average."""
    codec, video = cosmos(tmp_path / "codec").load(), drifting(4, 17)
    mean, metric, _ = measure_metric(codec, video)
    latents, generator = codec.encode(video), torch.Generator().manual_seed(0)
    assert float(by_metric(latents.movedim(1, -1) - mean, metric).square().mean()) == pytest.approx(1, rel=1e-4)
    told, changed = [], []
    with torch.no_grad():
        restored = codec.decode(latents)
        for direction in torch.randn(8, 4, generator=generator):
            told.append(by_metric(direction, metric).square().sum())
            changed.append(torch.tensor(0.0))
            for position in range(0, 16, 3):
                moved = latents.clone()
                moved[:, :, 2, position // 4, position % 4] += 1e-3 * direction
                changed[-1] += (codec.decode(moved) - restored).square().sum()
    told, changed = torch.stack(told), torch.stack(changed)
    torch.testing.assert_close(told / told.mean(), changed / changed.mean(), rtol=0.2, atol=0)


def test_it_is_full_precision_under_autocast() -> None:
    latents, metric = torch.randn(8, 3), torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        told = by_metric(latents, metric)
    assert torch.equal(told, latents @ metric)


def test_a_single_frame_tells_no_metric(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clips of several latent frames, got 1 frames"):
        measure_metric(cosmos(tmp_path / "codec").load(), drifting(1, 1))
