"""Streams of a tokenizer with rotary geometry: the same in any pushes, in constant memory, within a hard budget."""

import gc
from dataclasses import replace

import pytest
import torch
from disturbed import disturbed
from torch.utils._python_dispatch import TorchDispatchMode

from genvid.allocation import BudgetError, OnlineController, UniformAllocator, WindowLedger
from genvid.replay import Graphs
from genvid.tokenizer.adaptok import model as adaptok
from genvid.tokenizer.adaptok import past, scorer_stream
from genvid.tokenizer.adaptok.config import AbsoluteGeometry, AdapTokConfig, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.past import PastBlocks
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor, ScorerStream
from genvid.tokenizer.adaptok.stream import StreamBudget, StreamDecoder, StreamEncoder
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import FSQConfig, VQConfig
from genvid.tokens import BlockTokens
from genvid.tokens.blocks import first_tokens

STACK = StackConfig(24, 2, 2)
CONFIG = AdapTokConfig(
    frames=16,
    resolution=(16, 16),
    patch=(4, 8, 8),
    block_capacity=8,
    encoder=STACK,
    decoder=STACK,
    quantizer=VQConfig(codebook_size=64, code_dim=8),
    pooled_queries=True,
    geometry=RotaryGeometry(window=2, sides=(16, 32), aspect=(2, 1)),
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return disturbed(AdapTok(CONFIG))


@pytest.fixture
def predictor(model):
    config = ScorerConfig.for_tokenizer(CONFIG, STACK, sizes=(1, 2, 4, 8), metric="mse", gains=True)
    return ScorerPredictor(model, disturbed(Scorer(config)))


def random_video(frames, videos=2, size=(16, 16)):
    return torch.rand(videos, 3, frames, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def pushed(encoder, video, plan):
    """Tokens of all blocks: frames in pushes of these lengths, over and over, and `finish`."""
    parts, start = [], 0
    while start < video.shape[2]:
        for frames in plan:
            parts.append(encoder(video[:, :, start : start + frames]))
            start += frames
    return BlockTokens.join_blocks([*parts, encoder.finish()])


def decoded(decoder, tokens, plan):
    parts, start = [], 0
    while start < tokens.keep.shape[1]:
        for blocks in plan:
            parts.append(decoder(tokens.blocks(slice(start, start + blocks))))
            start += blocks
    return torch.cat(parts, 2)


@pytest.mark.parametrize("plan", [(64,), (1,), (4,), (3, 5, 0), (7,), (13, 51), (2, 1, 30, 31), (63, 1)])
def test_any_division_of_64_frames_gives_the_tokens_and_frames_of_one_call(model, plan):
    video, keep = random_video(64), torch.rand(2, 16, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    encoder, once = StreamEncoder(model), model.encode(video)
    tokens = pushed(encoder, video, plan)
    assert tokens.codes.equal(once.codes)
    assert tokens.features.equal(once.features)
    assert encoder.frames == 64
    cut = replace(once, keep=keep)
    blocks = [-(-frames // 4) for frames in plan]
    torch.testing.assert_close(decoded(StreamDecoder(model), cut, blocks), model.decode(cut), atol=1e-4, rtol=0)


@pytest.mark.parametrize("plan", [(20,), (1,), (3, 10)])
def test_any_division_is_cut_alike(model, predictor, plan):
    video = random_video(40)
    once = StreamEncoder(model, StreamBudget(predictor, 12, 3))(video)
    tokens = pushed(StreamEncoder(model, StreamBudget(predictor, 12, 3)), video, plan)
    assert tokens.keep.equal(once.keep)
    assert once.lengths.float().std() > 0.5


def test_the_beginning_of_a_stream_does_not_depend_on_its_end(model, predictor):
    video, other = random_video(32), random_video(32)
    other[:, :, 20:] *= -1
    encoders = [StreamEncoder(model, StreamBudget(predictor, 12, 3)) for _ in range(2)]
    one, two = (encoder(frames) for encoder, frames in zip(encoders, (video, other), strict=True))
    assert one.codes[:, :5].equal(two.codes[:, :5])
    assert not one.codes[:, 5:].equal(two.codes[:, 5:])
    assert one.keep[:, :5].equal(two.keep[:, :5])
    frames = [StreamDecoder(model)(tokens) for tokens in (one, two)]
    assert frames[0][:, :, :20].equal(frames[1][:, :, :20])


def test_300_frames_have_no_step_where_clips_would_end(model):
    """Every block is coded by the same function of the blocks before it: a video shifted by one block has the same
    tokens, wherever a clip of 16 frames would begin."""
    video = random_video(300, videos=1)
    tokens = StreamEncoder(model)(video)
    reach = STACK.depth * CONFIG.window  # blocks back on which a block depends
    for first in (1, 2, 3, 4, 50):
        later = StreamEncoder(model)(video[:, :, 4 * first :])
        torch.testing.assert_close(later.features[:, reach:], tokens.features[:, first + reach :], atol=1e-4, rtol=0)


def test_the_budget_is_that_of_the_scorer_on_whole_tokens(model, predictor):
    """The stream of scores beside the predictor, which sees all blocks at once."""
    tokens, controller = (
        model.encode(random_video(24)),
        OnlineController(WindowLedger(12, 3, predictor.sizes), predictor.sizes),
    )
    lengths = tokens.lengths
    for block in range(6):
        lengths[:, block] = controller.step(predictor.predict(tokens.tail_drop(lengths), block))
    assert StreamEncoder(model, StreamBudget(predictor, 12, 3))(random_video(24)).lengths.equal(lengths)


@pytest.mark.parametrize(("tokens", "blocks"), [(12, 3), (7, 7), (50, 6)])
def test_no_second_of_a_stream_exceeds_its_tokens(model, predictor, tokens, blocks):
    lengths = StreamEncoder(model, StreamBudget(predictor, tokens, blocks))(random_video(160)).lengths
    assert int(lengths.unfold(1, blocks, 1).sum(-1).max()) <= tokens


def tensors() -> list[torch.Tensor]:
    """All tensors that exist."""
    gc.collect()
    return [tensor for tensor in gc.get_objects() if issubclass(type(tensor), torch.Tensor)]


def test_memory_does_not_grow_with_a_stream(model, predictor):
    others = {id(tensor): tensor for tensor in tensors()}  # held here, since those of earlier tests may end meanwhile
    encoder, decoder, sizes = StreamEncoder(model, StreamBudget(predictor, 1000, 3)), StreamDecoder(model), []
    for push in range(60):
        decoder(encoder(random_video(6, videos=1)))
        if push % 20 == 19:
            sizes.append(sum(tensor.numel() for tensor in tensors() if id(tensor) not in others))
    assert sizes[0] == sizes[1] == sizes[2] > 0


@pytest.mark.parametrize("frames", [1, 6, 8])
def test_a_stream_ends_inside_a_block(model, frames):
    video, encoder = random_video(frames), StreamEncoder(model, UniformAllocator(3))
    filled = torch.cat([video, video[:, :, -1:].expand(-1, -1, -frames % 4, -1, -1)], 2)
    tokens = BlockTokens.join_blocks([encoder(video), encoder.finish()])
    assert tokens.codes.equal(model.encode(filled).codes)
    assert set(tokens.lengths.flatten().tolist()) == {3}
    assert encoder.frames == frames
    for call in (lambda: encoder(video), encoder.finish):
        with pytest.raises(ValueError, match=f"this stream is finished after {frames} frames"):
            call()


def test_a_wrong_push_is_refused_and_nothing_is_lost(model):
    video = random_video(16)
    encoder = StreamEncoder(model)
    parts = [encoder(video[:, :, :6])]
    for wrong, message in (
        (random_video(4, size=(24, 16)), "takes 16x16 frames, got 24x16; resize first"),
        (random_video(4, videos=3), "of 2 videos side by side, got 3"),
        (video[0], r"a video is \(B, 3, T, H, W\), got"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder(wrong)
    tokens = BlockTokens.join_blocks([*parts, encoder(video[:, :, 6:])])
    assert tokens.codes.equal(model.encode(video).codes)
    with pytest.raises(ValueError, match="in multiples of 8x8, got 40x16: resize them"):
        model.at((40, 16))
    with pytest.raises(ValueError, match="has no frames"):
        StreamEncoder(model).finish()


def test_wrong_tokens_are_refused_and_nothing_is_lost(model):
    tokens = model.encode(random_video(16))
    decoder = StreamDecoder(model)
    frames = [decoder(tokens.blocks(slice(0, 1)), first=0)]
    foreign = BlockTokens(tokens.keep[:, :, :7], tokens.codes[:, :, :7])
    for wrong, first, message in (
        (tokens.blocks(slice(2, 3)), 2, "block 2 is out of order: block 1 of this stream is the next one"),
        (tokens.blocks(slice(0, 1)), 0, "block 0 is out of order"),
        (foreign, None, "do not fit this tokenizer"),
        (tokens[:1], 1, "of 2 videos side by side, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder(wrong, first)
    assert decoder.blocks == 1
    frames.append(decoder(tokens.blocks(slice(1, 4)), first=1))
    torch.testing.assert_close(torch.cat(frames, 2), model.decode(tokens), atol=1e-4, rtol=0)


def test_absolute_geometry_and_small_budgets_are_refused(predictor):
    absolute = AdapTok(replace(CONFIG, geometry=AdapTokConfig().geometry))
    for stream in (StreamEncoder, StreamDecoder):
        with pytest.raises(ValueError, match="its geometry is absolute"):
            stream(absolute)
    with pytest.raises(BudgetError, match="allow 3 or more"):
        StreamBudget(predictor, 2, 3)


def test_other_sizes_and_quantizers():
    torch.manual_seed(0)
    model = disturbed(AdapTok(replace(CONFIG, quantizer=FSQConfig((8, 5, 5))))).at((16, 32))
    video = random_video(13, size=(16, 32))
    tokens = pushed(StreamEncoder(model), video, (5,))
    assert tokens.keep.shape == (2, 4, 16)
    torch.testing.assert_close(decoded(StreamDecoder(model), tokens, (3, 0)), model.decode(tokens), atol=1e-4, rtol=0)


@pytest.fixture
def closed():
    """A model whose encoder reads the kept tokens of earlier blocks."""
    torch.manual_seed(0)
    return disturbed(AdapTok(replace(CONFIG, geometry=replace(CONFIG.geometry, closed_loop=True))))


def test_a_closed_loop_is_cut_alike_in_any_division_and_in_training(closed):
    config = ScorerConfig.for_tokenizer(closed.config, STACK, sizes=(1, 2, 4, 8), metric="mse", gains=True)
    predictor, video = ScorerPredictor(closed, disturbed(Scorer(config))), random_video(40)
    whole, parts = (
        pushed(StreamEncoder(closed, StreamBudget(predictor, 14, 4)), video, plan) for plan in ((40,), (7, 2))
    )
    assert whole.keep.equal(parts.keep)
    assert whole.codes.equal(parts.codes)
    assert not whole.keep.all()
    with torch.no_grad():
        trained = closed.features(video, whole.keep)
    torch.testing.assert_close(trained, whole.features, atol=1e-5, rtol=1e-5)
    uncut = pushed(StreamEncoder(closed), video, (3,))
    assert uncut.codes.equal(closed.encode(video).codes)
    assert not uncut.codes.equal(whole.codes)


def test_a_closed_loop_reads_of_the_past_its_kept_tokens_alone(closed):
    video = random_video(16)
    tokens = pushed(StreamEncoder(closed, UniformAllocator(3)), video, (16,))
    changed = torch.where(tokens.keep, tokens.codes, 63 - tokens.codes)
    past = PastBlocks(2)
    for block in range(3):
        closed._remember(closed.past_tokens, changed[:, block], tokens.keep[:, block], past)
    again = closed.encode_next(video[:, :, 12:], past)
    torch.testing.assert_close(again.features[:, 0], tokens.features[:, 3], atol=1e-5, rtol=1e-5)


def test_the_few_shapes_of_a_gpu_give_the_same_stream(model, predictor, monkeypatch):
    """A replayed graph has blocks of one of four lengths, room for all of their tokens, and the number of blocks in a
    tensor."""
    whole = model.encode(random_video(48))
    lengths = torch.randint(1, 9, (2, 12), generator=torch.Generator().manual_seed(2))
    blocks = [whole.select_blocks(slice(block, block + 1)) for block in range(12)]
    absolute = disturbed(AdapTok(replace(CONFIG, geometry=AbsoluteGeometry())))
    clips = absolute.encode(random_video(16)).tail_drop(torch.tensor([[3, 1, 0, 5], [8, 2, 2, 2]]))

    def coded():
        stream, curves = ScorerStream(predictor.passes), []
        for block, cut in zip(blocks, lengths.split(1, 1), strict=True):
            curves.append(stream.score(block))
            stream.append(block, first_tokens(cut, 8))
        frames = decoded(StreamDecoder(model), whole.tail_drop(lengths), (1,))
        return [*curves, frames, absolute.decode(clips, graphs=Graphs())]

    expected = coded()
    for module in (adaptok, scorer_stream):
        monkeypatch.setattr(module, "few", lambda keep: True)
    monkeypatch.setattr(PastBlocks, "_count", lambda past, arguments: torch.tensor(past.count))
    torch.testing.assert_close(coded(), expected, rtol=1e-5, atol=1e-5)
    assert model.encode(random_video(48)).codes.equal(whole.codes)


class NoWait(TorchDispatchMode):
    """Refuses what waits for a GPU, which a capture refuses too."""

    WAITS = ("aten._local_scalar_dense", "aten.equal", "aten.nonzero.default", "aten.masked_select", "aten.is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not str(func).startswith(self.WAITS), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_replayed_functions_do_not_wait_for_the_device(model, predictor, monkeypatch):
    ran = set()

    def call(graphs, function, *arguments):
        ran.add(getattr(arguments[4] if function is past._step else function, "__name__", ""))
        with NoWait():
            return function(*arguments)

    monkeypatch.setattr(Graphs, "__call__", call)
    for module in (adaptok, scorer_stream):
        monkeypatch.setattr(module, "few", lambda keep: True)
    video = random_video(48)
    tokens = StreamEncoder(model, StreamBudget(predictor, 14, 4))(video)
    StreamDecoder(model)(tokens)
    absolute = disturbed(AdapTok(replace(CONFIG, geometry=AbsoluteGeometry())))
    absolute.decode(absolute.encode(video[:, :, :16], graphs=Graphs()), graphs=Graphs())
    assert ran == {"_encode_block", "_decode_block", "score", "_encode_clips", "_decode_clips"}
