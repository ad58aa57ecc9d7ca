"""Allocators: budgets kept, no dependence on the batch, and how much of the gap from uniform to oracle each closes."""

import pytest
import torch
from synthetic_clips import SyntheticClips

from genvid.allocation import (
    BudgetError,
    FixedCurves,
    GroupAllocator,
    JointAllocator,
    OnlineBudgetAllocator,
    TableAllocator,
    ThresholdAllocator,
    UniformAllocator,
    predict_all_curves,
    solve_program,
)
from genvid.allocation.budget import budget_groups
from genvid.allocation.config import GroupConfig, UniformConfig
from genvid.allocation.curves import gains
from genvid.tokens import BlockTokens

CLIPS = SyntheticClips()
TOKENS = CLIPS.tokens()


def alone(allocator):
    """What each clip gets by itself."""
    return BlockTokens.concatenate([allocator(TOKENS[i : i + 1]) for i in range(len(TOKENS.keep))])


@pytest.mark.parametrize(
    "allocator",
    [
        UniformAllocator(192),
        TableAllocator([320.0, 200.0, 150.0, 98.0], CLIPS.sizes),
        ThresholdAllocator(CLIPS, 1e-3),
        OnlineBudgetAllocator(CLIPS, 768),
    ],
    ids=lambda allocator: type(allocator).__name__,
)
def test_a_clip_is_treated_the_same_in_any_batch(allocator):
    batch = allocator(TOKENS)
    assert torch.equal(batch.keep, alone(allocator).keep)
    shuffled = torch.randperm(len(TOKENS.keep), generator=torch.Generator().manual_seed(0))
    assert torch.equal(allocator(TOKENS[shuffled]).keep, batch[shuffled].keep)


@pytest.mark.gpu
def test_tokens_and_curves_on_a_gpu_are_cut_alike(gpu):
    curves = predict_all_curves(CLIPS, TOKENS, TOKENS.lengths)
    typical = gains(curves, CLIPS.sizes).median(0).values
    predictors = FixedCurves(curves, CLIPS.sizes), FixedCurves(curves.to(gpu), CLIPS.sizes)

    def rules(predictor):
        yield UniformAllocator(192)
        yield TableAllocator([320.0, 200.0, 150.0, 98.0], CLIPS.sizes)
        yield GroupAllocator(predictor, [256.0] * 4, 16)
        yield JointAllocator(predictor, 1024, 16)
        yield JointAllocator(predictor, 1024, 1, block_weights=(2.0, 1.0, 1.0, 1.0))
        yield ThresholdAllocator(predictor, 1e-3)
        yield OnlineBudgetAllocator(predictor, 768, typical=typical)

    for here, there in zip(*map(rules, predictors), strict=True):
        assert there(TOKENS.to(gpu)).keep.cpu().equal(here(TOKENS).keep)


def test_single_clips_are_treated_differently():
    lengths = alone(ThresholdAllocator(CLIPS, 1e-3)).lengths
    assert len(lengths.sum(1).unique()) > 5
    typical = gains(predict_all_curves(CLIPS, TOKENS, TOKENS.lengths), CLIPS.sizes).median(0).values
    assert len(alone(OnlineBudgetAllocator(CLIPS, 768, typical=typical)).lengths.unique(dim=0)) > 5


@pytest.mark.parametrize(
    "make", [lambda size: GroupAllocator(CLIPS, [256.0] * 4, size), lambda size: JointAllocator(CLIPS, 1024, size)]
)
def test_groups_not_batches_decide(make):
    whole = make(16)(TOKENS)
    parts = BlockTokens.concatenate([make(16)(TOKENS[:16]), make(16)(TOKENS[16:])])
    assert torch.equal(whole.keep, parts.keep)
    assert not torch.equal(whole.keep, make(48)(TOKENS).keep)


@pytest.mark.parametrize("exact", [False, True])
def test_group_budgets_hold_also_in_a_short_last_group(exact):
    lengths = GroupAllocator(CLIPS, [300.0, 200.0, 128.0, 64.0], 20, exact=exact)(TOKENS).lengths
    for group in lengths.split(20):
        spent, budget = group.sum(0), torch.tensor([300, 200, 128, 64]) * len(group)
        assert bool((spent <= budget).all())
        assert bool((spent > budget - 64).all())


