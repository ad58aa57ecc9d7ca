import numpy as np
import pytest
import torch

from genvid import noise


def test_numbers_belong_to_the_seed_not_to_the_batch():
    seeds = noise.sample_seeds(7, "clips", torch.arange(6))
    everything = noise.uniform(seeds, "tail drop", 4, 3)
    assert torch.equal(noise.uniform(seeds[2:4], "tail drop", 4, 3), everything[2:4])
    assert torch.equal(noise.uniform(seeds, "tail drop", 12).view(6, 4, 3), everything)
    assert not torch.equal(noise.uniform(seeds, "label", 4, 3), everything)


def test_uniform_fills_the_open_interval_evenly():
    values = noise.uniform(noise.sample_seeds(0, "x", torch.arange(400)), "y", 500)
    assert 0 < values.min() < 1e-4
    assert 1 - 1e-4 < values.max() < 1
    histogram = torch.histc(values, bins=20, min=0, max=1) / values.numel()
    assert (histogram - 0.05).abs().max() < 0.002
    correlation = torch.corrcoef(torch.stack([values[:-1].flatten(), values[1:].flatten()]))[0, 1]
    assert abs(correlation) < 0.01


def test_consecutive_seeds_have_numbers_in_every_part_of_the_interval():
    seeds = noise.consecutive_seeds(torch.tensor(12345), 16_000)
    drawn = noise.stratified(seeds, "lengths", 3)
    parts = (drawn * noise.STRATA).long().view(-1, noise.STRATA, 3)
    assert parts.sort(1).values.equal(torch.arange(noise.STRATA)[:, None].expand_as(parts))
    assert len(parts.flatten(1).unique(dim=0)) == len(parts)  # each group in an order of its own
    assert noise.stratified(seeds[5:6], "lengths", 3).equal(drawn[5:6])


def test_stratified_numbers_of_one_seed_are_uniform_and_independent():
    drawn = noise.stratified(noise.sample_seeds(1, "clips", torch.arange(100_000)), "lengths", 2)
    assert float(drawn.min()) > 0
    assert float(drawn.max()) < 1
    counts = torch.histc(drawn[:, 0], 40, 0, 1)
    assert float((counts - 2500).square().sum() / 2500) < 80  # chi-squared of 39 degrees of freedom
    assert abs(float(torch.corrcoef(drawn.T)[0, 1])) < 0.015


def test_mixing_matches_unsigned_arithmetic():
    def mix(x: int) -> int:
        mask = 2**64 - 1
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    values = [1, 2**40 + 17, 2**63 - 1, -5]
    expected = np.array([mix(v % 2**64) for v in values], dtype=np.uint64).view(np.int64)
    assert noise._mix(torch.tensor(values)).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", [2**63, 2**70, -(2**63) - 1])
def test_a_seed_is_an_int64(seed):
    with pytest.raises(ValueError, match=f"from -2\\*\\*63 to 2\\*\\*63 - 1, got {seed}"):
        noise.sample_seeds(seed, "x", torch.arange(2))
    assert len(noise.sample_seeds(-(2**63), "x", torch.arange(2)).unique()) == 2
