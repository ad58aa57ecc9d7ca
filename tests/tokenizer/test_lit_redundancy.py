"""The redundancy rule against a slow one, budgets to the token, fillers and masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genvid.allocation import BudgetError
from genvid.tokenizer.lit.mask_rate import mask_bits
from genvid.tokenizer.lit.redundancy import (
    BudgetedRedundancy,
    Distances,
    RedundancyAllocator,
    RedundancyConfig,
    calibrate_threshold,
    find_thresholds,
)
from genvid.tokenizer.lit.redundancy import walk as rule
from genvid.tokenizer.lit.reference import Reference, interpolate, last_kept
from genvid.tokens import BlockTokens

METRIC = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.5, 0.0], [0.3, 0.0, 2.0]])


def walk(clips: int = 2, blocks: int = 6, capacity: int = 8, seed: int = 0) -> BlockTokens:
    """Tokens whose latents are random walks, faster at some positions."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(clips, blocks, capacity, 3, generator=generator)
    latents = (steps * torch.linspace(0, 1, capacity)[:, None]).cumsum(1) * torch.tensor([1.0, 2.0, 0.5])
    return BlockTokens(torch.ones(latents.shape[:3], dtype=torch.bool), latents=latents)


def slow_rule(latents: torch.Tensor, threshold: float, reference: str) -> torch.Tensor:
    keep = torch.ones(latents.shape[:3], dtype=torch.bool)
    for clip in range(latents.shape[0]):
        for slot in range(latents.shape[2]):
            held = latents[clip, 0, slot]
            for block in range(1, latents.shape[1]):
                now = latents[clip, block, slot]
                distance = float(((now - held) @ METRIC).abs().mean())
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
    assert BudgetedRedundancy(20, METRIC)(still).lengths.tolist() == [[8, 0, 0, 0, 0, 0]] * 2
    assert RedundancyAllocator(RedundancyConfig(0), METRIC)(tokens).keep.all()
    assert RedundancyAllocator(RedundancyConfig(0), METRIC)(still).keep.all()


def test_a_stream_in_chunks_keeps_what_one_call_keeps() -> None:
    tokens, allocator = walk(blocks=9), RedundancyAllocator(RedundancyConfig(0.6), METRIC)
    assert tokens.latents is not None
    whole, parts, start = allocator(tokens).keep, [], None
    for keep, latents in zip(tokens.keep.split(4, 1), tokens.latents.split(4, 1), strict=True):
        part = allocator.continued(BlockTokens(keep, latents=latents), start)
        filled, age = last_kept(latents, part.keep, start)
        start = Reference(filled[:, -1], age[:, -1])
        parts.append(part.keep)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert not whole[:, 1:].all()


def test_thresholds_side_by_side_are_thresholds_one_by_one() -> None:
    latents = walk(clips=3).latents
    assert latents is not None
    measured, levels = latents @ METRIC, torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    for start in (None, torch.randn(3, 8, 3)):
        distances = Distances(measured, start)
        together = torch.stack([keep for keep, _ in distances.walk(levels)], 1)
        assert torch.equal(distances.count(levels), together.sum((1, 3)))
        for index in range(5):
            assert torch.equal(together[:, :, index], rule(measured, levels[:, index], start))
        assert distances.count(distances.highest()[:, None]).flatten().tolist() == [8 if start is None else 0] * 3


def test_the_threshold_that_is_found_leaves_little_of_the_budget() -> None:
    latents = walk(clips=4, blocks=12, capacity=64).latents
    assert latents is not None
    wanted = torch.tensor([100, 200, 400, 700])
    kept = rule(latents @ METRIC, find_thresholds(Distances(latents @ METRIC), wanted), None).sum((1, 2))
    assert (kept <= wanted).all()
    assert (kept >= 0.98 * wanted).all()


@settings(max_examples=30, deadline=None)
@given(positions=st.integers(8, 48), seed=st.integers(0, 100))
def test_budgets_are_met_to_the_token(positions: int, seed: int) -> None:
    # Position 0 never moves: its five later latents are redundant.
    kept = BudgetedRedundancy(positions, METRIC)(walk(seed=seed)).keep
    assert kept.sum((1, 2)).tolist() == [min(positions, 43)] * 2
    assert kept[:, 0].all()


def test_budgets_of_a_period_bound_every_period() -> None:
    kept = BudgetedRedundancy(10, METRIC, period=2)(walk(blocks=7)).keep
    assert [part.sum((1, 2)).tolist() for part in kept.split(2, 1)] == [[10, 10]] * 3 + [[7, 7]]


def test_budgets_go_to_what_changes_most() -> None:
    tokens = walk(clips=1)
    assert tokens.latents is not None
    kept = BudgetedRedundancy(20, METRIC)(tokens).keep
    filled = last_kept(tokens.latents, kept)[0]
    random = kept.clone()
    generator = torch.Generator().manual_seed(0)
    random[0, 1:] = (torch.randperm(40, generator=generator) < 12).view(5, 8)
    worse = last_kept(tokens.latents, random)[0]
    assert ((filled - tokens.latents) @ METRIC).abs().mean() < 0.8 * ((worse - tokens.latents) @ METRIC).abs().mean()


def test_bad_budgets_and_tokens_are_one_sentence() -> None:
    with pytest.raises(
        BudgetError, match="7 positions is below the floor: the first block is kept whole, and it has 8"
    ):
        BudgetedRedundancy(7, METRIC)(walk())
    with pytest.raises(BudgetError, match="below the floor"):
        calibrate_threshold([torch.zeros(1, 4, 8, 3)], METRIC, 0.1)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        RedundancyConfig(-1)
    with pytest.raises(ValueError, match="3 channels, the allocator's metric 2"):
        RedundancyAllocator(RedundancyConfig(1), METRIC[:2])(walk())
    with pytest.raises(ValueError, match="no latents"):
        BudgetedRedundancy(9, METRIC)(BlockTokens(torch.ones(1, 2, 8, dtype=torch.bool)))


def test_a_calibrated_threshold_gives_its_rate() -> None:
    batches = [walk(clips=8, capacity=16, seed=seed) for seed in range(3)]
    for rate in (0.25, 0.5, 0.8):
        threshold = calibrate_threshold([batch.latents for batch in batches], METRIC, rate)  # type: ignore[misc]
        allocator = RedundancyAllocator(RedundancyConfig(threshold), METRIC)
        kept = torch.cat([allocator(batch).keep for batch in batches]).double().mean()
        assert rate - 0.02 < kept <= rate
    assert calibrate_threshold([batches[0].latents], METRIC, 1.0) == 0  # type: ignore[list-item]


def test_fillers_by_hand() -> None:
    latents = torch.tensor([1.0, 9, 9, 4, 9]).view(1, 5, 1, 1)
    keep = torch.tensor([True, False, False, True, False]).view(1, 5, 1)
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
