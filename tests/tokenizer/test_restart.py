"""Restart of unused codes: which codes, by which latents, and what else stays as it is."""

import pytest
import torch
from test_adaptok_tasks import DROP, MODEL, NETWORK, make_batch, make_distortion
from torch.nn.functional import normalize

from genvid import noise
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.discriminator import DiscriminatorConfig
from genvid.tokenizer.adaptok.tasks import AdapTokTask, AdversarialAdapTokTask, ObjectiveConfig, code_counts
from genvid.tokenizer.quantizer import FSQConfig, VQConfig
from genvid.tokenizer.restart import CodeRestart, RestartConfig
from genvid.train.ema import ExponentialAverage

GO, SKIP = torch.tensor(0.0), torch.tensor(1.0)


def offer(clips: int = 5):
    """A quantizer, its restart, latents of some clips with dropped tokens, and the seeds of the clips."""
    torch.manual_seed(0)
    quantizer = VQConfig(codebook_size=16, code_dim=3).build(6, 4)
    seeds = noise.sample_seeds(0, "clips", torch.arange(clips))
    keep = torch.arange(8) < 1 + torch.arange(2 * clips).view(clips, 2, 1) % 8
    return (
        quantizer,
        CodeRestart(RestartConfig(0.5, 0.9), 16),
        quantizer(torch.randn(clips, 2, 8, 6), keep),
        keep,
        seeds,
    )


def test_every_clip_offers_kept_latents_and_the_sums_do_not_depend_on_the_batch():
    _, restart, quantized, keep, seeds = offer()
    sums = restart.sums(quantized, keep, seeds)
    expected = torch.zeros(16, 4, dtype=torch.double)
    order = noise.uniform(seeds, "offered tokens", 2, 8)
    for clip in range(5):
        kept = [(g, n) for g in range(2) for n in range(8) if keep[clip, g, n]]
        first = sorted(kept, key=lambda token: order[clip][token], reverse=True)[:4]
        codes = (16 * noise.uniform(seeds[clip : clip + 1], "restarted codes", 4)[0]).long()
        for code, token in zip(codes.tolist(), first, strict=False):
            direction = normalize(quantized.latents[clip][token], dim=0).double()
            expected[code] += torch.cat([torch.ones(1).double(), direction])
    torch.testing.assert_close(sums, expected)


def test_only_unused_codes_with_an_offer_are_replaced_and_keep_their_norm():
    quantizer, restart, quantized, keep, seeds = offer()
    sums = restart.sums(quantized, keep, seeds)
    restart.usage[::2] = 0.1
    before = quantizer.embedding.detach().clone()
    expected = (restart.usage < 0.5) & (sums[:, 0] > 0)
    assert not restart.replace(quantizer, sums, SKIP).any()
    assert not restart.replace(quantizer, sums * torch.nan, GO).any()
    assert quantizer.embedding.equal(before)
    assert restart.replace(quantizer, sums, GO).equal(expected)
    assert expected.any()
    assert not expected.all()
    rows = normalize(sums[expected, 1:].float(), dim=-1) * before[expected].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(quantizer.embedding[expected].detach(), rows)
    assert quantizer.embedding[~expected].equal(before[~expected])
    assert restart.usage[expected].eq(1).all()
    assert restart.usage[::2][~expected[::2]].eq(0.1).all()


def test_shares_are_in_units_of_an_equal_share():
    restart = CodeRestart(RestartConfig(0.5, 0.75), 4)
    restart.update(torch.tensor([8.0, 4.0, 4.0, 0.0]).double())
    torch.testing.assert_close(restart.usage, torch.tensor([1.25, 1.0, 1.0, 0.75]))


def test_the_moving_average_of_replaced_rows_starts_again():
    torch.manual_seed(0)
    objective = ObjectiveConfig(tail_drop=DROP, prior=None, restart=RestartConfig(0.9, 0.5))
    task = AdversarialAdapTokTask(MODEL, objective, make_distortion(), DiscriminatorConfig(transformer=NETWORK)).train()
    average = ExponentialAverage(task.tokenizer, 0.99)
    output = task(make_batch(), "generator", 0, {})
    task.update_statistics("generator", 0, output.sums)
    held = average.averages["quantizer.embedding"].clone()
    replaced = task.replace_weights("generator", output.sums, GO)
    average.restart(replaced)
    rows = replaced["quantizer.embedding"]
    assert 0 < rows.sum() < len(rows)
    assert average.averages["quantizer.embedding"][rows].equal(task.tokenizer.quantizer.embedding[rows])
    assert average.averages["quantizer.embedding"][~rows].equal(held[~rows])
    assert task.replace_weights("discriminator", {}, GO) == {}
    assert not any("restart" in name for name in task.exportable().state_dict())


def test_restart_brings_a_collapsed_codebook_into_use():
    torch.manual_seed(0)
    quantizer = VQConfig(codebook_size=64, code_dim=8).build(8, 4).train()
    restart = CodeRestart(RestartConfig(0.1, 0.9), 64)
    cone = 0.3 * torch.randn(16, 4, 16, 8) + torch.randn(8)
    keep = torch.ones(16, 4, 16, dtype=torch.bool)
    before = quantizer(cone, keep)
    for step in range(60):
        seeds = noise.sample_seeds(step, "clips", torch.arange(16))
        quantized = quantizer(cone, keep, seeds)
        restart.update(code_counts(quantized, keep, 64))
        restart.replace(quantizer, restart.sums(quantized, keep, seeds), GO)
    after = quantizer(cone, keep)
    assert len(before.codes.unique()) < 24
    assert len(after.codes.unique()) > 48
    assert after.loss.mean() < 0.5 * before.loss.mean()


def test_a_fixed_grid_of_codes_has_nothing_to_restart():
    model = AdapTokConfig(**{**MODEL.__dict__, "quantizer": FSQConfig((4, 4))})
    with pytest.raises(ValueError, match="learned codebook"):
        AdapTokTask(model, ObjectiveConfig(restart=RestartConfig()), make_distortion())
    with pytest.raises(ValueError, match="between 0 and 1"):
        RestartConfig(threshold=0.0)
