"""Measured curves: each once, in batches that fit."""

import pytest
import torch

from genvid.perceptual import StructureDistance
from genvid.tokenizer.adaptok import curves as measured
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.curves import MeasuredCurves, measure_curve
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.losses import Distortion, DistortionConfig
from genvid.tokenizer.quantizer import VQConfig

SIZES = torch.tensor([1, 2, 4])


@pytest.mark.parametrize(("batch_size", "most"), [(7, 6), (2, 3), (100, 15)])
@torch.no_grad()
def test_curves_are_measured_once_in_batches_that_fit(monkeypatch, batch_size, most):
    torch.manual_seed(0)
    network = StackConfig(16, 1, 2)
    tokenizer = AdapTok(AdapTokConfig(8, (16, 16), (4, 8, 8), 4, network, network, VQConfig(20, 4))).eval()
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
