"""Rows: packing is exact both ways, for every length."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genvid.tokens import BlockTokens
from genvid.tokens.rows import BlockLayout

LENGTH = BlockLayout(codebook_size=11, num_classes=3, num_blocks=3, block_capacity=5, sizes=(0, 1, 2, 3, 4, 5))
END = replace(LENGTH, sizes=(), framing="end")
BOTH = pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])


def tokens_of(lengths: torch.Tensor, capacity: int = 5, codebook: int = 11) -> BlockTokens:
    keep = torch.arange(capacity) < lengths[..., None]
    return BlockTokens(keep, torch.randint(codebook, keep.shape))


def spelled_out(layout: BlockLayout, tokens: BlockTokens, prefix: torch.Tensor) -> list[list[int]]:
    """The slow obvious packing."""
    rows = []
    assert tokens.codes is not None
    for video in range(len(prefix)):
        row = [int(i) for i in prefix[video] if i != layout.pad_id]
        for codes, length in zip(tokens.codes[video], tokens.lengths[video], strict=True):
            block = codes[:length].tolist()
            size_id = layout.codebook_size + (layout.sizes.index(int(length)) if layout.sizes else 0)
            row += [size_id, *block] if layout.framing == "length" else [*block, size_id]
        rows.append(row)
    return rows


@BOTH
@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=4))
def test_rows_are_as_spelled_out_and_unpack_to_the_same_tokens(layout, lengths):
    tokens = tokens_of(torch.tensor(lengths))
    prefix = layout.class_prefix(torch.arange(len(lengths)) % 3)
    packed = layout.pack(tokens, prefix)
    slow = spelled_out(layout, tokens, prefix)
    width = max(map(len, slow))
    assert packed.tokens.tolist() == [row + [layout.pad_id] * (width - len(row)) for row in slow]
    assert packed.is_target.tolist() == [[0 < i < len(row) for i in range(width)] for row in slow]
    back = layout.unpack(packed.tokens, 1)
    assert torch.equal(back.keep, tokens.keep)
    assert torch.equal(back.codes[back.keep], tokens.codes[tokens.keep])


@BOTH
def test_every_closing_token_is_a_target(layout):
    """The published trainer cuts rows short, so that the longest of a batch lose their last ENDs."""
    tokens = tokens_of(torch.tensor([[5, 5, 5], [0, 0, 0], [5, 5, 0]]))
    packed = layout.pack(tokens, layout.null_prefix(3))
    assert packed.is_target.sum(1).tolist() == [18, 3, 13]
    assert packed.tokens.shape[1] == layout.longest_row


@BOTH
def test_a_context_of_adaptive_length_reads_on_into_the_predicted_blocks(layout):
    tokens = tokens_of(torch.tensor([[2, 5, 1], [4, 1, 3]]))
    context, rest = (BlockTokens(tokens.keep[:, a:b], tokens.codes[:, a:b]) for a, b in ((0, 2), (2, 3)))
    prefix = layout.frame_prediction_prefix(context)
    assert layout.prefix_lengths(prefix).tolist() == [1 + 2 + 5 + 2, 1 + 4 + 1 + 2]
    packed = layout.pack(rest, prefix)
    assert packed.is_target.sum(1).tolist() == [2, 4]
    back = layout.unpack(packed.tokens, 1)
    assert torch.equal(back.keep, tokens.keep)
    assert torch.equal(back.codes[back.keep], tokens.codes[tokens.keep])


@BOTH
def test_coordinates_name_block_and_place(layout):
    packed = layout.pack(tokens_of(torch.tensor([[2, 0, 1], [3, 1, 2]])), layout.class_prefix(torch.tensor([0, 2])))
    block, place = layout.coordinates(packed.tokens)
    first = {
        "length": ([-1, 0, 0, 0, 1, 2, 2, -1, -1, -1], [-1, -1, 0, 1, -1, -1, 0, -1, -1, -1]),
        "end": ([-1, 0, 0, 0, 1, 2, 2, -1, -1, -1], [-1, 0, 1, 2, 0, 0, 1, -1, -1, -1]),
    }[layout.framing]
    assert (block[0].tolist(), place[0].tolist()) == first


def test_ids_do_not_overlap():
    for layout in (LENGTH, END):
        framing = set(range(layout.codebook_size, layout.num_outputs))
        classes = {int(layout.class_prefix(torch.tensor([c]))) for c in range(3)}
        rest = {layout.null_id, layout.frame_prediction_id, layout.pad_id}
        assert framing | classes | rest == set(range(11, layout.vocab_size))
        assert len(framing) + len(classes) + len(rest) == layout.vocab_size - 11


@BOTH
def test_pack_refuses_what_a_row_cannot_hold(layout):
    tokens, prefix = tokens_of(torch.tensor([[2, 3, 1]])), layout.null_prefix(1)
    gap = tokens.keep.clone()
    gap[0, 1, 0] = False
    assert tokens.codes is not None
    with pytest.raises(ValueError, match="gaps"):
        layout.pack(BlockTokens(gap, tokens.codes), prefix)
    with pytest.raises(ValueError, match="4 blocks x 5 do not fit a layout of 3 x 5"):
        layout.pack(tokens_of(torch.ones(1, 4, dtype=torch.long)), prefix)
    with pytest.raises(ValueError, match="2 tokens is none of the sizes"):
        replace(layout, sizes=(1, 3)).pack(tokens, prefix)
    with pytest.raises(ValueError, match="codebook of 11"):
        layout.pack(BlockTokens(tokens.keep, tokens.codes + 11), prefix)
    with pytest.raises(ValueError, match="continuous"):
        layout.pack(BlockTokens(tokens.keep), prefix)
    with pytest.raises(ValueError, match="there are 3 classes"):
        layout.class_prefix(torch.tensor([3]))


@BOTH
@pytest.mark.parametrize("damage", ["cut", "pad", "start", "moved"])
def test_unpack_refuses_rows_that_are_not_whole_blocks(layout, damage):
    rows = layout.pack(tokens_of(torch.tensor([[2, 3, 1], [2, 3, 1]])), layout.null_prefix(2)).tokens
    rows[1] = {
        "cut": torch.cat([rows[1, :-1], torch.tensor([layout.pad_id])]),
        "pad": torch.cat([rows[1, :3], torch.tensor([layout.pad_id]), rows[1, 4:]]),
        "start": torch.cat([rows[1, :3], torch.tensor([layout.null_id]), rows[1, 4:]]),
        "moved": torch.cat([rows[1, :1], rows[1, 2:], rows[1, 1:2]]),
    }[damage]
    with pytest.raises(ValueError, match="row 1"):
        layout.unpack(rows, 1)


def test_layouts_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="needs the sizes"):
        replace(LENGTH, sizes=())
    with pytest.raises(ValueError, match="ascending"):
        replace(LENGTH, sizes=(3, 1))
    with pytest.raises(ValueError, match="size 6 exceeds"):
        replace(LENGTH, sizes=(3, 6))
    with pytest.raises(ValueError, match="'length' or 'end'"):
        replace(LENGTH, framing="both")


@BOTH
@pytest.mark.parametrize("bins", [1, 4])
def test_a_budget_stands_second_and_changes_nothing_behind_it(layout, bins):
    told = replace(layout, budget_bins=bins)
    assert told.vocab_size == layout.vocab_size + bins + 1
    assert told.longest_row == layout.longest_row + 1
    assert [told.null_id, told.frame_prediction_id] == [layout.null_id, layout.frame_prediction_id]
    tokens = tokens_of(torch.tensor([[5, 5, 5], [0, 1, 0], [5, 2, 0]]))
    prefix = told.class_prefix(torch.tensor([0, 1, 2]))
    assert (prefix[:, 1] == told.any_budget_id).all()
    prefix = told.set_budget(prefix, tokens.lengths.sum(1))
    assert prefix[:, 0].tolist() == layout.class_prefix(torch.tensor([0, 1, 2]))[:, 0].tolist()
    assert (prefix[:, 1] - told.frame_prediction_id - 1).tolist() == [bins - 1, 0, 7 * bins // 16]
    packed = told.pack(tokens, prefix)
    plain = layout.pack(tokens, layout.null_prefix(3)).tokens
    assert torch.equal(packed.tokens[:, 2:], plain[:, 1:].where(plain[:, 1:] != layout.pad_id, told.pad_id))
    assert torch.equal(told.unpack(packed.tokens).keep, tokens.keep)
    context = told.set_budget(
        told.frame_prediction_prefix(tokens_of(torch.tensor([[3]] * 3))), torch.tensor([0, 4, 15])
    )
    rows = told.pack(tokens_of(torch.tensor([[1, 2]] * 3)), context)
    assert told.unpack(rows.tokens).lengths.tolist() == [[3, 1, 2]] * 3


def test_rows_without_budgets_cannot_tell_one():
    with pytest.raises(ValueError, match="train with budget_bins"):
        LENGTH.set_budget(LENGTH.null_prefix(1), torch.tensor([3]))
    with pytest.raises(ValueError, match="budget_bins is at least 0"):
        replace(LENGTH, budget_bins=-1)
