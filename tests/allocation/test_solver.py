"""The budget program: both solvers against brute force and against each other, and its errors."""

import itertools

import numpy as np
import pytest
import torch

from genvid.allocation.curves import hull_slopes, running_minimum
from genvid.allocation.per_clip import solve_clips
from genvid.allocation.program import BudgetError
from genvid.allocation.solver import solve_budget, solve_program

KINDS = ("convex", "noisy", "random", "ties", "constant", "concave", "rising")


def make_curves(rng, kind, items, count):
    steps = np.arange(count)
    convex = rng.lognormal(0, 0.7, (items, 1)) * (1 + steps) ** -rng.uniform(0.2, 1.5, (items, 1))
    return {
        "convex": convex,
        "noisy": convex + rng.normal(0, 0.05, (items, count)),
        "random": rng.uniform(size=(items, count)),
        "ties": rng.integers(0, 4, (items, count)).astype(float),
        "constant": np.full((items, count), 0.3),
        "concave": -rng.uniform(0.05, 0.2, (items, 1)) * steps**1.7,
        "rising": rng.uniform(size=(items, 1)) * steps,
    }[kind]


def make_instance(seed, most_items, most_sizes):
    """Everything the solver accepts: any curve, uneven sizes, bounds, both modes, loose, tight and absurd budgets."""
    rng = np.random.default_rng(seed)
    items, count = int(rng.integers(1, most_items + 1)), int(rng.integers(1, most_sizes + 1))
    if rng.random() < 0.5:
        sizes = (np.arange(count) + rng.integers(0, 2)) * int(rng.choice([1, 16, 64]))
    else:
        sizes = np.sort(rng.choice(np.arange(60), count, replace=False)) * int(rng.choice([1, 4]))
    curves = make_curves(rng, KINDS[seed % len(KINDS)], items, count)
    minimum = maximum = None
    if rng.random() < 0.4:
        pair = np.sort(sizes[rng.integers(0, count, (2, items))], axis=0)
        minimum, maximum = torch.tensor(pair[0]), torch.tensor(pair[1])
    low, high = items * sizes[0], items * sizes[-1]
    exact = bool(rng.random() < 0.5)
    if exact and rng.random() < 0.8:  # a sum that some choice has
        lows = sizes[0] if minimum is None else minimum.numpy()
        highs = sizes[-1] if maximum is None else maximum.numpy()
        allowed = [
            sizes[(sizes >= a) & (sizes <= b)]
            for a, b in zip(np.broadcast_to(lows, items), np.broadcast_to(highs, items), strict=True)
        ]
        budget = int(sum(rng.choice(options) for options in allowed))
    else:
        budget = int(rng.integers(max(0, low - 3), high + 4))
    arguments = {"exact": exact, "minimum": minimum, "maximum": maximum}
    return torch.tensor(curves), torch.tensor(sizes), budget, arguments


def brute_force(curves, sizes, budget, exact, minimum, maximum):
    """Least summed distortion over every choice, or None."""
    rows, best = curves.tolist(), None
    options = []
    for i in range(len(rows)):
        low = 0 if minimum is None else int(minimum[i])
        high = 10**9 if maximum is None else int(maximum[i])
        options.append([(s, rows[i][k]) for k, s in enumerate(sizes.tolist()) if low <= s <= high])
    for choice in itertools.product(*options):
        spent = sum(size for size, _ in choice)
        if spent == budget or (not exact and spent < budget):
            value = sum(value for _, value in choice)
            best = value if best is None else min(best, value)
    return best


def check_solution(solution, curves, sizes, budget, exact, minimum, maximum):
    """The answer is what it says it is."""
    chosen = solution.sizes
    assert solution.spent == int(chosen.sum())
    assert solution.spent == budget if exact else solution.spent <= budget
    index = torch.searchsorted(sizes, chosen)
    assert torch.equal(sizes[index], chosen)
    assert float(curves.gather(1, index[:, None]).sum()) == pytest.approx(solution.value, abs=1e-9)
    assert minimum is None or bool((chosen >= minimum).all())
    assert maximum is None or bool((chosen <= maximum).all())
    assert solution.bound <= solution.value


@pytest.mark.parametrize("start", range(0, 500, 100))
def test_equals_brute_force(start):
    solved = 0
    for seed in range(start, start + 100):
        curves, sizes, budget, arguments = make_instance(seed, most_items=5, most_sizes=5)
        best = brute_force(curves, sizes, budget, **arguments)
        if best is None:
            with pytest.raises(BudgetError):
                solve_program(curves, sizes, budget, **arguments)
            continue
        solution = solve_program(curves, sizes, budget, **arguments)
        check_solution(solution, curves, sizes, budget, **arguments)
        assert solution.value == pytest.approx(best, abs=1e-9), seed
        solved += 1
    assert solved > 50