def test_exact_groups_spend_to_the_token():
    lengths = GroupAllocator(CLIPS, [320.0, 192.0, 128.0, 64.0], 16, exact=True)(TOKENS).lengths
    assert torch.equal(lengths.view(3, 16, 4).sum(1), torch.tensor([[5120, 3072, 2048, 1024]]).expand(3, -1))


def test_exact_budgets_are_rounded_down_to_whole_steps():
    lengths = GroupAllocator(CLIPS, [456.0, 242.0, 172.0, 150.0], 1, exact=True)(TOKENS).lengths
    assert torch.equal(lengths, torch.tensor([448, 192, 128, 128]).expand(48, -1))


@pytest.mark.parametrize("rounds", [1, 3])
def test_joint_budget_holds_in_every_group(rounds):
    lengths = JointAllocator(CLIPS, 1000, 20, rounds=rounds)(TOKENS).lengths
    for group in lengths.split(20):
        assert 1000 * len(group) - 64 < int(group.sum()) <= 1000 * len(group)


def test_more_rounds_cost_no_group_distortion():
    def predicted(rounds):
        lengths = JointAllocator(CLIPS, 1000, 16, rounds=rounds)(TOKENS).lengths
        curves = predict_all_curves(CLIPS, TOKENS, lengths)
        at = torch.searchsorted(CLIPS.sizes, lengths)
        return curves.gather(2, at[..., None]).view(3, -1).sum(1)

    one, three = predicted(1), predicted(3)
    assert bool((three <= one + 1e-9).all())
    assert bool((three < one).any())


def test_joint_and_threshold_are_the_program_on_curves_that_do_not_react():
    curves = predict_all_curves(CLIPS, TOKENS, TOKENS.lengths)
    fixed = FixedCurves(curves, CLIPS.sizes)
    solution = solve_program(curves.flatten(0, 1), CLIPS.sizes, 1024 * 48)
    assert torch.equal(JointAllocator(fixed, 1024, 48)(TOKENS).lengths.flatten(), solution.sizes)
    kept = ThresholdAllocator(fixed, solution.multiplier)(TOKENS).lengths.flatten()
    assert int((kept != solution.sizes).sum()) <= 1  # the marginal step


def test_table_keeps_to_the_grid_and_the_budget():
    assert TableAllocator([80.0] * 4, CLIPS.sizes).lengths.sum() == 320
    assert TableAllocator([284, 80, 72, 76], CLIPS.sizes).lengths.tolist() == [320, 64, 64, 64]
    with pytest.raises(ValueError, match="4 blocks but the clips have 3"):
        TableAllocator([80.0] * 4, CLIPS.sizes)(SyntheticClips(2, 3).tokens())


@pytest.mark.parametrize("budget", [512, 1024, 1536])
def test_share_of_the_gap_that_each_closes(budget):
    """Uniform to oracle, the oracle being one joint program over all clips and its better cuts in six rounds."""
    curves = predict_all_curves(CLIPS, TOKENS, TOKENS.lengths)
    solution = solve_program(curves.flatten(0, 1), CLIPS.sizes, budget * 48)
    table = solution.sizes.view(48, 4).double().mean(0).tolist()
    oracle = JointAllocator(CLIPS, budget, 48, rounds=6)(TOKENS)
    uniform = UniformAllocator(budget // 4)(TOKENS)

    def closed(allocator):
        worst, best, own = (CLIPS.distortion(t).sum() for t in (uniform, oracle, allocator(TOKENS)))
        return float((worst - own) / (worst - best))

    joint, table_alone = closed(JointAllocator(CLIPS, budget, 16)), closed(TableAllocator(table, CLIPS.sizes))
    assert joint > 0.9
    assert joint > closed(GroupAllocator(CLIPS, table, 16)) > table_alone > 0.1
    assert closed(ThresholdAllocator(CLIPS, solution.multiplier)) > 0.9


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda predictor: GroupAllocator(predictor, [256.0] * 4, 8),
        lambda predictor: GroupAllocator(predictor, [256.0] * 4, 8, exact=True),
        lambda predictor: JointAllocator(predictor, 1024, 8),
        lambda predictor: ThresholdAllocator(predictor, 1e-3),
        lambda predictor: ThresholdAllocator(predictor, 1e-3, block_weights=[0.0] * 4),
        lambda predictor: OnlineBudgetAllocator(predictor, 1024),
    ],
)
def test_curves_that_are_no_numbers_are_refused_by_every_rule(make, block, bad):
    curves = predict_all_curves(CLIPS, TOKENS, TOKENS.lengths)
    curves[7, block, 3] = bad
    with pytest.raises(ValueError, match="NaN"):
        make(FixedCurves(curves, CLIPS.sizes))(TOKENS)


