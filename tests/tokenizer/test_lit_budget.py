"""Budgets of latents: met to the token, and spent as well as they can be."""

from itertools import product

import pytest
import torch
from drifts import METRIC, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from genvid.allocation import BudgetError
from genvid.tokenizer.lit.budget import (
    BudgetAllocator,
    ClipBudget,
    Paths,
    PriceAllocator,
    calibrate_prices,
    clip_shares,
)
from genvid.tokenizer.lit.redundancy import RedundancyAllocator, RedundancyConfig, calibrate_threshold
from genvid.tokenizer.lit.reference import Reference, interval_means, last_kept
from genvid.tokens import BlockTokens
from genvid.tokens.blocks import MeanTokens


def errors(
    latents: torch.Tensor, keep: torch.Tensor, start: torch.Tensor | None = None, *, means: bool
) -> torch.Tensor:
    """(B, G, L) squared distances of latents from what copying makes of what is sent."""
    known = None if start is None else Reference(start, torch.zeros(start.shape[:2], dtype=torch.int64))
    sent = interval_means(latents, keep) if means else latents
    return (last_kept(sent, keep, known)[0] - latents).square().mean(-1)


def lost(tokens: BlockTokens, kept: BlockTokens) -> torch.Tensor:
    """() The sum of squared distances of measured latents from what copying makes of the tokens that are left."""
    assert tokens.latents is not None
    assert kept.latents is not None
    return ((last_kept(kept.latents, kept.keep)[0] - tokens.latents) @ METRIC).square().mean(-1).sum()


@pytest.mark.parametrize("price", [0.01, 0.3, 2.0, 10.0])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("means", [False, True])
def test_no_choice_is_cheaper_than_the_paths(price: float, started: bool, means: bool) -> None:
    latents, start = walk(blocks=5, capacity=4).latents, torch.randn(2, 4, 3) if started else None
    assert latents is not None
    cheapest = Paths(latents, start, means=means).at_price(torch.full((2,), price))
    error = errors(latents, cheapest, start, means=means)
    choices = torch.tensor([c for c in product([True, False], repeat=5) if c[0] or started])
    masks = choices[:, None, :, None].expand(-1, 2, 5, 4)
    costs = torch.stack([errors(latents, keep, start, means=means).sum(1) + price * keep.sum(1) for keep in masks])
    torch.testing.assert_close(error.sum(1) + price * cheapest.sum(1), costs.amin(0))


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("means", [False, True])
def test_no_choice_of_as_many_is_better_than_the_path_of_one_position(started: bool, means: bool) -> None:
    latents, start = torch.randn(4, 6, 1, 2), torch.randn(4, 1, 2) if started else None
    paths = Paths(latents, start, means=means)
    for number in range(0 if started else 1, 7):
        best = paths.at_budget(torch.full((4,), number))
        assert best.sum((1, 2)).tolist() == [number] * 4
        choices = [c for c in product([True, False], repeat=6) if sum(c) == number and (c[0] or started)]
        masks = torch.tensor(choices)[:, None, :, None].expand(-1, 4, 6, 1)
        least = torch.stack([errors(latents, keep, start, means=means).sum((1, 2)) for keep in masks]).amin(0)
        torch.testing.assert_close(errors(latents, best, start, means=means).sum((1, 2)), least)


def test_a_clip_of_one_block_is_kept_whole() -> None:
    paths = Paths(torch.randn(2, 1, 4, 3))
    assert paths.at_budget(torch.tensor([4, 9])).all()
    assert paths.at_price(torch.zeros(2)).all()
    assert paths.prices(torch.tensor([4, 9])).tolist() == [0, 0]


def test_prices_leave_next_to_nothing_of_the_budget() -> None:
    latents = walk(clips=4, blocks=12, capacity=64).latents
    assert latents is not None
    wanted, paths = torch.tensor([100, 200, 400, 700]), Paths(latents)
    kept = paths.at_price(paths.prices(wanted)).sum((1, 2))
    assert (kept <= wanted).all()
    assert (kept >= wanted - 4).all()  # a few that are worth as much together


