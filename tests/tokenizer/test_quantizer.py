"""Both quantizers keep one contract; VQ samples as it says; losses count kept tokens only."""

import itertools

import pytest
import torch
from torch.nn.functional import normalize

from genvid.tokenizer import quantizer as module
from genvid.tokenizer.quantizer import FSQConfig, VQConfig

CONFIGS = [VQConfig(codebook_size=24, code_dim=6), FSQConfig(levels=(4, 3, 2))]
SEEDS = torch.tensor([3, 8, 1])


@pytest.fixture(params=CONFIGS, ids=["vq", "fsq"])
def quantizer(request):
    torch.manual_seed(0)
    return request.param.build(10, 14)


def features(batch=3):
    torch.manual_seed(1)
    return 2 * torch.randn(batch, 2, 7, 10)


def kept(batch=3):
    return torch.ones(batch, 2, 7, dtype=torch.bool)


def test_contract(quantizer):
    quantized = quantizer(features(), kept())
    assert quantized.codes.dtype == torch.int64
    assert 0 <= quantized.codes.min() <= quantized.codes.max() < quantizer.codebook_size == 24
    assert quantized.vectors.shape == (3, 2, 7, quantizer.code_dim)
    assert quantized.loss.shape == (3,)
    assert quantizer.project(quantized.vectors).shape == (3, 2, 7, 14)
    torch.testing.assert_close(quantizer.lookup(quantized.codes), quantized.vectors)
    assert quantizer.encode(features()).equal(quantized.codes)
    torch.testing.assert_close(quantizer.codebook()[quantized.codes], quantizer.lookup(quantized.codes))


def test_eval_ignores_seeds(quantizer):
    assert quantizer.eval()(features(), kept(), SEEDS).codes.equal(quantizer.encode(features()))


def test_float32_under_autocast(quantizer):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized = quantizer(features(), kept())
    assert quantized.vectors.dtype == torch.float32
    assert quantized.codes.equal(quantizer.encode(features()))


def test_loss_of_kept_tokens_is_the_loss_of_the_unpadded_clip():
    quantizer = CONFIGS[0].build(10, 14)
    keep = kept()
    keep[:, :, 4:] = False
    short = quantizer(features()[:, :, :4], keep[:, :, :4]).loss
    torch.testing.assert_close(quantizer(features(), keep).loss, short)
    torch.testing.assert_close(quantizer(features()[1:2], keep[1:2]).loss, short[1:2])
    assert quantizer(features(), torch.zeros_like(keep)).loss.tolist() == [0, 0, 0]


def test_vq_picks_the_nearest_direction_and_weighs_its_loss(monkeypatch):
    config = VQConfig(codebook_size=24, code_dim=6, commitment_weight=0.5, codebook_weight=3.0)
    quantizer = config.build(10, 14)
    latents = normalize(quantizer.input(features()), dim=-1)
    distances = torch.cdist(latents, normalize(quantizer.embedding, dim=-1)[None])
    monkeypatch.setattr(module, "_SIMILARITIES", 24 * 5)
    quantized = quantizer(features(), kept())
    assert quantized.codes.equal(distances.argmin(-1))
    torch.testing.assert_close(quantized.loss, 3.5 * (distances.amin(-1) ** 2 / 6).mean((1, 2)))


def test_vq_gradients_pass_straight_through():
    quantizer = CONFIGS[0].build(10, 14)
    x = features().requires_grad_()
    target = torch.randn(3, 2, 7, 6)
    (quantizer(x, kept()).vectors * target).sum().backward()
    assert quantizer.embedding.grad is None
    straight, x.grad = x.grad, None
    (normalize(quantizer.input(x), dim=-1) * target).sum().backward()
    torch.testing.assert_close(x.grad, straight)
    quantizer(x, kept()).loss.sum().backward()
    assert quantizer.embedding.grad.abs().sum() > 0


def test_vq_samples_by_similarity(monkeypatch):
    quantizer = VQConfig(codebook_size=5, code_dim=4, temperature=0.5).build(4, 4)
    x = torch.randn(4).expand(8, 1, 2500, 4)
    every = torch.ones(8, 1, 2500, dtype=torch.bool)
    codes = quantizer(x, every, torch.arange(8)).codes
    similarity = normalize(quantizer.input(x[0, 0, 0]), dim=0) @ normalize(quantizer.embedding, dim=-1).T
    frequency = codes.flatten().bincount(minlength=5) / codes.numel()
    torch.testing.assert_close(frequency, (similarity / 0.5).softmax(-1), atol=0.015, rtol=0)
    monkeypatch.setattr(module, "_SIMILARITIES", 5 * 999)
    assert quantizer(x, every, torch.arange(8)).codes.equal(codes)


def test_vq_samples_nearest_codes_at_a_temperature_near_zero():
    torch.manual_seed(0)
    quantizer = VQConfig(codebook_size=24, code_dim=6, temperature=1e-5).build(10, 14)
    sampled = quantizer(features(), kept(), SEEDS).codes
    assert sampled.equal(quantizer.encode(features()))
    assert len(sampled.unique()) > 1


def test_samples_belong_to_the_clip():
    torch.manual_seed(0)
    quantizer = VQConfig(codebook_size=24, code_dim=6, temperature=1.0).build(10, 14)
    codes = quantizer(features(), kept(), SEEDS).codes
    assert quantizer(features()[1:2], kept(1), SEEDS[1:2]).codes.equal(codes[1:2])
    assert not quantizer(features(), kept(), SEEDS + 1).codes.equal(codes)


@pytest.mark.parametrize("levels", [(2,), (4, 3, 2), (5, 8)])
def test_fsq_reaches_every_code_and_inverts(levels):
    quantizer = FSQConfig(levels).build(len(levels), 4)
    with torch.no_grad():
        quantizer.input.weight.copy_(torch.eye(len(levels)))
        quantizer.input.bias.zero_()
    grid = torch.linspace(-9, 9, 61 if len(levels) < 3 else 31)
    latents = torch.tensor(list(itertools.product(grid.tolist(), repeat=len(levels))))
    codes = quantizer.encode(latents)
    assert codes.unique().tolist() == list(range(quantizer.codebook_size))
    codebook = quantizer.codebook()
    assert len(codebook.unique(dim=0)) == quantizer.codebook_size
    assert codebook.abs().max() <= 1
    for channel, count in enumerate(levels):
        assert len(codebook[:, channel].unique()) == count
    quantized = quantizer(latents.view(1, 1, *latents.shape), torch.ones(1, 1, len(latents), dtype=torch.bool))
    torch.testing.assert_close(quantized.vectors[0, 0], codebook[codes])
    assert quantized.loss.tolist() == [0]


def test_fsq_gradients_pass_straight_through():
    x = features().requires_grad_()
    CONFIGS[1].build(10, 14)(x, kept()).vectors.sum().backward()
    assert (x.grad.abs().sum((0, 1, 2)) > 0).all()


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8])
def test_fsq_uses_all_levels_of_latents_around_zero_and_has_gradients_there(levels):
    quantizer = FSQConfig((levels,)).build(1, 4)
    latents = torch.randn(1, 1, 4000, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    quantized = quantizer.quantize(latents, torch.ones(1, 1, 4000, dtype=torch.bool))
    share = quantized.codes.flatten().bincount(minlength=levels) / 4000
    assert share.min() > 0.2 / levels
    (gradient,) = torch.autograd.grad(quantized.vectors.sum(), latents)
    assert gradient.mean() > 0.2


def test_fsq_with_one_level_is_refused():
    with pytest.raises(ValueError, match="at least 2 levels"):
        FSQConfig(levels=(4, 1))
