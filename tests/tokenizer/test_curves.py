"""Measured curves: the distortion of real decodes, each once, in batches that fit."""

import pytest
import torch

from genvid.perceptual import StructureDistance
from genvid.tokenizer.adaptok import curves as measured
from genvid.tokenizer.adaptok.config import AdapTokConfig, RotaryGeometry
from genvid.tokenizer.adaptok.curves import MeasuredCurves, measure_curve
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.losses import Distortion, DistortionConfig
from genvid.tokenizer.quantizer import VQConfig

SIZES = torch.tensor([1, 2, 4])
NETWORK = StackConfig(16, 1, 2)
GEOMETRY = RotaryGeometry(window=1, sides=(16, 32))


@pytest.mark.parametrize("changes", [{}, {"pooled_queries": True}, {"pooled_queries": True, "geometry": GEOMETRY}])
@torch.no_grad()
def test_a_measured_curve_is_the_distortion_of_real_decodes(changes):
    torch.manual_seed(0)
    network = StackConfig(24, 2, 2)
    tokenizer = AdapTok(AdapTokConfig(16, (16, 16), (4, 8, 8), 6, network, network, VQConfig(20, 4), **changes)).eval()
    torch.nn.init.normal_(tokenizer.output.weight, std=0.1)
    video, distortion = torch.rand(3, 3, 16, 16, 16) * 2 - 1, Distortion(DistortionConfig(l1=1.0), StructureDistance())
    lengths, sizes = torch.tensor([[4, 6, 2, 6], [1, 6, 0, 6], [6, 6, 6, 6]]), (1, 3, 6)
    for block in range(4):
        cut = lengths.clone()
        cut[:, block] = 6
        tokens = tokenizer.encode(video).tail_drop(cut)
        curve = measure_curve(tokenizer, tokens, video, block, sizes, distortion)
        frames = slice(4 * block, 4 * block + 4)
        for k, size in enumerate(sizes):
            cut[:, block] = size
            decoded = tokenizer.decode(tokens.tail_drop(cut)).clamp(-1, 1)
            expected = distortion(decoded[:, :, frames], video[:, :, frames])
            torch.testing.assert_close(curve[:, k], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("batch_size", "most"), [(7, 6), (2, 3), (100, 15)])
@torch.no_grad()
def test_curves_are_measured_once_in_batches_that_fit(monkeypatch, batch_size, most):
    torch.manual_seed(0)
    tokenizer = AdapTok(AdapTokConfig(8, (16, 16), (4, 8, 8), 4, NETWORK, NETWORK, VQConfig(20, 4))).eval()
    torch.nn.init.normal_(tokenizer.output.weight, std=0.1)
    video = torch.rand(5, 3, 8, 16, 16) * 2 - 1
    tokens, distortion = tokenizer.encode(video), Distortion(DistortionConfig(), StructureDistance())
    decoded = []

    def counted(tokenizer, tokens, video, block, sizes, distortion):
        decoded.append(len(video) * len(sizes))
        return measure_curve(tokenizer, tokens, video, block, sizes, distortion)

    monkeypatch.setattr(measured, "measure_curve", counted)
    curves = MeasuredCurves(tokenizer, video, SIZES, distortion, batch_size=batch_size)
    for block in (0, 1):
        expected = measure_curve(tokenizer, tokens, video, block, SIZES.tolist(), distortion)
        assert torch.allclose(curves.predict(tokens, block), expected, atol=1e-6)
    assert max(decoded) == most
    assert sum(decoded) == 2 * 5 * 3
    curves.predict(tokens, 0)
    assert sum(decoded) == 2 * 5 * 3
