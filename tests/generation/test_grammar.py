"""The grammar lets through exactly the rows that unpack."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from genvid.generation.grammar import BlockGrammar
from genvid.tokens.rows import BlockLayout

LENGTH = BlockLayout(codebook_size=2, num_classes=0, num_blocks=2, block_capacity=2, sizes=(0, 2))
END = replace(LENGTH, sizes=(), framing="end")
LIMITED = replace(LENGTH, framing="end")


def accepted(layout: BlockLayout, planned: tuple[int, ...] | None = None) -> set[tuple[int, ...]]:
    """Every row the grammar can produce, by walking all its choices."""
    rows, open_rows = set(), [()]
    while open_rows:
        row = open_rows.pop()
        plan = None if planned is None else torch.tensor([planned])
        grammar = BlockGrammar(layout, 1, layout.num_blocks, planned=plan)
        for token in row:
            grammar.advance(torch.tensor([token]), torch.tensor([True]))
        if grammar.finished.all():
            rows.add(row)
        else:
            open_rows += [(*row, int(token)) for token in grammar.allowed()[0].nonzero()]
    return rows


def written(layout: BlockLayout, lengths: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Every row of blocks of these lengths, spelled out."""
    rows = set()
    for codes in product(range(layout.codebook_size), repeat=sum(lengths)):
        row, rest = [], list(codes)
        for length in lengths:
            block = [rest.pop(0) for _ in range(length)]
            frame = layout.codebook_size + (layout.sizes.index(length) if layout.framing == "length" else 0)
            row += [frame, *block] if layout.framing == "length" else [*block, frame]
        rows.add(tuple(row))
    return rows


@pytest.mark.parametrize(
    ("layout", "first", "second"),
    [(LENGTH, (0, 2), (0, 2)), (END, (1, 2), (0, 1, 2)), (LIMITED, (2,), (0, 2))],
    ids=["length", "end", "end with sizes"],
)
def test_exactly_the_rows_of_allowed_lengths(layout, first, second):
    """In "end" framing the first block is not empty, as published."""
    assert accepted(layout) == set().union(*(written(layout, pair) for pair in product(first, second)))


@pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
@pytest.mark.parametrize("planned", [(2, 0), (0, 2), (2, 2), (0, 0)])
def test_a_plan_is_followed(layout, planned):
    assert accepted(layout, planned) == written(layout, planned)


def test_a_plan_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="1 tokens is none of the sizes"):
        BlockGrammar(LENGTH, 1, 2, planned=torch.tensor([[2, 1]]))
    with pytest.raises(ValueError, match="3 tokens is none of the sizes 0 to 2"):
        BlockGrammar(END, 1, 2, planned=torch.tensor([[2, 3]]))
    with pytest.raises(ValueError, match=r"planned lengths are \(1, 2\), got \(2, 2\)"):
        BlockGrammar(END, 1, 2, planned=torch.zeros(2, 2))