def test_the_step_of_a_stream_refuses_them_too():
    rule = ThresholdAllocator(CLIPS, 1e-3)
    for bad in (float("nan"), -float("inf")):
        with pytest.raises(ValueError, match="NaN"):
            rule.step(torch.tensor([[3.0, bad, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]))


def test_a_forbidden_size_is_not_taken_by_the_threshold_rule():
    curves = torch.tensor([[float("inf"), 5.0, 4.0, 3.5, 3.4, 3.4, 3.4, float("inf")]]).double()
    assert int(ThresholdAllocator(CLIPS, 1e9).step(curves)) == int(CLIPS.sizes[1])
    assert int(ThresholdAllocator(CLIPS, 0.0).step(curves)) == int(CLIPS.sizes[4])


@pytest.mark.parametrize(
    "make",
    [
        lambda predictor: GroupAllocator(predictor, [6.0] * 3, 2),
        lambda predictor: GroupAllocator(predictor, [2.0] * 3, 2, exact=True),
        lambda predictor: JointAllocator(predictor, 18, 2),
        lambda predictor: JointAllocator(predictor, 18, 1),
        lambda predictor: ThresholdAllocator(predictor, 0.05),
    ],
)
def test_a_forbidden_size_is_taken_by_no_rule(make):
    generator = torch.Generator().manual_seed(0)
    sizes, curves = torch.tensor([2, 4, 6, 8]), torch.rand(40, 3, 4, generator=generator)
    forbidden = torch.rand(40, 3, 4, generator=generator) < 0.4
    forbidden[..., 0] = False
    predictor = FixedCurves(curves.masked_fill(forbidden, torch.inf), sizes)
    lengths = make(predictor)(BlockTokens(torch.ones(40, 3, 8, dtype=torch.bool))).lengths
    assert not forbidden.gather(2, torch.searchsorted(sizes, lengths)[..., None]).any()


def test_errors_say_what_is_wrong():
    with pytest.raises(BudgetError, match="fewer than the smallest"):
        JointAllocator(CLIPS, 200, 8)(TOKENS)
    with pytest.raises(ValueError, match="at least one clip"):
        GroupAllocator(CLIPS, [256.0] * 4, 0)
    with pytest.raises(ValueError, match="at least 0"):
        ThresholdAllocator(CLIPS, -1.0)
    with pytest.raises(ValueError, match="at least 1 round"):
        JointAllocator(CLIPS, 1024, 8, rounds=0)
    for budget in (float("nan"), float("inf"), 0.0):
        with pytest.raises(ValueError, match="positive and finite"):
            UniformConfig(budget)
    with pytest.raises(ValueError, match="block_budgets sum to nan"):
        GroupConfig(1024, block_budgets=(float("nan"), 512.0))
    with pytest.raises(ValueError, match="cannot keep -1"):
        UniformAllocator(-1)


def test_clips_of_as_many_blocks_share_a_budget():
    groups = budget_groups([4] * 65 + [2] + [4] * 2)
    assert [len(group) for group in groups] == [64, 3, 1]
    assert groups[1:] == [[64, 66, 67], [65]]
