"""A single first frame: videos of 1 + 4 n frames, of which a picture is the shortest."""

from dataclasses import replace

import pytest
import torch
from disturbed import disturbed
from test_stream import CONFIG, STACK, decoded, pushed, random_video

from genvid.allocation import UniformAllocator
from genvid.batch import Batch
from genvid.checkpoint import load_model
from genvid.data import ClipConfig, SyntheticConfig
from genvid.data.buckets import BucketConfig
from genvid.data.dataset import VideoData
from genvid.perceptual import StructureDistance
from genvid.recipes.runs import AdapTokRun
from genvid.recipes.train import train
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.curves import measure_curve
from genvid.tokenizer.adaptok.discriminator import DiscriminatorConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.packed import SPARE
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokenizer.adaptok.stream import StreamBudget, StreamDecoder, StreamEncoder
from genvid.tokenizer.adaptok.tail_drop import TailDropConfig
from genvid.tokenizer.adaptok.tasks import AdapTokTask, AdversarialAdapTokTask, ObjectiveConfig, ScorerTask
from genvid.tokenizer.losses import Distortion, DistortionConfig, DistortionSpec
from genvid.tokenizer.refinement import refine_clips
from genvid.tokens import BlockTokens
from genvid.train.config import TrainConfig

SINGLE = replace(CONFIG, frames=17, geometry=replace(CONFIG.geometry, single_first_frame=True))
DROP = TailDropConfig(4, 2, 1, 8)


def build(config=SINGLE):
    torch.manual_seed(0)
    return disturbed(AdapTok(config))


@pytest.fixture
def model():
    return build()


@pytest.fixture
def closed():
    return build(replace(SINGLE, geometry=replace(SINGLE.geometry, closed_loop=True)))


@pytest.fixture
def predictor(model):
    config = ScorerConfig.for_tokenizer(SINGLE, STACK, sizes=(1, 2, 4, 8), metric="mse", gains=True)
    return ScorerPredictor(model, disturbed(Scorer(config)))


def distortion():
    return Distortion(DistortionConfig(l1=1.0, perceptual=1.0), StructureDistance())


