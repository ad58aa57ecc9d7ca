"""From classes and prompts to videos, with a tokenizer whose tokens can be read by eye."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.published import PublishedConfig, PublishedTransformer
from genvid.generation.engine.scheduler import Engine
from genvid.generation.pipeline import (
    Generated,
    class_job,
    continue_video,
    generate,
    prediction_job,
)
from genvid.generation.sampler import SamplingConfig
from genvid.tokens import BlockTokens, TokenizerSpec
from genvid.tokens.rows import BlockLayout

LAYOUT = BlockLayout(codebook_size=8, num_classes=3, num_blocks=3, block_capacity=4, sizes=(1, 2, 4))
SIZES = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=24)


class PixelTokenizer:
    """2x1-pixel frames, two to a block: a token is a grey value of 8. Dropped pixels are decoded as 0."""

    spec = TokenizerSpec(2, (2, 1), block_capacity=4, token_dim=1, codebook_size=8, max_blocks=3)

    def encode(self, video: torch.Tensor) -> BlockTokens:
        blocks = self.spec.check_video(video)
        codes = ((video[:, 0].flatten(1) + 1) * 3.5).round().long().view(len(video), blocks, 4)
        return BlockTokens(torch.ones_like(codes).bool(), codes)

    def decode(self, tokens: BlockTokens) -> torch.Tensor:
        assert tokens.codes is not None
        grey = (tokens.codes / 3.5 - 1).where(tokens.keep, 0.0)
        return grey.view(len(grey), 1, -1, 2, 1).expand(-1, 3, -1, -1, -1)


def model_of(layout: BlockLayout = LAYOUT, context_blocks: int = 0) -> BlockTransformer:
    torch.manual_seed(0)
    model = BlockTransformer(ARConfig(layout, SIZES, context_blocks)).eval()
    torch.nn.init.normal_(model.llama.lm_head.weight)
    return model


def clip(frames: int, count: int = 3) -> torch.Tensor:
    codes = torch.randint(8, (count, 1, frames, 2, 1), generator=torch.Generator().manual_seed(3))
    return (codes / 3.5 - 1).expand(-1, 3, -1, -1, -1)


def make(model, job, config: SamplingConfig | None = None, slots: int = 2, **settings) -> Generated:
    return generate(Engine(model, config or SamplingConfig(), slots=slots), PixelTokenizer(), job, **settings)


def test_classes_to_videos_on_any_slots_and_in_any_batches():
    labels, seeds = torch.tensor([0, 1, 2, 1, 0]), torch.arange(5)
    model, config = model_of(), SamplingConfig(guidance=1.5)
    job = class_job(model, labels, seeds)
    whole = make(model, job, config, slots=5)
    parts = make(model, job, config, batch_size=2)
    assert whole.videos.shape == (5, 3, 6, 2, 1)
    assert torch.equal(whole.videos, parts.videos)
    assert torch.equal(whole.tokens.keep, parts.tokens.keep)
    assert torch.equal(whole.videos, PixelTokenizer().decode(whole.tokens))


def test_plans_reach_the_rows_they_are_for():
    model, planned = model_of(), torch.tensor([[1, 2, 4], [4, 4, 4], [2, 1, 1]])
    made = make(model, class_job(model, torch.arange(3), torch.arange(3), planned=planned))
    assert torch.equal(made.tokens.lengths, planned)


@pytest.mark.parametrize("blocks", [1, 2])
def test_predicted_videos_begin_with_their_context(blocks):
    model, context, seeds = model_of(context_blocks=blocks), clip(2 * blocks), torch.arange(3)
    made = make(model, prediction_job(model, PixelTokenizer(), None, context, seeds))
    assert made.videos.shape == (3, 3, 6, 2, 1)
    torch.testing.assert_close(made.videos[:, :, : 2 * blocks], context)

    def shorter(tokens: BlockTokens) -> BlockTokens:
        return tokens.tail_drop(torch.tensor([[1, 2], [2, 4], [4, 1]])[: len(tokens.keep), :blocks])

    cut = make(model, prediction_job(model, PixelTokenizer(), shorter, context, seeds))
    assert cut.tokens.lengths[:, :blocks].tolist() == [row[:blocks] for row in [[1, 2], [2, 4], [4, 1]]]


@pytest.mark.parametrize("at_a_time", [1, 2, None])
@pytest.mark.parametrize("given", [2, 5, 6])
def test_a_video_goes_on_as_far_as_asked(given, at_a_time):
    """Each part is what the model predicts from the last two frames before it, wherever the prompt ends."""
    model, tokenizer, context, seeds = model_of(context_blocks=1), PixelTokenizer(), clip(given), torch.arange(3)
    engine = Engine(model, SamplingConfig(temperature=0), slots=2)
    made = continue_video(engine, tokenizer, None, context, seeds, num_frames=9, at_a_time=at_a_time)
    assert made.videos.shape == (3, 3, given + 9, 2, 1)
    assert made.tokens.keep.shape == (3, 5, 4)
    assert torch.equal(made.videos[:, :, :given], context)
    step = 2 * (at_a_time or 2)
    for start in range(given, given + 9, step):
        job = prediction_job(model, tokenizer, None, made.videos[:, :, :start], seeds)
        window = generate(engine, tokenizer, job)
        assert torch.equal(
            window.tokens.keep[:, 1:2], made.tokens.keep[:, (start - given) // 2 : (start - given) // 2 + 1]
        )
        end = min(start + step, given + 9)
        torch.testing.assert_close(made.videos[:, :, start:end], window.videos[:, :, 2 : 2 + end - start])


def test_only_the_end_of_a_long_prompt_is_read_and_costs_tokens():
    model, seeds, asked = model_of(context_blocks=1), torch.arange(3), []

    def shorter(tokens: BlockTokens) -> BlockTokens:
        asked.append(tokens.keep.shape)
        return tokens.tail_drop(torch.ones(len(tokens.keep), 1))

    long, short = (prediction_job(model, PixelTokenizer(), shorter, clip(5)[:, :, n:], seeds) for n in (0, 3))
    assert long.requests == short.requests
    assert asked == [(3, 1, 4)] * 2
    assert {len(request.prefix) for request in long.requests} == {3}


def test_published_frame_prediction_replaces_the_padded_block():
    layout = BlockLayout(8, 0, num_blocks=2, block_capacity=4, framing="end")
    config = PublishedConfig(layout, replace(SIZES, rope_theta=None), context_blocks=2, first_block=1)
    torch.manual_seed(0)
    model = PublishedTransformer(config).eval()
    torch.nn.init.normal_(model.head.weight)
    context = clip(3)
    made = make(model, prediction_job(model, PixelTokenizer(), None, context, torch.arange(3)))
    assert made.videos.shape == (3, 3, 6, 2, 1)
    torch.testing.assert_close(made.videos[:, :, :2], context[:, :, :2])
    assert (model.prompt_frames(PixelTokenizer().spec), model.video_frames(PixelTokenizer().spec)) == (3, 6)
    with pytest.raises(ValueError, match="uncut and continues them once: leave out the allocator"):
        prediction_job(model, PixelTokenizer(), None, context, torch.arange(3), planned=torch.ones(3, 2))
    for frames in (2, 5):
        with pytest.raises(ValueError, match=f"takes 3 to 4 first frames, got {frames}"):
            prediction_job(model, PixelTokenizer(), None, clip(frames), torch.arange(3))


def test_bad_input_is_said_in_words():
    model, predictor = model_of(), model_of(context_blocks=1)
    tokenizer, one, three = PixelTokenizer(), torch.arange(1), torch.arange(3)
    with pytest.raises(ValueError, match="there are 3 classes"):
        class_job(model, torch.tensor([3]), one)
    with pytest.raises(ValueError, match="last 2 frames of a prompt, in blocks of 2 frames, but the prompt has 1"):
        prediction_job(predictor, tokenizer, None, clip(1), three)
    with pytest.raises(ValueError, match="last 4 frames of a prompt, in blocks of 2 frames, but the prompt has 3"):
        prediction_job(model_of(context_blocks=2), tokenizer, None, clip(3), three)
    with pytest.raises(ValueError, match="was not trained to predict frames"):
        prediction_job(model, tokenizer, None, clip(2), three)
    with pytest.raises(ValueError, match="does not generate classes"):
        class_job(predictor, torch.tensor([0]), one)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        continue_video(Engine(predictor, SamplingConfig()), tokenizer, None, clip(2), three, num_frames=0)
    other = model_of(replace(LAYOUT, codebook_size=9))
    with pytest.raises(ValueError, match="another tokenizer: it has 9 codes in blocks of 4, the tokenizer 8 codes"):
        make(other, class_job(other, torch.tensor([0]), one))
    longer = model_of(replace(LAYOUT, num_blocks=4))
    with pytest.raises(ValueError, match="rows have 4 blocks, but the tokenizer decodes at most 3"):
        make(longer, class_job(longer, torch.tensor([0]), one))