@settings(max_examples=30, deadline=None)
@given(positions=st.integers(8, 48) | st.just(2**70), seed=st.integers(0, 100))
def test_budgets_are_met_to_the_token(positions: int, seed: int) -> None:
    # Position 0 never moves: its five later latents are redundant.
    kept = BudgetAllocator(positions, METRIC)(walk(seed=seed)).keep
    assert kept.sum((1, 2)).tolist() == [min(positions, 43)] * 2
    assert kept[:, 0].all()


def test_clips_may_have_budgets_of_their_own() -> None:
    latents = walk(clips=3).latents
    assert latents is not None
    wanted = torch.tensor([8, 20, 40])
    together = Paths(latents).at_budget(wanted)
    assert torch.equal(together.sum((1, 2)), wanted)
    alone = [Paths(latents[i : i + 1]).at_budget(wanted[i : i + 1]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_a_static_clip_keeps_its_first_block() -> None:
    tokens = walk()
    assert tokens.latents is not None
    still = BlockTokens(tokens.keep, latents=tokens.latents[:, :1].expand_as(tokens.latents))
    assert BudgetAllocator(20, METRIC)(still).lengths.tolist() == [[8, 0, 0, 0, 0, 0]] * 2


def test_budgets_of_a_period_bound_every_period() -> None:
    kept = BudgetAllocator(10, METRIC, period=2)(walk(blocks=7)).keep
    assert [part.sum((1, 2)).tolist() for part in kept.split(2, 1)] == [[10, 10]] * 3 + [[7, 7]]


def test_what_a_period_sends_does_not_depend_on_the_next() -> None:
    tokens, allocator = walk(blocks=6), BudgetAllocator(11, METRIC, period=3)
    assert tokens.latents is not None
    sent, alone = allocator(tokens), allocator(BlockTokens(tokens.keep[:, :3], latents=tokens.latents[:, :3]))
    assert sent.latents is not None
    assert alone.latents is not None
    assert torch.equal(sent.keep[:, :3], alone.keep)
    assert torch.equal(sent.latents[:, :3][alone.keep], alone.latents[alone.keep])


def test_a_price_in_periods_loses_less_than_a_threshold_and_more_than_at_once() -> None:
    tokens = walk(clips=4, blocks=12, capacity=32)
    assert tokens.latents is not None
    (price,) = calibrate_prices([tokens.latents], [0.4], METRIC, means=False)
    at_once = PriceAllocator(price, METRIC, means=False)(tokens)
    in_periods = PriceAllocator(price, METRIC, period=4, means=False)(tokens)
    threshold = RedundancyAllocator(RedundancyConfig((2 * price) ** 0.5), METRIC)(tokens)
    costs = [float(lost(tokens, kept) + price * kept.keep.sum()) for kept in (at_once, in_periods, threshold)]
    assert costs[0] < costs[1] < costs[2]


def test_a_price_for_periods_of_one_block_is_a_threshold() -> None:
    tokens = walk(clips=3, blocks=9, capacity=16)
    threshold = RedundancyAllocator(RedundancyConfig(0.7), METRIC)(tokens)
    assert torch.equal(PriceAllocator(0.7**2, METRIC, period=1)(tokens).keep, threshold.keep)
    assert tokens.latents is not None
    price = calibrate_threshold([tokens.latents], 0.4, lambda price: PriceAllocator(price, METRIC, period=3))
    kept = PriceAllocator(price, METRIC, period=3)(tokens).keep.sum()
    assert kept == round(0.4 * tokens.keep.numel())
    small = 1e-6 * tokens.latents
    price = calibrate_threshold([small], 0.4, lambda price: PriceAllocator(price, METRIC, period=3))
    assert PriceAllocator(price, METRIC, period=3)(BlockTokens(tokens.keep, latents=small)).keep.sum() == kept


def test_means_lose_less_than_latents_as_they_are_and_a_whole_clip_is_sent_as_it_is() -> None:
    tokens = walk(blocks=12, capacity=32)
    for positions in (60, 120, 240):
        means, exact = (BudgetAllocator(positions, METRIC, means=means)(tokens) for means in (True, False))
        assert isinstance(means, MeanTokens)
        assert not isinstance(exact, MeanTokens)
        assert means.keep.sum() == exact.keep.sum()
        assert lost(tokens, means) < 0.6 * lost(tokens, exact)
        assert all(isinstance(part, MeanTokens) for part in (means[:1], means.to("cpu")))
        assert isinstance(BlockTokens.concatenate([means, means]), MeanTokens)
    whole = BudgetAllocator(12 * 32, METRIC)(tokens)
    assert torch.equal(whole.latents, tokens.latents)  # type: ignore[arg-type]


def test_a_budget_is_spent_better_than_a_threshold_spends_it() -> None:
    tokens = walk(clips=1, blocks=12, capacity=32)
    assert tokens.latents is not None
    for rate in (0.2, 0.4, 0.7):
        threshold = calibrate_threshold(
            [tokens.latents], rate, lambda t: RedundancyAllocator(RedundancyConfig(t), METRIC)
        )
        thresholded = RedundancyAllocator(RedundancyConfig(threshold), METRIC)(tokens)
        budgeted = BudgetAllocator(int(thresholded.keep.sum()), METRIC, means=False)(tokens)
        assert lost(tokens, budgeted) < 0.95 * lost(tokens, thresholded)


def test_one_price_for_all_clips_loses_less_than_a_budget_for_each() -> None:
    tokens = walk(clips=4, blocks=12, capacity=32)
    assert tokens.latents is not None
    tokens = BlockTokens(tokens.keep, latents=tokens.latents * torch.tensor([0.1, 0.3, 1.0, 2.0])[:, None, None, None])
    assert tokens.latents is not None
    for means in (False, True):
        (price,) = calibrate_prices([tokens.latents], [150 / 384], METRIC, means=means)
        priced = PriceAllocator(price, METRIC, means=means)(tokens)
        budgeted = BudgetAllocator(150, METRIC, means=means)(tokens)
        assert priced.keep.sum() == 600 == budgeted.keep.sum()
        assert priced.keep.sum((1, 2)).diff().min() > 0
        assert lost(tokens, priced) < 0.8 * lost(tokens, budgeted)


def test_bad_budgets_and_prices_are_one_sentence() -> None:
    for allocator in (BudgetAllocator(8, METRIC), RedundancyAllocator(RedundancyConfig(1), METRIC)):
        with pytest.raises(ValueError, match="thinned already: thin the tokens from `encode`"):
            allocator(PriceAllocator(1, METRIC)(walk()))
    with pytest.raises(BudgetError, match="below the floor of 8: the first block of every clip is complete, and has 8"):
        BudgetAllocator(7, METRIC)(walk())
    with pytest.raises(ValueError, match="a budget is at least 1 position, got 0"):
        BudgetAllocator(0, METRIC)
    with pytest.raises(ValueError, match="a period is at least 1 block, got 0"):
        BudgetAllocator(8, METRIC, period=0)
    with pytest.raises(ValueError, match="price of a latent is at least 0, got -1"):
        PriceAllocator(-1, METRIC)


def test_clips_of_a_video_share_its_tokens() -> None:
    assert clip_shares(63, [8, 8, 4], floor=4) == [25, 25, 13]
    assert clip_shares(80, [8, 8, 4], floor=4) == [32, 32, 16]  # enough for all
    assert clip_shares(40, [8, 1], floor=4) == [36, 4]
    assert clip_shares(20, [1, 1], floor=4) == [4, 4]
    assert clip_shares(12, [8, 8, 4], floor=4) == [4, 4, 4]
    with pytest.raises(BudgetError, match="11 tokens is below the floor of 12"):
        clip_shares(11, [8, 8, 4], floor=4)
    shares = ClipBudget(12, METRIC, 4).video_allocators([2, 1])
    assert [(clips, allocator.positions) for clips, allocator in shares] == [(1, 8), (1, 4)]
    with pytest.raises(BudgetError, match="below the floor"):
        ClipBudget(3, METRIC, 4)
