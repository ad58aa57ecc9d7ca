"""Calibration: closed loop, interpolation, strict files, and allocators built from configuration."""

import json
from dataclasses import dataclass

import pytest
import torch
from synthetic_clips import SyntheticClips

from genvid.allocation import (
    AllocatorConfig,
    BudgetError,
    Calibration,
    CalibrationOrigin,
    ThresholdAllocator,
    build_allocator,
    calibrate,
    close_loop,
    fit_block_weights,
    predict_all_curves,
    solve_program,
    with_expected,
)
from genvid.config import ConfigError, decode
from genvid.tokens import BlockTokens

CLIPS = SyntheticClips()
TOKENS = CLIPS.tokens()
CURVES = predict_all_curves(CLIPS, TOKENS, TOKENS.lengths)
PROVENANCE = CalibrationOrigin("tokenizer", "scorer", "data", 48, "whole", "2026-01-01")
CALIBRATION = calibrate(CURVES, CLIPS.sizes, [1024, 384, 640, 1536], PROVENANCE)


def test_tables_sum_to_their_budgets_and_tokens_lose_worth():
    assert CALIBRATION.budgets == (384, 640, 1024, 1536)
    for budget, table in zip(CALIBRATION.budgets, CALIBRATION.tables, strict=True):
        assert sum(table) == pytest.approx(budget)
    assert list(CALIBRATION.multipliers) == sorted(CALIBRATION.multipliers, reverse=True)


def test_a_budget_below_the_first_step_is_left_unspent():
    curves = torch.tensor([[[1.0, 0.5], [1.0, 0.2]]])
    calibration = calibrate(curves, torch.tensor([0, 4]), [3, 4], PROVENANCE)
    assert calibration.tables == ((0, 0), (0, 4))
    allocator = build_allocator(decode(AllocatorConfig, {"type": "table", "tokens_per_video": 3}), 2, None, calibration)
    assert allocator(BlockTokens(torch.ones(1, 2, 4, dtype=torch.bool))).lengths.tolist() == [[0, 0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_curves_without_a_number_are_not_calibrated_on(bad):
    curves = CURVES.clone()
    curves[3, 1, -1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        calibrate(curves, CLIPS.sizes, [1024], PROVENANCE)


def test_interpolation():
    assert CALIBRATION.table(1024) == pytest.approx(list(CALIBRATION.tables[2]))
    assert sum(CALIBRATION.table(800)) == pytest.approx(800)
    assert CALIBRATION.multipliers[1] > CALIBRATION.multiplier(800) > CALIBRATION.multipliers[2]
    for budget in (383, 1537):
        with pytest.raises(ValueError, match="384 to 1536"):
            CALIBRATION.multiplier(budget)


def test_closed_loop_meets_the_budget_that_the_open_loop_misses():
    closed = close_loop(CALIBRATION, CLIPS, [TOKENS[:20], TOKENS[20:]])
    for budget in CALIBRATION.budgets:
        mean = ThresholdAllocator(CLIPS, closed.multiplier(budget))(TOKENS).lengths.sum(1).double().mean()
        assert budget - 8 < mean <= budget
    assert closed.multipliers != CALIBRATION.multipliers


def test_block_weights_count_what_later_blocks_gain():
    weights = fit_block_weights(CLIPS, [TOKENS[:20], TOKENS[20:]], [256] * 4)
    assert weights[-1] == 1
    assert all(weight > 1.02 for weight in weights[:-1])
    assert fit_block_weights(SyntheticClips(dependence=0.0), [TOKENS], [256] * 4) == pytest.approx([1] * 4)


def test_expected_distortion_orders_the_allocators():
    noisy = CURVES * (1 + 0.02 * torch.randn(CURVES.shape, generator=torch.Generator().manual_seed(0)))
    expected = with_expected(CALIBRATION, noisy, measured=CURVES, group_size=16).expected
    for i in range(len(CALIBRATION.budgets)):
        assert expected["oracle"][i] < expected["joint"][i] < expected["table"][i] < expected["uniform"][i]
        assert expected["online"][i] < expected["uniform"][i]


def test_the_oracle_is_the_optimum_whatever_the_block_weights():
    weighted = calibrate(CURVES, CLIPS.sizes, [512, 1024], PROVENANCE, block_weights=[3.0, 1.5, 1.2, 1.0])
    expected = with_expected(weighted, CURVES, measured=CURVES, group_size=len(CURVES)).expected
    for budget, least in zip(weighted.budgets, expected["oracle"], strict=True):
        program = solve_program(CURVES.flatten(0, 1), CLIPS.sizes, int(budget) * len(CURVES))
        assert least == pytest.approx(program.value / len(CURVES), rel=1e-9)


def test_files_are_read_strictly(tmp_path):
    file = tmp_path / "calibration.json"
    with_expected(CALIBRATION, CURVES).save(file)
    assert Calibration.load(file) == with_expected(CALIBRATION, CURVES)
    data = json.loads(file.read_text())
    for change, message in (
        ({"extra": 1}, "extra"),
        ({"budgets": [1.0]}, "contradicts itself"),
        ({"multipliers": None}, "multipliers"),
    ):
        file.write_text(json.dumps({**data, **change}))
        with pytest.raises(ConfigError, match=message):
            Calibration.load(file)
    del data["block_weights"]
    file.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="block_weights"):
        Calibration.load(file)
    with pytest.raises(ConfigError, match=r"calibrate\.py"):
        Calibration.load(tmp_path / "none.json")


@dataclass(frozen=True)
class Run:
    allocator: AllocatorConfig


@pytest.mark.parametrize("kind", ["uniform", "table", "group", "joint", "threshold", "online"])
def test_every_allocator_is_built_from_yaml(kind):
    run = decode(Run, {"allocator": {"type": kind, "tokens_per_video": 1000}})
    lengths = build_allocator(run.allocator, 4, CLIPS, CALIBRATION)(TOKENS).lengths
    mean = float(lengths.sum(1).double().mean())
    assert 700 < mean <= (1000 if kind != "threshold" else 1050)
    assert bool(torch.isin(lengths, CLIPS.sizes).all())


def test_missing_parts_are_named():
    def build(predictor=None, calibration=None, blocks=4, **data):
        return build_allocator(decode(Run, {"allocator": data}).allocator, blocks, predictor, calibration)

    with pytest.raises(ConfigError, match="needs a scorer"):
        build(type="joint", tokens_per_video=1000)
    with pytest.raises(ConfigError, match="needs a calibration"):
        build(CLIPS, type="threshold", tokens_per_video=1000)
    with pytest.raises(ConfigError, match="4 blocks, these have 5"):
        build(CLIPS, CALIBRATION, blocks=5, type="table", tokens_per_video=1000)
    with pytest.raises(ConfigError, match="calibrate again"):
        build(SyntheticClips(sizes=[64, 512]), CALIBRATION, type="table", tokens_per_video=1000)
    with pytest.raises(ConfigError, match="must be positive"):
        build(type="uniform", tokens_per_video=0)
    with pytest.raises(ConfigError, match="sum to 256"):
        build(type="group", tokens_per_video=1000, block_budgets=[64, 64, 64, 64])
    assert build(type="uniform", tokens_per_video=1000).length == 250
    with pytest.raises(BudgetError, match="fewer than the smallest candidate size, 1"):
        build(type="uniform", tokens_per_video=3)
    assert build(CLIPS, type="uniform", tokens_per_video=1000).length == 192
