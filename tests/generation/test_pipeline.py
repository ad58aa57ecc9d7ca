"""From classes and prompts to videos, with a tokenizer whose tokens can be read by eye."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.published import PublishedConfig, PublishedTransformer
from genvid.generation.pipeline import generate_classes, predict_frames, predict_frames_as_published
from genvid.generation.sampler import SamplingConfig
from genvid.sequence import BlockLayout
from genvid.tokens import BlockTokens, TokenizerSpec

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


def test_classes_to_videos_in_any_batches():
    labels, seeds, seen = torch.tensor([0, 1, 2, 1, 0]), torch.arange(5), []
    whole = generate_classes(model_of(), PixelTokenizer(), labels, seeds, SamplingConfig(guidance=1.5))
    parts = generate_classes(
        model_of(),
        PixelTokenizer(),
        labels,
        seeds,
        SamplingConfig(guidance=1.5),
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert whole.videos.shape == (5, 3, 6, 2, 1)
    assert torch.equal(whole.videos, parts.videos)
    assert torch.equal(whole.tokens.keep, parts.tokens.keep)
    assert torch.equal(whole.videos, PixelTokenizer().decode(whole.tokens))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_plans_reach_the_rows_they_are_for():
    planned = torch.tensor([[1, 2, 4], [4, 4, 4], [2, 1, 1]])
    generated = generate_classes(
        model_of(), PixelTokenizer(), torch.arange(3), torch.arange(3), SamplingConfig(), planned=planned, batch_size=2
    )
    assert torch.equal(generated.tokens.lengths, planned)


@pytest.mark.parametrize("blocks", [1, 2])
def test_predicted_videos_begin_with_their_context(blocks):
    model, context, seeds = model_of(context_blocks=blocks), clip(2 * blocks), torch.arange(3)
    generated = predict_frames(model, PixelTokenizer(), None, context, seeds, SamplingConfig(), batch_size=2)
    assert generated.videos.shape == (3, 3, 6, 2, 1)
    torch.testing.assert_close(generated.videos[:, :, : 2 * blocks], context)

    def shorter(tokens: BlockTokens) -> BlockTokens:
        return tokens.tail_drop(torch.tensor([[1, 2], [2, 4], [4, 1]])[: len(tokens.keep), :blocks])

    cut = predict_frames(model, PixelTokenizer(), shorter, context, seeds, SamplingConfig())
    assert cut.tokens.lengths[:, :blocks].tolist() == [row[:blocks] for row in [[1, 2], [2, 4], [4, 1]]]


def test_published_frame_prediction_replaces_the_padded_block():
    layout = BlockLayout(8, 0, num_blocks=2, block_capacity=4, framing="end")
    config = PublishedConfig(layout, replace(SIZES, rope_theta=None), context_blocks=2, first_block=1)
    torch.manual_seed(0)
    model = PublishedTransformer(config).eval()
    torch.nn.init.normal_(model.head.weight)
    context = clip(3)
    generated = predict_frames_as_published(model, PixelTokenizer(), context, torch.arange(3), SamplingConfig())
    assert generated.videos.shape == (3, 3, 6, 2, 1)
    torch.testing.assert_close(generated.videos[:, :, :2], context[:, :, :2])
    for frames in (2, 5):
        with pytest.raises(ValueError, match=f"takes 3 to 4 first frames, got {frames}"):
            predict_frames_as_published(model, PixelTokenizer(), clip(frames), torch.arange(3), SamplingConfig())


def test_bad_input_is_said_in_words():
    model, predictor = model_of(), model_of(context_blocks=1)
    tokenizer, config = PixelTokenizer(), SamplingConfig()
    with pytest.raises(ValueError, match="there are 3 classes"):
        generate_classes(model, tokenizer, torch.tensor([3]), torch.arange(1), config)
    with pytest.raises(ValueError, match="prompt of 1 frames is shorter than a block of 2"):
        predict_frames(predictor, tokenizer, None, clip(1), torch.arange(3), config)
    with pytest.raises(ValueError, match="continues prompts of 2 frames, got 4"):
        predict_frames(predictor, tokenizer, None, clip(4), torch.arange(3), config)
    with pytest.raises(ValueError, match="was not trained to predict frames"):
        predict_frames(model, tokenizer, None, clip(2), torch.arange(3), config)
    with pytest.raises(ValueError, match="does not generate classes"):
        generate_classes(predictor, tokenizer, torch.tensor([0]), torch.arange(1), config)
    other = model_of(replace(LAYOUT, codebook_size=9))
    with pytest.raises(ValueError, match="another tokenizer: it has 9 codes in blocks of 4, the tokenizer 8 codes"):
        generate_classes(other, tokenizer, torch.tensor([0]), torch.arange(1), config)
    longer = model_of(replace(LAYOUT, num_blocks=4))
    with pytest.raises(ValueError, match="rows have 4 blocks, but the tokenizer decodes at most 3"):
        generate_classes(longer, tokenizer, torch.tensor([0]), torch.arange(1), config)
