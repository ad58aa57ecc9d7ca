"""Counter-based random numbers: a pure function of (seed, stream, position).

Every random choice that concerns one video (its crop, tail drop, sampled codes and sampled tokens) is drawn from the
seed of that video. Results do not depend on batch size, order, number of processes or device, and an interrupted run
continues exactly, without saved generator states.

The mixing function is the 64-bit finaliser of SplitMix (Steele, Lea and Flood 2014), in wrapping int64 arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STRATA = 8
"""A power of two: consecutive seeds, from a multiple of it on, that `stratified` spreads evenly."""
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 (torch shifts arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def _number(stream: str) -> int:
    """A stream's number: FNV-1a, written out so that torch.compile can fold it to a constant."""
    value = 0x811C9DC5
    for character in stream:
        value = ((value ^ ord(character)) * 0x01000193) % 2**32
    return value


def fold(seeds: Tensor, value: int | str | Tensor) -> Tensor:
    """New int64 seeds from old ones and a step number, a stream name or a tensor that broadcasts with them."""
    if isinstance(value, str):
        value = _number(value)
    if isinstance(value, int):
        value = (value * _GOLDEN + 2**63) % 2**64 - 2**63
    else:
        value = value * _GOLDEN
    return _mix(_mix(seeds + _GOLDEN) ^ value)


def uniform(seeds: Tensor, stream: str, *shape: int) -> Tensor:
    """(B,) int64 seeds -> (B, *shape) float64 in the open interval (0, 1)."""
    own, count = fold(seeds, stream), math.prod(shape)
    bits = fold(own, 0)[:, None] if count == 1 else _bits(own, count)  # one alone is compiled with the code around it
    return ((_shift_right(bits, 12).double() + 0.5) * 2.0**-52).view(len(seeds), *shape)


def stratified(seeds: Tensor, stream: str, count: int) -> Tensor:
    """(B,) int64 seeds -> (B, count) float64 in the open interval (0, 1), as `uniform`, and still a function of each
    seed alone; but at each position `STRATA` seeds from a multiple of `STRATA` on have one number in each of `STRATA`
    equal parts of the interval, in a drawn order: Latin hypercube sampling (McKay, Beckman and Conover 1979)."""
    order = uniform(seeds & -STRATA, f"{stream}, strata", count, STRATA)
    own = order.gather(2, (seeds & (STRATA - 1))[:, None, None].expand(-1, count, 1))
    part = (order < own).sum(2)
    return ((part + uniform(seeds, stream, count)) / STRATA).clamp(max=1 - 2.0**-53)


@torch.library.custom_op("genvid::noise_bits", mutates_args=())
def _bits(seeds: Tensor, count: int) -> Tensor:
    """(B,) int64 -> (B, count) int64. Opaque to torch.compile, which would narrow the counter to 32 bits on a GPU."""
    return fold(seeds[:, None], torch.arange(count, device=seeds.device))


@_bits.register_fake
def _(seeds: Tensor, count: int) -> Tensor:
    return seeds.new_empty(len(seeds), count)


def sample_seeds(seed: int, stream: str, indices: Tensor) -> Tensor:
    """One int64 seed for each of the (N,) indices of a run."""
    return fold(fold(torch.tensor(check_seed(seed), device=indices.device), stream), indices)


def consecutive_seeds(seed: Tensor, count: int) -> Tensor:
    """() int64 -> (count,) seeds one after another, the first of them a multiple of `STRATA`."""
    return (seed & -STRATA) + torch.arange(count)


def check_seed(seed: int) -> int:
    """The seed itself; ValueError unless it is an int64."""
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"a seed is a whole number from -2**63 to 2**63 - 1, got {seed}")
    return seed


def permutation(seed: int, stream: str, count: int) -> Tensor:
    """(N,) int64: the numbers 0 to N - 1 in a drawn order."""
    return sample_seeds(seed, stream, torch.arange(count)).argsort(stable=True)
