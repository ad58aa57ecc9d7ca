"""The redundancy rule against a slow one, fillers and masks."""

import math

import pytest
import torch
from drifts import METRIC, walk

from genvid.allocation import BudgetError
from genvid.tokenizer.lit.budget import BudgetAllocator, PriceAllocator
from genvid.tokenizer.lit.redundancy import (
    RedundancyAllocator,
    RedundancyConfig,
    calibrate_threshold,
)
from genvid.tokenizer.lit.reference import Reference, interpolate, interval_means, last_kept
from genvid.tokens import BlockTokens
from genvid.tokens.masks import mask_bits


def by_threshold(threshold: float) -> RedundancyAllocator:
    return RedundancyAllocator(RedundancyConfig(threshold), METRIC)


def slow_rule(latents: torch.Tensor, threshold: float, reference: str) -> torch.Tensor:
    keep = torch.ones(latents.shape[:3], dtype=torch.bool)
    for clip in range(latents.shape[0]):
        for slot in range(latents.shape[2]):
            held = latents[clip, 0, slot]
            for block in range(1, latents.shape[1]):
                now = latents[clip, block, slot]
                distance = float(((now - held) @ METRIC).square().mean().sqrt())
                keep[clip, block, slot] = distance >= threshold
                if keep[clip, block, slot] or reference == "previous":
                    held = now
    return keep


@pytest.mark.parametrize("reference", ["last_kept", "previous"])
def test_the_rule_is_the_slow_rule(reference: str) -> None:
    tokens = walk()
    assert tokens.latents is not None
    for threshold in (0.0, 0.2, 0.7, 1.5):
        kept = RedundancyAllocator(RedundancyConfig(threshold, reference), METRIC)(tokens).keep  # type: ignore[arg-type]
        assert torch.equal(kept, slow_rule(tokens.latents, threshold, reference))


def test_the_two_references_differ_in_slow_drift() -> None:
    latents = torch.arange(10.0).view(1, 10, 1, 1).repeat(1, 1, 4, 3) * 0.3 * torch.linalg.inv(METRIC).sum(0)
    tokens = BlockTokens(torch.ones(1, 10, 4, dtype=torch.bool), latents=latents)
    assert RedundancyAllocator(RedundancyConfig(1.0, "previous"), METRIC)(tokens).keep.sum() == 4
    assert RedundancyAllocator(RedundancyConfig(1.0), METRIC)(tokens).lengths[0].tolist() == [
        4,
        0,
        0,
        0,
        4,
        0,
        0,
        0,
        4,
        0,
    ]


def test_a_static_clip_keeps_its_first_block_and_threshold_zero_keeps_all() -> None:
    tokens = walk()
    assert tokens.latents is not None
    still = BlockTokens(tokens.keep, latents=tokens.latents[:, :1].expand_as(tokens.latents))
    assert RedundancyAllocator(RedundancyConfig(1e-6), METRIC)(still).lengths.tolist() == [[8, 0, 0, 0, 0, 0]] * 2
    assert RedundancyAllocator(RedundancyConfig(0), METRIC)(tokens).keep.all()
    assert RedundancyAllocator(RedundancyConfig(0), METRIC)(still).keep.all()


def test_a_stream_in_chunks_keeps_what_one_call_keeps() -> None:
    tokens, allocator = walk(blocks=9), RedundancyAllocator(RedundancyConfig(0.6), METRIC)
    assert tokens.latents is not None
    whole, parts, start = allocator(tokens).keep, [], None
    for keep, latents in zip(tokens.keep.split(4, 1), tokens.latents.split(4, 1), strict=True):
        part = allocator.allocate_chunk(BlockTokens(keep, latents=latents), start)
        filled, age = last_kept(latents, part.keep, start)
        start = Reference(filled[:, -1], age[:, -1])
        parts.append(part.keep)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert not whole[:, 1:].all()


def test_bad_rates_and_tokens_are_one_sentence() -> None:
    with pytest.raises(BudgetError, match="below the floor"):
        calibrate_threshold([torch.zeros(1, 4, 8, 3)], 0.1, by_threshold)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        RedundancyConfig(-1)
    with pytest.raises(ValueError, match="3 channels, the allocator's metric 2"):
        RedundancyAllocator(RedundancyConfig(1), METRIC[:2])(walk())
    with pytest.raises(ValueError, match="no latents"):
        RedundancyAllocator(RedundancyConfig(1), METRIC)(BlockTokens(torch.ones(1, 2, 8, dtype=torch.bool)))


def test_a_calibrated_threshold_gives_its_rate() -> None:
    batches = [walk(clips=8, capacity=16, seed=seed) for seed in range(3)]
    for rate in (0.25, 0.5, 0.8):
        threshold = calibrate_threshold([batch.latents for batch in batches], rate, by_threshold)  # type: ignore[misc]
        allocator = by_threshold(threshold)
        kept = torch.cat([allocator(batch).keep for batch in batches]).double().mean()
        assert rate - 0.02 < kept <= rate
    assert calibrate_threshold([batches[0].latents], 1.0, by_threshold) == 0  # type: ignore[list-item]


def test_fillers_and_means_by_hand() -> None:
    latents = torch.tensor([1.0, 9, 9, 4, 9]).view(1, 5, 1, 1)
    keep = torch.tensor([True, False, False, True, False]).view(1, 5, 1)
    assert interval_means(latents, keep)[keep].flatten().tolist() == [pytest.approx(19 / 3), 6.5]
    assert torch.equal(interval_means(latents, torch.ones_like(keep)), latents)
    filled, age = last_kept(latents, keep)
    assert filled.flatten().tolist() == [1, 1, 1, 4, 4]
    assert age.flatten().tolist() == [0, 1, 2, 0, 1]
    assert interpolate(latents, keep).flatten().tolist() == [1, 2, 3, 4, 4]


def test_a_mask_costs_what_its_decoder_needs() -> None:
    whole = torch.ones(1, 3, 16, dtype=torch.bool)
    assert mask_bits(whole, 4).tolist() == pytest.approx([3 * math.log2(3)])
    half = whole.clone()
    half[:, 1:] = torch.arange(16) % 4 < 2
    noise = whole.clone()
    noise[:, 1:] = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    assert float(mask_bits(half, 4)) < float(mask_bits(noise, 4))
    long = half[:, 1:2].repeat(1, 40, 1)
    assert float(mask_bits(long, 4)) / 40 < 4 < 16


def test_a_random_mask_costs_about_a_bit_a_position_and_a_decoder_could_follow() -> None:
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(1, 50, 64, generator=generator) < 0.5
    assert 50 * 64 < float(mask_bits(keep, 8)) < 1.05 * 50 * 64
    assert mask_bits(torch.cat([keep, ~keep]), 8)[0] == mask_bits(keep, 8)[0]
    # What is told so far never depends on what comes: the cost of a prefix is the first part of the whole cost.
    assert float(mask_bits(keep[:, :20], 8)) < float(mask_bits(keep[:, :21], 8))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_latents_that_are_no_numbers_are_refused_by_every_rule(bad: float) -> None:
    tokens = walk()
    assert tokens.latents is not None
    tokens.latents[0, -1, 0, 0] = bad
    for rule in (by_threshold(0.5), PriceAllocator(0.5, METRIC), BudgetAllocator(999, METRIC)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            rule(tokens)
