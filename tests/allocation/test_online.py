"""Hard budgets online: never a token too many, whatever the curves; nearly all of it used where content allows."""

import pytest
import torch
from synthetic_clips import SyntheticClips

from genvid.allocation import (
    BudgetError,
    JointAllocator,
    OnlineBudgetAllocator,
    OnlineController,
    StreamLedger,
    TableAllocator,
    UniformAllocator,
    VideoLedger,
    WindowLedger,
    calibrate,
    predict_all_curves,
)
from genvid.allocation.calibration import CalibrationOrigin
from genvid.allocation.curves import gains

EVEN = torch.arange(64, 513, 64)
UNEVEN = torch.tensor([16, 32, 48, 64, 96, 128, 192, 256, 384, 512])


def adversarial(generator, streams, sizes, block):
    """(streams, K) curves of the unpleasant sort, mixed: cliffs, rises, flats, noise, absurd scales, late surprises."""
    count = len(sizes)
    noise = torch.rand(streams, count, generator=generator, dtype=torch.float64)
    steps = torch.arange(count)
    kinds = torch.stack(
        [
            noise,
            noise.cumsum(1),
            torch.zeros_like(noise),
            -noise.cumsum(1) * 1e9,
            (steps < count - 1).double().expand_as(noise),
            1e-12 * noise,
            -1e12 * (block + 1) * steps.double().expand_as(noise),
            (1.0 + steps).pow(-noise[:, :1] * 3),
        ]
    )
    choice = torch.randint(len(kinds), (streams,), generator=generator)
    return kinds[choice, torch.arange(streams)]


def typical_of(sizes, blocks):
    clips = SyntheticClips(64, blocks, sizes.tolist())
    curves = predict_all_curves(clips, clips.tokens(), clips.tokens().lengths)
    provenance = CalibrationOrigin("t", "s", "d", 64, "whole", "2026-01-01")
    return calibrate(curves, sizes, [int(sizes[2]) * blocks], provenance).typical()


