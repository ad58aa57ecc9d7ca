from dataclasses import replace

import pytest
import torch

from genvid.tokens import BlockTokens, TokenizerSpec
from genvid.tokens.blocks import MeanTokens

SPEC = TokenizerSpec(frames_per_block=4, resolution=(16, 16), block_capacity=8, token_dim=4, max_blocks=2)


def test_tail_drop_keeps_a_prefix_of_what_was_kept():
    tokens = BlockTokens(torch.ones(2, 3, 8, dtype=torch.bool))
    lengths = torch.tensor([[8, 0, 3], [1, 5, 8]])
    dropped = tokens.tail_drop(lengths)
    assert torch.equal(dropped.lengths, lengths)
    assert torch.equal(dropped.tail_drop(lengths + 2).lengths, lengths)


def test_selecting_and_concatenating_videos_are_inverse():
    tokens = BlockTokens(torch.ones(4, 2, 8, dtype=torch.bool), codes=torch.arange(64).view(4, 2, 8))
    again = BlockTokens.concatenate([tokens[:1], tokens[1:]])
    assert torch.equal(again.codes, tokens.codes)
    assert again.latents is None


def test_fields_must_agree():
    with pytest.raises(ValueError, match="codes of shape"):
        BlockTokens(torch.ones(1, 2, 8, dtype=torch.bool), codes=torch.zeros(1, 2, 7))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 6, 16, 16), "multiple of 4"),
        ((1, 3, 12, 16, 16), "at most 2"),
        ((1, 3, 8, 16, 20), "takes 16x16 frames, got 16x20"),
        ((1, 1, 8, 16, 16), r"\(B, 3, T, H, W\)"),
    ],
)
def test_videos_that_do_not_fit_are_refused_in_words(shape, words):
    with pytest.raises(ValueError, match=words):
        SPEC.check_video(torch.zeros(shape))
    assert SPEC.check_video(torch.zeros(1, 3, 8, 16, 16)) == 2


def test_bits_count_kept_tokens_and_side_information():
    spec = TokenizerSpec(frames_per_block=4, resolution=(16, 16), block_capacity=7, token_dim=4, codebook_size=32)
    full = BlockTokens(torch.ones(2, 2, 7, dtype=torch.bool))
    cut = full.tail_drop(torch.tensor([[3, 1], [4, 0]]))
    assert spec.clip_bits(cut).tolist() == [4 * 5 + 2 * 3] * 2
    scattered = BlockTokens(torch.tensor([[[False, True] + [False] * 5] * 2]))
    assert spec.clip_bits(scattered).tolist() == [2 * 5 + 2 * 7]
    continuous = replace(spec, codebook_size=None)
    assert continuous.clip_bits(BlockTokens(torch.ones(1, 1, 7, dtype=torch.bool))).tolist() == [7 * 4 * 16 + 3]


def test_parts_are_of_the_same_kind():
    means = MeanTokens(torch.ones(2, 3, 8, dtype=torch.bool), latents=torch.rand(2, 3, 8, 4))
    parts = [means.select_blocks(slice(1)), means.select_blocks(slice(1, None))]
    joined = BlockTokens.join_blocks(parts)
    assert {type(part) for part in [*parts, joined, means[:1], means.to("cpu")]} == {MeanTokens}
    assert torch.equal(joined.latents, means.latents)
