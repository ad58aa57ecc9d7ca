"""Refined latents: as many, decoded nearer to the video, of each clip by itself."""

from dataclasses import replace

import pytest
import torch
from tiny_codecs import cosmos, drifting, make_lit

from genvid.tokenizer.lit.budget import BudgetAllocator
from genvid.tokenizer.lit.model import fill_by_copying
from genvid.tokenizer.lit.refinement import refine_latents
from genvid.tokenizer.refinement import check_refined, refine_clips
from genvid.tokenizer.streams import video_encoder
from genvid.tokens.blocks import MeanTokens


@pytest.fixture(scope="module")
def lit(tmp_path_factory):
    return make_lit(cosmos(tmp_path_factory.mktemp("lit") / "codec", window=9))


@pytest.fixture(scope="module")
def video():
    return drifting(2, 18)


def errors(frames, video):
    return (frames.clamp(-1, 1) - video).square().flatten(1).mean(1)


@pytest.mark.parametrize("means", [True, False])
def test_the_same_latents_are_sent_and_the_clip_is_nearer(lit, video, means):
    tokens = BudgetAllocator(40, lit.metric, means=means)(lit.encode(video))
    refined = refine_clips(lit, video, tokens, steps=5)
    assert isinstance(refined, MeanTokens) == means
    assert refined.keep.equal(tokens.keep)
    assert refined.latents[~tokens.keep].equal(tokens.latents[~tokens.keep])
    assert not refined.latents.requires_grad
    assert (errors(lit.decode(refined), video) < errors(lit.decode(tokens), video)).all()
    alone = refine_clips(lit, video[1:], tokens[1:], steps=5)
    torch.testing.assert_close(alone.latents, refined.latents[1:], rtol=1e-3, atol=1e-3)
    split = refine_clips(lit, video, tokens, steps=5, batch_size=1)
    torch.testing.assert_close(split.latents, refined.latents, rtol=1e-3, atol=1e-3)


def test_the_first_step_goes_down_the_gradient_by_a_fifth_of_the_error(lit, video):
    tokens = BudgetAllocator(40, lit.metric)(lit.encode(video))
    sent = tokens.latents.clone().requires_grad_()
    error = errors(lit.render(fill_by_copying(replace(tokens, latents=sent))), video) / 4
    (gradient,) = torch.autograd.grad(error.sum(), sent)
    refined = refine_latents(lit, video, tokens, 1, fill_by_copying)
    length = 0.2 * lit.inverse.norm(dim=0) * (error.detach() / lit.pixel_error).sqrt()[:, None, None, None]
    expected = torch.where(tokens.keep[..., None], tokens.latents - length * gradient.sign(), tokens.latents)
    made = lit.render(fill_by_copying(replace(tokens, latents=expected))).detach()
    better = errors(made, video) / 4 < error
    chosen = torch.where(better[:, None, None, None], expected, tokens.latents)
    moved = gradient.abs() > 1e-6
    torch.testing.assert_close(refined.latents[moved], chosen[moved], rtol=1e-3, atol=1e-4)


def test_no_step_changes_nothing_and_encoders_refine_after_the_budget(lit, video):
    tokens = BudgetAllocator(40, lit.metric)(lit.encode(video))
    assert refine_clips(lit, video, tokens, steps=0) is tokens
    encoded = video_encoder(lit, BudgetAllocator(40, lit.metric), refine=2)(video)
    torch.testing.assert_close(encoded.latents, refine_clips(lit, video, tokens, steps=2).latents)


def test_other_tokenizers_and_negative_steps_are_refused(lit):
    with pytest.raises(ValueError, match="at least 0 steps, got -1"):
        check_refined(lit, -1)
    with pytest.raises(ValueError, match="tokens of AdapTok and LIT can be refined, not those of object"):
        check_refined(object(), 1)
