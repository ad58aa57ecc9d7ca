"""Fréchet distance between two sets of videos (arXiv:1812.01717), from their feature vectors.

Float64 throughout; the covariance estimator, in which video protocols differ, is an argument; the square root is exact
where covariances are singular; the name of a distance carries its network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genvid import noise
from genvid.eval.features.base import FeatureNetwork

FEWEST_REAL = 4
"""Real clips without which there is no floor: two on each side."""


def frechet_name(features: FeatureNetwork) -> str:
    """`FVD` for the verified network of that metric, `Frechet distance (network)` for any other."""
    return "FVD" if features.is_fvd else f"Frechet distance ({features.name})"


def frechet_distance(
    real: Tensor, made: Tensor, *, ddof: int = 0, weights: tuple[Tensor, Tensor] | None = None
) -> float:
    """Distance of the Gaussians fitted to features (N, F) and (M, F); lower is better.

    `ddof` 0 divides covariances by N (LARP, AdapTok, StyleGAN-V), 1 by N - 1 (TATS, VideoGPT). `weights`: how often
    each row counts, (N,) and (M,) counts that sum to N and M.
    """
    if ddof not in (0, 1):
        raise ValueError(f"ddof is 0 (divide by N) or 1 (divide by N - 1), got {ddof}")
    moments: list[Tensor] = []
    for features, counts in zip((real, made), weights or (None, None), strict=True):
        if len(features) < 2:
            raise ValueError(f"a Frechet distance needs two videos on each side, got {len(real)} and {len(made)}")
        rows = features.double()
        weight = torch.ones_like(rows[:, :1]) if counts is None else counts.to(rows)[:, None]
        mean = (weight * rows).sum(0) / len(rows)
        centred = rows - mean
        moments += [mean, (weight * centred).T @ centred / (len(rows) - ddof)]
    return float(gaussian_distance(*moments))


def gaussian_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """Squared Fréchet distance of two Gaussians, (F,) means and (F, F) covariances, float64; never below 0.

    The trace of (C D)^1/2 is the sum of the singular values of C^1/2 D^1/2. Roots of the eigenvalues of C D would be
    wrong by 1e-8 of the largest for each direction in which clips do not vary (400 features of 100 clips have 300
    such), because rounding of 1e-16 becomes 1e-8 under the root: a set against itself then gets a distance below 0.
    """
    root, other_root = _square_root(covariance), _square_root(other_covariance)
    common = torch.linalg.svdvals(root @ other_root).sum()
    # The traces are those of the roots, so that equal sets cancel.
    spread = root.square().sum() + other_root.square().sum() - 2 * common
    distance: Tensor = (mean - other_mean).square().sum() + spread
    return distance.clamp(min=0)


def _square_root(covariance: Tensor) -> Tensor:
    """Symmetric root of an (F, F) covariance; eigenvalues that are rounding errors count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    smallest = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = (vectors * torch.where(values > smallest, values, 0.0).sqrt()) @ vectors.T
    return root


def real_halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Two halves of (N, F) rows with exactly N // 2 each; where N is odd, one row is in neither.

    Halves are drawn: every other row would be every other class where classes take turns.
    """
    order, half = noise.permutation(0, "halves", len(rows)).to(rows.device), len(rows) // 2
    return rows[order[:half]], rows[order[half : 2 * half]]


def frechet_interval(
    real: Tensor,
    made: Tensor,
    *,
    ddof: int = 0,
    paired: bool = False,
    resamples: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of `frechet_distance`: how far the value would move with other clips, as many as these.

    Both sides are drawn anew with replacement, together where they are `paired` (each row of one was made from that
    row of the other). Repeated rows bias each resample upwards, so the quantiles are shifted by the difference between
    the value and the resamples' mean. The bias of a finite number of clips, which the floor measures, stays in.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        return torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count)

    def resample() -> float:
        counts = draw(len(real))
        return frechet_distance(real, made, ddof=ddof, weights=(counts, counts if paired else draw(len(made))))

    values = torch.tensor([resample() for _ in range(resamples)], dtype=torch.float64)
    shift = frechet_distance(real, made, ddof=ddof) - values.mean()
    low, high = torch.quantile(values + shift, values.new_tensor([(1 - level) / 2, (1 + level) / 2])).tolist()
    return max(low, 0.0), high