@pytest.mark.parametrize("sizes", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_no_video_ever_exceeds_its_budget(sizes, calibrated):
    generator, blocks, violations = torch.Generator().manual_seed(0), 6, 0
    low, high = blocks * int(sizes[0]), blocks * int(sizes[-1])
    budgets = [
        low,
        low + 1,
        low + 17,
        low + 200,
        (low + high) // 5,
        (low + high) // 3,
        (low + high) // 2,
        high - 1,
        high,
        2 * high,
    ]
    for budget in budgets:
        ledger = VideoLedger(budget, blocks, sizes, streams=250)
        controller = OnlineController(ledger, sizes, typical=typical_of(sizes, 4) if calibrated else None)
        chosen = [controller.step(adversarial(generator, 250, sizes, block)) for block in range(blocks)]
        spent = torch.stack(chosen).sum(0)
        assert bool(torch.isin(torch.stack(chosen), sizes).all())
        violations += int((spent > budget).sum())
    assert violations == 0


@pytest.mark.parametrize("rate", [64, 100.3, 250.0, 600])
def test_no_run_of_a_stream_exceeds_rate_and_burst(rate):
    generator, blocks, burst = torch.Generator().manual_seed(1), 80, 1000
    controller = OnlineController(StreamLedger(rate, burst, EVEN, streams=250), EVEN)
    chosen = torch.stack([controller.step(adversarial(generator, 250, EVEN, block)) for block in range(blocks)], 1)
    total = torch.nn.functional.pad(chosen.cumsum(1), (1, 0)).double()
    for run in range(1, blocks + 1):
        assert float((total[:, run:] - total[:, :-run]).max()) <= burst + -(-rate * run // 1)


@pytest.mark.parametrize(
    ("tokens", "blocks", "first"), [(448, 7, None), (1000, 6, 7), (448, 6, 7), (512, 2, 3), (300, 1, 2), (300, 1, None)]
)
def test_no_window_of_a_stream_exceeds_its_tokens(tokens, blocks, first):
    generator = torch.Generator().manual_seed(1)
    controller = OnlineController(WindowLedger(tokens, blocks, EVEN, first), EVEN)
    chosen = torch.stack([controller.step(adversarial(generator, 250, EVEN, block)) for block in range(60)], 1)
    assert int(chosen.unfold(1, blocks, 1).sum(-1).max()) <= tokens
    assert int(chosen[:, : first or blocks].sum(-1).max()) <= tokens
    assert int(chosen.min()) >= 64


def falling(generator, streams, sizes):
    """Curves on which every token helps."""
    decay = 0.2 + torch.rand(streams, 1, generator=generator, dtype=torch.float64)
    scale = torch.exp(2 * torch.randn(streams, 1, generator=generator, dtype=torch.float64))
    return scale * (1 + sizes / 32) ** -decay


@pytest.mark.parametrize("sizes", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("budget", [512, 1024, 1536, 2048])
def test_videos_use_their_budget_where_content_allows(sizes, budget):
    generator = torch.Generator().manual_seed(2)
    controller = OnlineController(VideoLedger(budget, 4, sizes, streams=500), sizes)
    spent = sum(controller.step(falling(generator, 500, sizes)) for _ in range(4))
    assert float(spent.min()) >= 0.97 * budget


@pytest.mark.parametrize("rate", [100.3, 250.0, 400.0])
def test_endless_streams_use_their_rate(rate):
    generator = torch.Generator().manual_seed(3)
    controller = OnlineController(StreamLedger(rate, 1024, EVEN, streams=20), EVEN)
    spent = sum(controller.step(falling(generator, 20, EVEN)) for _ in range(150))
    assert float(spent.min()) >= 0.97 * 150 * rate


@pytest.mark.parametrize(("tokens", "blocks"), [(1200, 6), (2000, 7)])
def test_endless_streams_use_their_windows(tokens, blocks):
    generator = torch.Generator().manual_seed(3)
    controller = OnlineController(WindowLedger(tokens, blocks, EVEN), EVEN)
    curves = falling(generator, 20, EVEN)
    spent = sum(controller.step(curves) for _ in range(20 * blocks))
    assert float(spent.min()) >= 0.9 * 20 * tokens


@pytest.mark.parametrize("sizes", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_rounding_of_predictions_changes_no_size(sizes):
    """A scorer rounds otherwise in a batch of another size."""
    generator = torch.Generator().manual_seed(6)
    scenes = [falling(generator, 200, sizes) for _ in range(4)]
    exact, rounded = (OnlineController(WindowLedger(1200, 6, sizes), sizes) for _ in range(2))
    for block in range(40):
        curves = scenes[block // 3 % 4]
        noise = (
            1e-7 * torch.randn(curves.shape, generator=generator, dtype=torch.float64) * curves.amax(1, keepdim=True)
        )
        assert rounded.step(curves + noise).equal(exact.step(curves))


def test_a_stream_saves_for_and_spends_on_the_busy_part():
    sizes = EVEN
    controller = OnlineController(StreamLedger(128, 1024, sizes), sizes)
    calm, busy = (scale * (1 + sizes[None] / 64.0) ** -1.0 for scale in (0.01, 1.0))
    quiet = [int(controller.step(calm)) for _ in range(20)]
    assert int(controller.step(busy)) >= 2 * max(quiet[-10:])


def test_content_that_needs_nothing_leaves_tokens_unspent():
    controller = OnlineController(VideoLedger(1024, 4, EVEN), EVEN)
    assert [int(controller.step(torch.ones(1, 8))) for _ in range(4)] == [64] * 4


def test_hard_budgets_close_most_of_the_gap_of_the_clip_alone():
    """Uniform to the joint program of each clip by itself, which sees the whole clip beforehand."""
    clips = SyntheticClips()
    tokens = clips.tokens()
    curves = predict_all_curves(clips, tokens, torch.full_like(tokens.lengths, 256))
    provenance = CalibrationOrigin("t", "s", "d", 48, "256 tokens each", "2026-01-01")
    for budget in (512, 1024, 1536):
        calibration = calibrate(curves, clips.sizes, [budget], provenance)
        allocators = (
            UniformAllocator(budget // 4),
            TableAllocator(calibration.table(budget), clips.sizes),
            OnlineBudgetAllocator(clips, budget, typical=calibration.typical()),
            JointAllocator(clips, budget, 1),
        )
        uniform, table, online, best = (float(clips.distortion(allocator(tokens)).sum()) for allocator in allocators)
        assert uniform - online > 0.7 * (uniform - best)
        assert online < table


@pytest.mark.parametrize("sizes", [torch.tensor([64]), torch.tensor([0])])
def test_a_single_candidate_size_is_taken_by_every_block(sizes):
    for ledger in (VideoLedger(256, 3, sizes, 2), StreamLedger(64.0, 128, sizes, 2), WindowLedger(128, 2, sizes)):
        controller = OnlineController(ledger, sizes, typical=torch.zeros(3, 0))
        for _ in range(3):
            assert torch.equal(controller.step(torch.rand(2, 1)), sizes.expand(2))


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_clip_shorter_than_the_typical_one_spends_its_last_tokens_on_its_last_block(blocks):
    """Every token helps, and no block comes after the last one: it takes the largest size that is paid for."""
    generator = torch.Generator().manual_seed(4)
    ledger = VideoLedger(200 * blocks, blocks, EVEN, streams=20)
    controller = OnlineController(ledger, EVEN, typical=typical_of(EVEN, 4))
    spent = torch.stack([controller.step(falling(generator, 20, EVEN)) for _ in range(blocks)])
    left = 200 * blocks - spent[:-1].sum(0)
    assert torch.equal(spent[-1], (left // 64 * 64).clamp(max=512))


def test_activity_is_measured_against_the_same_blocks_of_a_long_typical_clip():
    """40 blocks, the first 20 calm and the others busy: a clip that is as typical has activity 1 all along."""
    rates = torch.cat([torch.full((20, 1), 0.01), torch.ones(20, 1)]).double()
    curve = (1 + EVEN / 64.0) ** -1.0
    typical = gains(rates * curve, EVEN)
    controller = OnlineController(VideoLedger(40 * 128, 40, EVEN), EVEN, typical=typical)
    for block in range(38):
        controller.step(rates[block : block + 1] * curve)
        controller._block -= 1
        forecast = controller._forecast(39 - block)[0]
        controller._block += 1
        torch.testing.assert_close(forecast[0], typical[block + 1 :])


def test_a_budget_beyond_every_size_costs_no_memory():
    controller = OnlineController(VideoLedger(1e15, 2, EVEN), EVEN)
    assert [int(controller.step(falling(torch.Generator(), 1, EVEN))) for _ in range(2)] == [512, 512]


def test_errors_say_the_way_out():
    with pytest.raises(BudgetError, match="allow 256 or more"):
        VideoLedger(255, 4, EVEN)
    with pytest.raises(BudgetError, match="pay for 4 blocks of at least 64 tokens; allow 256 or more"):
        WindowLedger(255, 4, EVEN)
    with pytest.raises(BudgetError, match="60 tokens per block"):
        StreamLedger(60, 1000, EVEN)
    for rate in (float("nan"), 0.0):
        with pytest.raises(BudgetError, match="tokens per block cannot pay"):
            StreamLedger(rate, 1000, torch.tensor([0, 64]))
    for rate in (128, 100.5, float("inf")):
        with pytest.raises(BudgetError, match="bucket of 100"):
            StreamLedger(rate, 100, EVEN)
    with pytest.raises(ValueError, match=r"typical gains of 8 sizes are \(G, 7\), got \(4, 6\)"):
        OnlineController(VideoLedger(256, 1, EVEN), EVEN, typical=torch.zeros(4, 6))
    controller = OnlineController(VideoLedger(256, 1, EVEN), EVEN)
    with pytest.raises(ValueError, match="NaN"):
        controller.step(torch.full((1, 8), torch.nan))
    controller.step(torch.ones(1, 8))
    with pytest.raises(ValueError, match="new ledger"):
        controller.step(torch.ones(1, 8))