@pytest.mark.parametrize("start", range(1000, 1200, 50))
def test_equals_pulp(start):
    solved = 0
    for seed in range(start, start + 50):
        curves, sizes, budget, arguments = make_instance(seed, most_items=24, most_sizes=8)
        try:
            reference = solve_program(curves, sizes, budget, solver="pulp", **arguments)
        except BudgetError:
            with pytest.raises(BudgetError):
                solve_program(curves, sizes, budget, **arguments)
            continue
        solution = solve_program(curves, sizes, budget, **arguments)
        check_solution(solution, curves, sizes, budget, **arguments)
        assert solution.value == pytest.approx(reference.value, rel=1e-6, abs=1e-6), seed
        assert solution.value <= reference.value + 1e-9
        solved += 1
    assert solved > 25


def test_the_bound_is_tight_on_convex_curves():
    rng = np.random.default_rng(0)
    curves, sizes = torch.tensor(make_curves(rng, "convex", 200, 8)), torch.arange(1, 9) * 64
    solution = solve_program(curves, sizes, 200 * 256)
    assert solution.spent == 200 * 256
    assert solution.value - solution.bound < 1e-9


def test_the_multiplier_is_the_worth_of_a_token():
    rng = np.random.default_rng(1)
    curves, sizes = torch.tensor(make_curves(rng, "convex", 400, 8)), torch.arange(1, 9) * 64
    more, less = (solve_program(curves, sizes, budget) for budget in (400 * 256 + 640, 400 * 256 - 640))
    middle = solve_program(curves, sizes, 400 * 256)
    assert middle.multiplier == pytest.approx((less.value - more.value) / 1280, rel=0.05)


def test_deterministic_and_earlier_items_first_on_ties():
    curves = torch.tensor([[3.0, 2.0, 1.0]]).repeat(4, 1)
    assert solve_budget(curves, torch.tensor([1, 2, 3]), 9).tolist() == [3, 3, 2, 1]


def test_rising_curves_leave_tokens_unspent():
    solution = solve_program(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1, 2, 3]), 3)
    assert solution.spent == 1
    assert solution.multiplier == 0


def test_errors_say_the_way_out():
    curves, sizes = torch.rand(4, 3), torch.tensor([64, 128, 256])
    with pytest.raises(BudgetError, match=r"200 tokens.*256 to 1024"):
        solve_budget(curves, sizes, 200)
    with pytest.raises(BudgetError, match="nearest sums are 256 and 320"):
        solve_budget(curves, sizes, 300, exact=True)
    with pytest.raises(BudgetError, match="nearest sums are 896 and 1024"):
        solve_budget(curves, sizes, 960, exact=True)
    with pytest.raises(BudgetError, match="item 1 may take none"):
        solve_budget(
            curves, sizes, 512, minimum=torch.tensor([0, 200, 0, 0]), maximum=torch.tensor([999, 250, 999, 999])
        )
    with pytest.raises(ValueError, match="NaN"):
        solve_budget(curves.log().mul(torch.nan), sizes, 512)
    with pytest.raises(ValueError, match="ascending"):
        solve_budget(curves, sizes.flip(0), 512)
    with pytest.raises(ValueError, match="lagrangian, pulp"):
        solve_budget(curves, sizes, 512, solver="greedy")


def test_hull_slopes_equal_a_slow_hull():
    rng = np.random.default_rng(2)
    for _ in range(50):
        sizes = np.sort(rng.choice(np.arange(50), 7, replace=False))
        curve = rng.uniform(size=7)
        points, slow = [0], []
        while points[-1] < 6:  # gift wrapping: the shallowest descent from each corner
            a = points[-1]
            slopes = [(curve[b] - curve[a]) / (sizes[b] - sizes[a]) for b in range(a + 1, 7)]
            points.append(a + 1 + int(np.argmin(slopes)))
            slow += [min(slopes)] * (points[-1] - a)
        assert np.allclose(hull_slopes(curve, sizes), slow)


def test_running_minimum_never_rises():
    assert running_minimum(torch.tensor([3.0, 4.0, 1.0, 2.0])).tolist() == [3, 3, 1, 1]


@pytest.mark.parametrize("seed", range(21))
def test_programs_of_single_clips_are_solved_together(seed):
    rng = np.random.default_rng(seed)
    clips, blocks, count = rng.integers(1, 5, 3)
    curves = torch.tensor(make_curves(rng, KINDS[seed % len(KINDS)], clips * blocks, count)).view(clips, blocks, count)
    if count > 1:
        curves[:, 0, 0] = torch.inf
    sizes = torch.tensor(np.sort(rng.choice(np.arange(1, 40), count, replace=False)))
    least = int(blocks * sizes[0] + (sizes[1] - sizes[0] if count > 1 else 0))
    budgets = torch.tensor(rng.integers(least, blocks * int(sizes[-1]) + 4, clips))
    lengths = solve_clips(curves, sizes, budgets)
    assert bool((lengths.sum(1) <= budgets).all())
    values = curves.gather(2, torch.searchsorted(sizes, lengths)[..., None])[..., 0].sum(1)
    for clip, value in enumerate(values.tolist()):
        solution = solve_program(curves[clip], sizes, int(budgets[clip]))
        assert value == pytest.approx(solution.value, abs=1e-12)
        assert lengths[clip].sum() <= solution.spent
    with pytest.raises(BudgetError):
        solve_clips(curves, sizes, budgets.clone().fill_(least - 1))
