"""Metrics against hand values, scipy and their own halves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from genvid import noise
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.metrics.bjontegaard import bd_rate
from genvid.eval.metrics.codebook import codebook_usage
from genvid.eval.metrics.fidelity import ClipFlicker, ClipMSSSIM, ClipPSNR, ClipScore, ClipSSIM, MeanPerceptual
from genvid.eval.metrics.frechet import frechet_distance, frechet_interval, frechet_name, real_halves
from genvid.eval.metrics.probe import RIDGE, prefix_vectors, probe_accuracy
from genvid.perceptual import StructureDistance

FIDELITY: list[Callable[[], ClipScore]] = [ClipPSNR, ClipSSIM, ClipFlicker, lambda: MeanPerceptual(StructureDistance())]


class Pooled(FeatureNetwork):
    """Eight numbers of a video that tests can compute by hand."""

    name = "pooled pixels"
    num_features = 8
    min_frames = 2

    def extract(self, video: Tensor) -> Tensor:
        return video.flatten(1)[:, :8]


def videos(count: int, seed: int, shape: tuple[int, ...] = (3, 2, 16, 16)) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


def frechet(real: Tensor, fake: Tensor, ddof: int) -> float:
    return frechet_distance(Pooled()(real), Pooled()(fake), ddof=ddof)


def mean(metric: ClipScore, video: Tensor, target: Tensor) -> float:
    return float(metric.score(video, target).double().mean())


def test_clip_psnr_averages_decibels_not_errors() -> None:
    target = torch.zeros(2, 3, 2, 16, 16)
    video = target + torch.tensor([0.2, 0.02])[:, None, None, None, None]
    assert mean(ClipPSNR(), video, target) == pytest.approx((20 + 40) / 2, abs=1e-4)


def test_clip_psnr_clamps_and_bounds() -> None:
    assert mean(ClipPSNR(), torch.full((1, 3, 1, 16, 16), 3.0), torch.ones(1, 3, 1, 16, 16)) == 100


def test_ssim_is_one_for_equal_and_falls_with_noise() -> None:
    target = videos(1, 0)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    values = [mean(ClipSSIM(), target + amount * noise, target) for amount in (0.0, 0.05, 0.2)]
    assert values[0] == pytest.approx(1)
    assert values[0] > values[1] > values[2] > 0


@pytest.mark.parametrize("make", FIDELITY)
def test_the_score_of_a_clip_does_not_depend_on_its_batch(make: Callable[[], ClipScore]) -> None:
    video, target = videos(5, 0), videos(5, 1)
    parts = [make().score(video[rows], target[rows]) for rows in (slice(0, 3), slice(3, 5))]
    torch.testing.assert_close(torch.cat(parts), make().score(video, target), rtol=1e-6, atol=0)


def test_flicker_is_the_change_of_the_error_from_frame_to_frame() -> None:
    video, target = videos(2, 0, (3, 4, 5, 6)), videos(2, 1, (3, 4, 5, 6))
    for clip in range(2):
        squares = []
        for c, t, y, x in np.ndindex(3, 3, 5, 6):
            ours, theirs = (127.5 * float(v[clip, c, t + 1, y, x] - v[clip, c, t, y, x]) for v in (video, target))
            squares.append((ours - theirs) ** 2)
        expected = math.sqrt(sum(squares) / len(squares))
        assert float(ClipFlicker().score(video, target)[clip]) == pytest.approx(expected, rel=1e-5)
    assert mean(ClipFlicker(), target + 0.1, target) == pytest.approx(0, abs=1e-4)
    assert mean(ClipFlicker(), video[:, :, :1], target[:, :, :1]) == 0


def test_a_probe_is_ridge_regression_of_each_half() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (41,), generator=draw)
    vectors = torch.randn(41, 6, generator=draw) + 1.5 * torch.nn.functional.one_hot(labels, 6)
    order, x, y = noise.permutation(0, "probe", 41).numpy(), vectors.double().numpy(), labels.numpy()
    right = []
    for fitted, measured in ((order[:20], order[20:]), (order[20:], order[:20])):
        mean, wanted = x[fitted].mean(0), np.eye(3)[y[fitted]]
        known = x[fitted] - mean
        ridge = RIDGE * (known**2).sum(1).mean()
        weights = np.linalg.solve(known.T @ known + ridge * np.eye(6), known.T @ (wanted - wanted.mean(0)))
        scores = (x[measured] - mean) @ weights + wanted.mean(0)
        right.append((scores.argmax(1) == y[measured]).mean())
    assert probe_accuracy(vectors, labels) == pytest.approx(np.mean(right))
    assert probe_accuracy(torch.zeros(41, 6), labels) < 0.6 < probe_accuracy(vectors, labels)


def test_a_probe_reads_the_first_tokens_of_each_block() -> None:
    codes = torch.tensor([[[2, 0, -1], [1, -1, -1]]])
    codebook = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert prefix_vectors(codes, codebook, 2).tolist() == [[5, 6, 1, 2, 3, 4, 0, 0]]


@pytest.mark.parametrize("ddof", [0, 1])
def test_frechet_equals_scipy(ddof: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    real, fake = videos(40, 0), videos(30, 1) * 0.7 + 0.1
    (m1, s1), (m2, s2) = (
        (x.mean(0), np.cov(x, rowvar=False, ddof=ddof)) for x in (Pooled()(v).double().numpy() for v in (real, fake))
    )
    root = linalg.sqrtm(s1 @ s2).real
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    assert frechet(real, fake, ddof) == pytest.approx(expected, rel=1e-6)


def test_frechet_with_ddof_1_is_torchmetrics_own() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    real, fake = videos(20, 0), videos(20, 1)
    theirs = fid.FrechetInceptionDistance(feature=Pooled(), normalize=True)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    assert frechet(real, fake, 1) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_frechet_of_a_set_with_itself_is_zero() -> None:
    real = videos(24, 0)
    assert frechet(real, real, 0) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("clips", [2, 5, 12, 40])
def test_a_set_against_itself_is_at_distance_0_however_few_its_clips(clips: int) -> None:
    """With fewer clips than features covariances are singular: rounding under the square root made this negative."""
    draw = torch.Generator().manual_seed(clips)
    features = 50 + 20 * torch.randn(clips, 64, generator=draw, dtype=torch.float64)
    assert 0 <= frechet_distance(features, features) < 1e-7
    order = torch.randperm(clips, generator=torch.Generator().manual_seed(0))
    assert 0 <= frechet_distance(features, features[order]) < 1e-7
    assert frechet_distance(features, features + 1) == pytest.approx(64, rel=1e-9)


def test_singular_covariances_have_the_distance_that_is_known() -> None:
    """Of Gaussians that vary in one direction each, at right angles: the variances add up."""
    steps = torch.tensor([-1.0, 1.0] * 4, dtype=torch.float64)[:, None]
    along, across = torch.eye(64, dtype=torch.float64)[:2]
    assert frechet_distance(3 * steps * along, 4 * steps * across) == pytest.approx(9 + 16, rel=1e-12)
    assert frechet_distance(3 * steps * along, 4 * steps * along) == pytest.approx(1, rel=1e-12)


def test_halves_are_exact_and_drawn() -> None:
    for clips in (4, 5, 9, 32, 33):
        first, second = real_halves(torch.arange(clips)[:, None])
        assert len(first) == len(second) == clips // 2
        assert len({*first.flatten().tolist(), *second.flatten().tolist()}) == clips // 2 * 2
    assert real_halves(torch.arange(32)[:, None])[0].flatten().tolist() != list(range(16))


def test_a_distance_is_named_after_its_network_and_refuses_in_words() -> None:
    assert frechet_name(Pooled()) == "Frechet distance (pooled pixels)"
    with pytest.raises(ValueError, match="got 0 and 3"):
        frechet_distance(torch.empty(0, 8), torch.rand(3, 8))
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        Pooled().check(videos(1, 0, (3, 1, 16, 16)))
    with pytest.raises(ValueError, match="ddof"):
        frechet(videos(4, 0), videos(4, 1), 2)


def test_codebook_usage_by_hand() -> None:
    assert codebook_usage(torch.tensor([0, 1]), 8) == pytest.approx({"codebook used": 2 / 8, "codebook perplexity": 2})
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert codebook_usage(torch.tensor([0, 0, 0, 1]), 4)["codebook perplexity"] == pytest.approx(math.exp(entropy))
    with pytest.raises(ValueError, match="at least one kept token"):
        codebook_usage(torch.empty(0, dtype=torch.int64), 4)


def test_ms_ssim_is_one_for_equal_and_needs_five_scales() -> None:
    target = videos(1, 0, (3, 1, 176, 176))
    metric = ClipMSSSIM()
    assert float(metric.score(target, target)) == pytest.approx(1)
    noise = 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    assert 0 < float(metric.score(target + noise, target)) < 0.99
    for side in (160, 161, 175):  # 175, 87, 43, 21, 10
        with pytest.raises(ValueError, match=f"at least 176 pixels, got {side}x176"):
            metric.score(target[..., :side, :], target[..., :side, :])


def test_rows_that_count_once_each_give_the_plain_distance() -> None:
    real, fake = Pooled()(videos(40, 0)), Pooled()(videos(30, 1) * 0.7 + 0.1)
    once = (torch.full((40,), 1), torch.full((30,), 1))
    assert frechet_distance(real, fake, weights=once) == pytest.approx(frechet_distance(real, fake), rel=1e-9)
    with pytest.raises(ValueError, match="got 1 and 30"):
        frechet_distance(real[:1], fake)


def test_the_interval_is_as_wide_as_the_value_varies() -> None:
    """Over many draws of as many samples, the value lies in the interval of one draw about as often as it should."""
    generator = torch.Generator().manual_seed(0)

    def draw(shift: float) -> Tensor:
        return torch.randn(200, 4, generator=generator, dtype=torch.float64) + shift

    distances = [frechet_distance(draw(0.0), draw(0.5)) for _ in range(200)]
    mean = sum(distances) / len(distances)
    spread = (sum((d - mean) ** 2 for d in distances) / len(distances)) ** 0.5
    widths = []
    for _ in range(5):
        real, made = draw(0.0), draw(0.5)
        low, high = frechet_interval(real, made, resamples=200)
        assert low < frechet_distance(real, made) < high
        widths.append(high - low)
    assert sum(widths) / len(widths) == pytest.approx(2 * 1.96 * spread, rel=0.25)


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_is_that_of_resampled_rows(paired: bool) -> None:
    """The slow way: really repeat rows, really fit Gaussians; a pair is drawn as one where clips are paired."""
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(3)
    real = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    made = real * 0.8 + 0.3 + 0.2 * torch.randn(30, 3, generator=generator, dtype=torch.float64)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = linalg.sqrtm(first @ second).real
        return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))

    draw = torch.Generator().manual_seed(5)
    values = []
    for _ in range(40):
        rows = torch.randint(30, (30,), generator=draw)
        other = rows if paired else torch.randint(30, (30,), generator=draw)
        values.append(distance(real[rows].numpy(), made[other].numpy()))
    shifted = np.array(values) + distance(real.numpy(), made.numpy()) - np.mean(values)
    expected = (max(0.0, np.quantile(shifted, 0.05)), np.quantile(shifted, 0.95))
    found = frechet_interval(real, made, ddof=1, paired=paired, resamples=40, level=0.9, seed=5)
    assert found == pytest.approx(expected, rel=1e-6)


def test_pairs_that_move_together_have_a_narrow_interval() -> None:
    real = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    widths = [high - low for low, high in (frechet_interval(real, real + 0.5, paired=p) for p in (True, False))]
    assert widths[0] < 1e-6 < 0.2 < widths[1]


def test_bd_rate_of_known_curves() -> None:
    curve = [(100.0, 30.0), (200.0, 33.0), (400.0, 35.0), (800.0, 36.0)]
    half = [(rate / 2, quality) for rate, quality in curve]
    assert bd_rate(curve, curve) == pytest.approx(0, abs=1e-9)
    assert bd_rate(curve, half) == pytest.approx(-50, abs=1e-6)
    assert bd_rate(half, curve) == pytest.approx(100, abs=1e-5)
    distortion = [(rate, 1 / quality) for rate, quality in curve]
    assert bd_rate(distortion, [(0.8 * r, d) for r, d in distortion], lower_is_better=True) == pytest.approx(-20)
    with pytest.raises(ValueError, match="no quality in common"):
        bd_rate(curve, [(rate, quality + 10) for rate, quality in curve])
    with pytest.raises(ValueError, match="better than the cheaper one"):
        bd_rate(curve, [(100.0, 30.0), (200.0, 29.0)])


def test_bd_rate_interpolates_as_scipy_does() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    first = [(90.0, 28.0), (210.0, 32.5), (400.0, 34.0), (900.0, 36.5)]
    second = [(80.0, 29.0), (190.0, 32.0), (420.0, 35.0), (700.0, 35.5)]
    pieces = [interpolate.PchipInterpolator([q for _, q in c], np.log([r for r, _ in c])) for c in (first, second)]
    area = pieces[1].integrate(29.0, 35.5) - pieces[0].integrate(29.0, 35.5)
    assert bd_rate(first, second) == pytest.approx(100 * math.expm1(area / 6.5), rel=1e-4)
