"""A stream goes on from its tokens: nothing is encoded again, and frames come block after block."""

from dataclasses import replace

import pytest
import torch

from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.checkpoint import load_model
from genvid.generation.engine.scheduler import Engine
from genvid.generation.pipeline import check_match, continue_stream
from genvid.generation.sampler import SamplingConfig
from genvid.tokenizer.adaptok.config import AdapTokConfig, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokenizer.streams import video_decoder, video_encoder
from genvid.tokens import BlockTokens
from genvid.tokens.rows import BlockLayout

STACK = StackConfig(16, 1, 2)
GEOMETRY = RotaryGeometry(window=2, sides=(16, 32), aspect=(2, 1))
CONFIG = AdapTokConfig(8, (16, 16), (4, 8, 8), 4, STACK, STACK, VQConfig(16, 4), True, GEOMETRY)
LAYOUT = BlockLayout(codebook_size=16, num_classes=0, num_blocks=4, block_capacity=4, sizes=(1, 2, 4))


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    tokenizer = AdapTok(CONFIG).eval()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    sizes = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=40)
    model = BlockTransformer(ARConfig(LAYOUT, sizes, context_blocks=2)).eval()
    torch.nn.init.normal_(model.llama.lm_head.weight)
    return tokenizer, model


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_a_stream_goes_on_for_64_frames_and_more(parts, at_a_time, monkeypatch):
    tokenizer, model = parts
    check_match(model, tokenizer)
    video = torch.rand(2, 3, 20, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    tokens, decode_next = video_encoder(tokenizer)(video), video_decoder(tokenizer)
    tokens = tokens.tail_drop(torch.tensor([[4, 2, 1, 4, 2], [2, 2, 4, 1, 4]])).blocks(slice(None))
    frames = [decode_next(tokens).clamp(-1, 1)]
    monkeypatch.setattr(AdapTok, "encode_next", None)  # nothing is encoded from here on
    engine = Engine(model, SamplingConfig(), slots=2)
    made = list(continue_stream(engine, decode_next, tokens, torch.arange(2), num_blocks=17, at_a_time=at_a_time))
    assert [part.videos.shape[2] for part in made] == ([4] * 17 if at_a_time == 1 else [8] * 8 + [4])
    whole = BlockTokens.join_blocks([tokens, *(part.tokens for part in made)])
    assert whole.keep.shape == (2, 22, 4)
    frames += [part.videos for part in made]
    torch.testing.assert_close(torch.cat(frames, 2), tokenizer.decode(whole).clamp(-1, 1), atol=1e-4, rtol=0)


def test_each_part_reads_the_last_blocks_of_tokens(parts):
    tokenizer, model = parts
    video = torch.rand(1, 3, 16, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    tokens = video_encoder(tokenizer)(video).blocks(slice(None))
    engine, ended = Engine(model, SamplingConfig(temperature=0), slots=2), []
    for given in (tokens, tokens.blocks(slice(2, 4))):
        decode_next = video_decoder(tokenizer)
        decode_next(given)
        parts_made = continue_stream(engine, decode_next, given, torch.arange(1), num_blocks=3)
        ended.append(BlockTokens.join_blocks([part.tokens for part in parts_made]))
    assert ended[0].lengths.equal(ended[1].lengths)
    assert ended[0].codes[ended[0].keep].equal(ended[1].codes[ended[1].keep])
    with pytest.raises(ValueError, match="this model continues 2 blocks, got 1"):
        next(continue_stream(engine, video_decoder(tokenizer), tokens.blocks(slice(1)), torch.arange(1), num_blocks=1))


@torch.no_grad()
def greedy_block(model: BlockTransformer, context: BlockTokens) -> list[int]:
    """The likeliest codes of the block after `context`, each from a pass over all tokens before it."""
    layout = model.layout
    row = layout.frame_prediction_prefix(context)

    def likeliest(first: int, end: int) -> int:
        return first + int(model(row)[0, -1, first:end].argmax())

    ids = [likeliest(16, 19)]  # the length of the block
    for _ in range(layout.sizes[ids[0] - 16]):
        row = torch.cat([row, torch.tensor([ids[-1:]])], 1)
        ids.append(likeliest(0, 16))
    return ids[1:]


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_the_first_blocks_stay_when_the_window_moves_on(parts, at_a_time, tmp_path):
    tokenizer, model = parts
    sizes = model.config.transformer
    model = BlockTransformer(ARConfig(replace(LAYOUT, num_blocks=5), sizes, context_blocks=3, sink_blocks=1)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)
    model.save(tmp_path)
    model = load_model(tmp_path, BlockTransformer)
    video = torch.rand(1, 3, 20, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    tokens, decode_next = video_encoder(tokenizer)(video).blocks(slice(None)), video_decoder(tokenizer)
    decode_next(tokens)
    engine = Engine(model, SamplingConfig(temperature=0), slots=1)
    made = continue_stream(engine, decode_next, tokens, torch.arange(1), num_blocks=4, at_a_time=at_a_time)
    stream = BlockTokens.join_blocks([tokens, *(part.tokens for part in made)])
    for block in range(5, 9):
        known = block - (block - 5) % at_a_time  # blocks before this part
        context = [stream.blocks(slice(1)), stream.blocks(slice(known - 2, block))]
        expected = greedy_block(model, BlockTokens.join_blocks(context))
        assert stream.codes[0, block][stream.keep[0, block]].tolist() == expected