@pytest.mark.parametrize("plan", [(65,), (1,), (4,), (1, 4), (3, 5, 0), (0, 7), (13, 52), (2, 1, 30, 32), (64, 1)])
def test_any_division_of_65_frames_gives_the_tokens_and_frames_of_one_call(model, plan):
    video, keep = random_video(65), torch.rand(2, 17, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    once, encoder = model.encode(video), StreamEncoder(model)
    tokens = pushed(encoder, video, plan)
    assert tokens.codes.equal(once.codes)
    assert tokens.features.equal(once.features)
    cut, blocks = replace(once, keep=keep), [-(-frames // 4) for frames in plan]
    made = decoded(StreamDecoder(model), cut, blocks)
    assert made.shape == video.shape
    torch.testing.assert_close(made, model.decode(cut), atol=1e-4, rtol=0)


def test_a_picture_is_the_first_block_of_its_video(model, predictor):
    video = random_video(13)
    picture, whole = model.encode(video[:, :, :1]), model.encode(video)
    assert picture.codes.equal(whole.codes[:, :1])
    assert model.decode(picture).equal(model.decode(whole)[:, :, :1])
    for frames in (1, 5, 9):
        assert model.encode(video[:, :, :frames]).codes.equal(whole.codes[:, : model.spec.num_blocks(frames)])
    budgets = [StreamEncoder(model, StreamBudget(predictor, 12, 3)) for _ in range(2)]
    assert budgets[0](video[:, :, :1]).keep.equal(budgets[1](video).keep[:, :1])


def test_a_block_closes_after_one_frame_and_then_after_every_fourth(model):
    encoder, video = StreamEncoder(model), random_video(9)
    closed = [encoder(frame).keep.shape[1] for frame in video.split(1, 2)]
    assert closed == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert encoder.finish().keep.shape[1] == 0
    assert encoder.frames == 9


@pytest.mark.parametrize("frames", [1, 2, 5, 7])
def test_a_stream_ends_inside_a_block(model, frames):
    video, encoder = random_video(frames), StreamEncoder(model)
    filled = torch.cat([video, video[:, :, -1:].expand(-1, -1, (1 - frames) % 4, -1, -1)], 2)
    tokens = BlockTokens.join_blocks([encoder(video), encoder.finish()])
    assert tokens.codes.equal(model.encode(filled).codes)


def test_the_weights_of_a_tokenizer_without_it_code_a_picture_alike(model):
    plain, video = AdapTok(CONFIG).eval(), random_video(1)
    plain.load_state_dict(model.state_dict())
    repeated = plain.encode(video.expand(-1, -1, 4, -1, -1))
    picture = model.encode(video)
    assert picture.codes.equal(repeated.codes)
    assert model.decode(picture).equal(plain.decode(repeated)[:, :, 3:])


def test_all_ways_of_decoding_are_one(model):
    """The pass over all blocks of training, over kept tokens alone, of one block, and block by block."""
    video = random_video(17)
    tokens = model.encode(video).tail_drop(torch.tensor([[3, 8, 0, 5, 1], [8, 2, 2, 7, 4]]))
    features = model.features(video)
    torch.testing.assert_close(tokens.features, features, atol=1e-5, rtol=1e-5)
    made, embeddings = model.decode(tokens), model.embed(tokens)
    assert made.shape == video.shape
    passes = [
        model.render(embeddings, tokens.keep),
        torch.cat([model.render_block(embeddings, tokens.keep, block) for block in range(5)], 2),
        model.render_kept(embeddings, tokens.keep, int(tokens.keep.sum()) + SPARE // 2),
    ]
    for other in passes:
        torch.testing.assert_close(other, made, atol=1e-5, rtol=1e-4)


def test_a_closed_loop_is_alike_in_any_division_and_in_training(closed):
    video = random_video(33)
    whole, parts = (pushed(StreamEncoder(closed, UniformAllocator(3)), video, plan) for plan in ((33,), (7, 2)))
    assert whole.codes.equal(parts.codes)
    torch.testing.assert_close(closed.features(video, whole.keep), whole.features, atol=1e-5, rtol=1e-5)


def test_curves_and_refined_codes_are_of_the_frames_of_their_blocks(model):
    video, sizes = random_video(9), (1, 4, 8)
    tokens = model.encode(video)
    for block, frames in enumerate((slice(0, 1), slice(1, 5), slice(5, 9))):
        curve = measure_curve(model, tokens, video, block, sizes, distortion())
        for column, size in enumerate(sizes):
            lengths = tokens.lengths
            lengths[:, block] = size
            made = model.decode(tokens.tail_drop(lengths))[:, :, frames].clamp(-1, 1)
            torch.testing.assert_close(curve[:, column], distortion()(made, video[:, :, frames]), atol=1e-4, rtol=1e-4)
    refined = refine_clips(model, video, tokens, 4)
    errors = [(model.decode(t).clamp(-1, 1) - video)[:, :, :1].square().mean() for t in (tokens, refined)]
    assert errors[1] < errors[0]
    encoder = StreamEncoder(model, refine=4)
    streamed = BlockTokens.join_blocks([encoder(video[:, :, :6]), encoder(video[:, :, 6:])])
    assert streamed.codes.equal(refined.codes)


@pytest.mark.parametrize("frames", [1, 17])
@pytest.mark.parametrize("closed_loop", [False, True])
def test_a_step_reaches_all_parameters(frames, closed_loop):
    config = replace(SINGLE, geometry=replace(SINGLE.geometry, closed_loop=closed_loop))
    torch.manual_seed(0)
    objective = ObjectiveConfig(DROP, prior=None)
    task = AdversarialAdapTokTask(config, objective, distortion(), DiscriminatorConfig((4, 8, 8), STACK))
    disturbed(task)
    batch = Batch({"video": random_video(frames), "seed": torch.arange(2)})
    out = task(batch, "generator", 0, {})
    out.loss.backward()
    assert out.carry["reconstruction"].shape == (2, 3, frames, 16, 16)
    without = {name for name, p in task.tokenizer.named_parameters() if p.grad is None or not p.grad.any()}
    alone = {"memory", *(name for name in dict(task.tokenizer.named_parameters()) if name.startswith("past_tokens"))}
    assert without <= (alone if frames == 1 else set())
    task(batch, "discriminator", 0, out.carry).loss.backward()
    assert all(p.grad is not None for p in task.discriminator.parameters())


def test_the_scorer_trains_on_the_blocks_of_such_clips(model, predictor):
    task = ScorerTask(predictor.scorer, model, DROP, distortion())
    for step in range(4):
        out = task(Batch({"video": random_video(9), "seed": torch.arange(2)}), "model", step, {})
        assert out.loss.isfinite()


def run_of(folder, **changes) -> AdapTokRun:
    options = {
        "train": TrainConfig(steps=2, batch_size=8, workers=0, save_every=2, log_every=2),
        "data": VideoData(SyntheticConfig(clips=6), ClipConfig(frames=17, resolution=(16, 16))),
        "buckets": (BucketConfig(17, (16, 16)), BucketConfig(1, (16, 16))),
        "model": SINGLE,
    }
    objective, loss = ObjectiveConfig(DROP, prior=None), DistortionSpec(DistortionConfig(l1=1.0))
    return AdapTokRun(
        task="adaptok", output_dir=str(folder), objective=objective, distortion=loss, **(options | changes)
    )


def test_training_starts_from_a_tokenizer_without_it(tmp_path):
    build(CONFIG).save(tmp_path / "plain")
    source = str(tmp_path / "plain")
    with pytest.raises(ValueError, match="frames is 16 there and 17 here"):
        train(run_of(tmp_path / "run", init_from=source))
    may_differ = ("frames", "geometry.single_first_frame")
    trained = load_model(train(run_of(tmp_path / "run", init_from=source, may_differ=may_differ)), AdapTok)
    assert trained.config == SINGLE
    assert trained.origin.made_from["initial weights"] == load_model(source).fingerprint
    assert run_of(tmp_path).open(SINGLE).batch_sizes(8) == [8, 40]


def test_a_folder_of_before_the_key_is_without_it(tmp_path):
    model = build(CONFIG)
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    text = file.read_text()
    assert '"single_first_frame": false' in text
    file.write_text(text.replace(',\n    "single_first_frame": false', ""))
    old = load_model(tmp_path / "model", AdapTok)
    assert old.config == CONFIG
    tokens = old.encode(random_video(16))
    assert tokens.codes.equal(model.encode(random_video(16)).codes)
    assert old.decode(tokens).equal(model.decode(tokens))


@pytest.mark.parametrize("frames", [4, 16])
def test_lengths_that_do_not_fit_are_refused_with_the_way_out(tmp_path, model, frames):
    words = f"{frames} frames do.* fill blocks of 4 frames behind a single first frame.* 1 more than a multiple of 4"
    with pytest.raises(ValueError, match=words):
        model.encode(random_video(frames))
    with pytest.raises(ValueError, match=words):
        replace(SINGLE, frames=frames)
    with pytest.raises(ValueError, match=words):
        run_of(tmp_path, buckets=(BucketConfig(frames, (16, 16)),))
    with pytest.raises(
        ValueError, match=f"{frames + 1} frames do not fill blocks of 4 frames: change data.clip.* to a mul"
    ):
        CONFIG.check_clip(frames + 1, (16, 16))
    with pytest.raises(ValueError, match="clips of 32 frames are longer than the 16 of this tokenizer"):
        AdapTokConfig().check_clip(32, (128, 128))


def test_an_objective_of_the_published_tokenizer_has_the_blocks_of_such_clips():
    task = AdapTokTask(SINGLE, ObjectiveConfig(DROP), distortion())
    out = task(Batch({"video": random_video(17), "seed": torch.arange(2)}), "model", 0, {})
    assert out.loss.isfinite()
    assert task.tokenizer.spec.num_blocks(17) == 5
