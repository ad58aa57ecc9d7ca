"""Refined codes: as many tokens, decoded nearer to the video, the same in any batch and any pushes."""

from dataclasses import replace

import pytest
import torch
from disturbed import disturbed

from genvid.allocation import UniformAllocator
from genvid.tokenizer.adaptok.config import AdapTokConfig, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.stream import StreamDecoder, StreamEncoder
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import FSQConfig, VQConfig
from genvid.tokenizer.refinement import refine_clips
from genvid.tokenizer.streams import video_encoder
from genvid.tokens import BlockTokens

STACK = StackConfig(24, 2, 2)
PUBLISHED = AdapTokConfig(
    frames=16,
    resolution=(16, 16),
    patch=(4, 8, 8),
    block_capacity=8,
    encoder=STACK,
    decoder=STACK,
    quantizer=VQConfig(codebook_size=64, code_dim=8),
)
GEOMETRY = RotaryGeometry(window=2, sides=(16, 32), aspect=(2, 1))
ROTARY = replace(PUBLISHED, pooled_queries=True, geometry=GEOMETRY)
CONFIGS = {
    "published": PUBLISHED,
    "rotary": ROTARY,
    "whitened": replace(PUBLISHED, quantizer=replace(PUBLISHED.quantizer, whiten=True)),
    "fsq": replace(PUBLISHED, quantizer=FSQConfig(levels=(5, 5, 5))),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return disturbed(AdapTok(CONFIGS[request.param]))


@pytest.fixture
def video():
    return torch.rand(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def errors(model, tokens, video):
    """(B, G) of each block."""
    squares = (model.decode(tokens).clamp(-1, 1) - video).square()
    return squares.unflatten(2, (-1, model.spec.frames_per_block)).mean((1, 3, 4, 5))


def cut(model, video):
    return UniformAllocator(5)(model.encode(video))


def test_the_kept_tokens_stay_and_the_first_block_is_nearer(model, video):
    tokens = cut(model, video)
    refined = refine_clips(model, video, tokens, steps=6)
    assert refined.keep.equal(tokens.keep)
    assert (errors(model, refined, video)[:, 0] < errors(model, tokens, video)[:, 0]).all()
    assert (errors(model, refined, video).mean(1) < errors(model, tokens, video).mean(1)).all()


def test_no_step_leaves_the_codes_and_a_clip_depends_on_itself_alone(model, video):
    tokens = cut(model, video)
    unchanged = refine_clips(model, video, tokens, steps=0)
    assert unchanged.codes[tokens.keep].equal(tokens.codes[tokens.keep])
    both = refine_clips(model, video, tokens, steps=3)
    alone = refine_clips(model, video[1:], tokens[1:], steps=3)
    assert alone.codes.equal(both.codes[1:])


def test_a_block_is_refined_for_the_decoder_that_has_the_refined_blocks_before_it():
    """The least error of each block that was met, by decoding all blocks with other codes in one of them."""
    torch.manual_seed(0)
    model = disturbed(AdapTok(PUBLISHED))
    video = torch.rand(1, 3, 8, 16, 16) * 2 - 1
    tokens = cut(model, video)
    refined = refine_clips(model, video, tokens, steps=6)
    mixed = replace(refined, codes=torch.cat([refined.codes[:, :1], tokens.codes[:, 1:]], 1))
    assert errors(model, refined, video)[0, 1] < errors(model, mixed, video)[0, 1]


@pytest.mark.parametrize("plan", [(16,), (3, 5), (1,)])
def test_a_stream_is_refined_alike_in_any_pushes(video, plan):
    torch.manual_seed(0)
    model, parts = disturbed(AdapTok(ROTARY)), []
    encoder, start = StreamEncoder(model, UniformAllocator(5), refine=3), 0
    while start < 16:
        for frames in plan:
            parts.append(encoder(video[:, :, start : start + frames]))
            start += frames
    tokens = BlockTokens.join_blocks(parts)
    expected = refine_clips(model, video, cut(model, video), steps=3)
    assert tokens.keep.equal(expected.keep)
    assert tokens.codes[tokens.keep].equal(expected.codes[tokens.keep])
    torch.testing.assert_close(StreamDecoder(model)(tokens), model.decode(expected))


def test_a_closed_loop_reads_refined_codes(video):
    torch.manual_seed(0)
    model = disturbed(AdapTok(replace(ROTARY, geometry=replace(GEOMETRY, closed_loop=True))))
    tokens = StreamEncoder(model, UniformAllocator(5), refine=3)(video)
    plain = StreamEncoder(model, UniformAllocator(5))(video)
    assert tokens.features[:, 0].equal(plain.features[:, 0])
    assert not tokens.codes[:, 0].equal(plain.codes[:, 0])
    assert not torch.allclose(tokens.features[:, 1], plain.features[:, 1])


def test_steps_that_cannot_be_are_refused(model):
    with pytest.raises(ValueError, match="at least 0 steps, got -1"):
        video_encoder(model, refine=-1)
    with pytest.raises(ValueError, match="at least 0 steps, got -1"):
        StreamEncoder(AdapTok(ROTARY), refine=-1)
    with pytest.raises(ValueError, match="tokens of AdapTok and LIT can be refined, not those of object"):
        video_encoder(object(), refine=1)
