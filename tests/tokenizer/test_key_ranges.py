"""Attention to ranges of keys equals that under the mask of all pairs, and its tiles hold all pairs that it needs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from genvid.tokenizer.adaptok.key_ranges import TILE, attend_to_ranges, tiles_of_ranges

Ranges = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def ranges(count: int = 700, groups: int = 9) -> Ranges:
    """Tokens of `groups` in order, each of a random size, the last third of them with numbers of their own."""
    torch.manual_seed(count)
    number = torch.randint(groups, (count,)).sort().values
    special = number >= 2 * groups // 3
    first = (number - torch.randint(4, (count,))).clamp(min=0)
    own = torch.where(special, groups + number, -1)
    return torch.where(special, groups + number, number), first, number, own


def allowed(numbers: torch.Tensor, first: torch.Tensor, last: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return ((numbers >= first[:, None]) & (numbers <= last[:, None])) | (numbers == own[:, None])


def tables(*places: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """FlexAttention's, of tiles."""
    torch.library.opcheck(tiles_of_ranges, places)
    return tiles_of_ranges(*places)[4:]


def test_queries_attend_to_their_ranges_and_to_their_own_number():
    places = ranges(50, 6)
    query, key, value = torch.randn(3, 2, 2, 50, 8, dtype=torch.double)
    expected = torch.empty_like(value)
    for token, row in enumerate(allowed(*places)):
        one = query[:, :, token, None]
        expected[:, :, token] = scaled_dot_product_attention(one, key[:, :, row], value[:, :, row])[:, :, 0]
    torch.testing.assert_close(attend_to_ranges(*places)(query, key, value), expected)


@pytest.mark.parametrize("count", [TILE, 700, 1024])
def test_tiles_hold_every_pair_and_whole_tiles_no_other(count):
    numbers, first, last, own = ranges(count)
    pairs = allowed(numbers, first, last, own)
    partial, partial_order, whole, whole_order = (part[0, 0] for part in tables(numbers, first, last, own))
    covered = torch.zeros_like(pairs)
    for row in range(len(partial)):
        for tiles, is_whole in ((partial_order[row, : partial[row]], False), (whole_order[row, : whole[row]], True)):
            for column in tiles.tolist():
                tile = slice(TILE * row, TILE * (row + 1)), slice(TILE * column, TILE * (column + 1))
                assert not covered[tile].any()
                assert pairs[tile].all() or not is_whole
                covered[tile] = True
    assert (covered | ~pairs).all()


def test_blocks_of_whole_tiles_need_no_mask():
    last = torch.arange(4).repeat_interleave(2 * TILE)
    partial, _, whole, _ = tables(last, torch.zeros_like(last), last, torch.full_like(last, -1))
    assert not partial.any()
    assert whole.flatten().tolist() == [2, 2, 4, 4, 6, 6, 8, 8]


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [8, 48, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_compiled_step_attends_to_the_same_keys(gpu: torch.device, channels: int, dtype: torch.dtype):
    places = [value.to(gpu) for value in ranges()]
    inputs, weights = torch.randn(3, 1, 2, 700, channels, device=gpu), torch.randn(1, 2, 700, channels, device=gpu)

    def gradient(inputs: torch.Tensor, *places: torch.Tensor) -> torch.Tensor:
        inputs = inputs.detach().requires_grad_()
        attended = attend_to_ranges(*places)(*inputs.unbind())
        (found,) = torch.autograd.grad((attended * weights.to(attended.dtype)).sum(), inputs)
        return torch.cat([attended.detach()[None], found])

    class Step(torch.nn.Module):
        def forward(self, inputs, *places):
            return attend_to_ranges(*places)(*inputs.unbind())

    exact = gradient(inputs.double(), *places)
    half = inputs.to(dtype).requires_grad_()
    attended = torch.compile(Step(), dynamic=False)(half, *places)
    (found,) = torch.autograd.grad((attended * weights.to(dtype)).sum(), half)
    rounded = torch.cat([attended.detach()[None], found]).double()
    assert (rounded - exact).norm() < 0.01 * exact.norm()
