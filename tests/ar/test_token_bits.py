"""Bits of tokens under a model: one pass of each prefix, token by token."""

import math

import pytest
import torch

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.token_bits import token_bits
from genvid.tokens import BlockTokens
from genvid.tokens.rows import BlockLayout

ROWS = TransformerConfig(width=16, depth=2, heads=2, kv_heads=2, hidden=24, max_positions=40)


def make_model(framing, **config):
    torch.manual_seed(0)
    layout = BlockLayout(10, 3, 2, 4, sizes=(1, 2, 3, 4) if framing == "length" else (), framing=framing)
    return BlockTransformer(ARConfig(layout, ROWS, **config)).eval()


@pytest.mark.parametrize("framing", ["length", "end"])
def test_bits_are_those_of_each_token_after_the_ones_before_it(framing):
    model, labels = make_model(framing), torch.tensor([2, 0, 1, 2, 0])
    lengths = torch.tensor([[1, 4], [3, 2], [4, 4], [2, 1], [4, 3]])
    keep = torch.arange(4) < lengths[..., None]
    codes = torch.randint(10, keep.shape)
    bits = token_bits(model, BlockTokens(keep, codes), labels)
    assert bits.isnan().equal(~keep)
    for video in range(5):
        row = model.layout.class_prefix(labels[video : video + 1])[0].tolist()
        for block in range(2):
            count = int(lengths[video, block])
            if framing == "length":
                row.append(int(model.layout.length_ids(torch.tensor(count))))
            for place in range(count):
                with torch.no_grad():
                    chances = model(torch.tensor([row]))[0, -1].softmax(-1)
                code = int(codes[video, block, place])
                assert bits[video, block, place].item() == pytest.approx(-math.log2(float(chances[code])), rel=1e-4)
                row.append(code)
            if framing == "end":
                row.append(model.layout.codebook_size)


def test_a_frame_predictor_has_no_complete_videos():
    keep = torch.ones(1, 2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="continues videos"):
        token_bits(make_model("length", context_blocks=1), BlockTokens(keep, keep.long()), torch.zeros(1).long())
