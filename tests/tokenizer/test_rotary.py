"""Rotary geometry: a window of blocks, any length and size, and one block after the other as in one pass."""

from dataclasses import replace

import pytest
import torch
from compiled import graphs_of
from disturbed import disturbed

from genvid.checkpoint import load_model
from genvid.perceptual import StructureDistance
from genvid.tokenizer.adaptok.config import AdapTokConfig, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.pooled_queries import carry_over, fill_from_past
from genvid.tokenizer.adaptok.pyramid import (
    coarser_weights,
    num_levels,
    overlapping_cells,
    overlapping_pyramid,
    pyramid_cells,
    pyramid_order,
)
from genvid.tokenizer.adaptok.rotary import rotated
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokenizer.adaptok.tail_drop import TailDropConfig
from genvid.tokenizer.adaptok.tasks import AdapTokTask, ObjectiveConfig, ScorerTask
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.losses import Distortion, DistortionConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens.blocks import ResizableTokenizer

STACK = StackConfig(24, 2, 2)
CONFIG = AdapTokConfig(
    frames=16,
    resolution=(16, 24),
    patch=(4, 8, 8),
    block_capacity=7,
    encoder=STACK,
    decoder=StackConfig(24, 2, 3),
    quantizer=VQConfig(codebook_size=32, code_dim=8),
    pooled_queries=True,
    geometry=RotaryGeometry(window=2, sides=(16, 40), aspect=(2, 1)),
)
LENGTHS = torch.tensor([[7, 3, 1, 0, 2, 7, 4], [2, 0, 5, 0, 7, 1, 3]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return disturbed(AdapTok(CONFIG))


@pytest.fixture
def scorer(model):
    config = ScorerConfig.for_tokenizer(CONFIG, STACK, sizes=(1, 4, 6), metric="mse", gains=True)
    return disturbed(Scorer(config))


@pytest.fixture
def video():
    return torch.rand(2, 3, 28, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def distortion():
    return Distortion(DistortionConfig(l1=1.0, perceptual=1.0), StructureDistance())


def test_one_block_after_the_other_gives_the_pass_over_all(model, video):
    assert model.spec.max_blocks is None
    tokens, features = model.encode(video), model.features(video)
    torch.testing.assert_close(tokens.features, features, atol=1e-5, rtol=0)
    assert tokens.codes.equal(model.quantizer.encode(features))
    assert tokens.codes.unique().numel() > 8
    for cut in (tokens, tokens.tail_drop(LENGTHS), replace(tokens, keep=torch.rand(2, 7, 7) < 0.4)):
        decoded = model.decode(cut)
        assert decoded.std() > 0.1
        torch.testing.assert_close(decoded, model.render(model.embed(cut), cut.keep), atol=1e-5, rtol=1e-5)


def test_a_shorter_video_is_the_beginning_of_a_longer_one(model, video):
    tokens, short = model.encode(video), model.encode(video[:, :, :12])
    assert short.codes.equal(tokens.codes[:, :3])
    cut = tokens.tail_drop(LENGTHS)
    torch.testing.assert_close(model.decode(cut.blocks(slice(3))), model.decode(cut)[:, :, :12], atol=1e-5, rtol=1e-5)


def test_a_block_attends_to_its_window_alone(video):
    """With one layer, so that nothing is passed on from block to block."""
    one = StackConfig(24, 1, 2)
    model = disturbed(AdapTok(replace(CONFIG, encoder=one, decoder=one)))
    past, later = video.clone(), video.clone()
    past[:, :, 4:8] *= -1
    later[:, :, 16:20] *= -1
    features = model.features(video)
    changed = [~torch.isclose(model.features(v), features, atol=1e-6).all(-1).all(-1).all(0) for v in (past, later)]
    assert [c.tolist() for c in changed] == [
        [False, True, True, True, False, False, False],
        [False, False, False, False, True, True, True],
    ]
    tokens = model.encode(video).tail_drop(torch.tensor([[7, 7, 1, 1, 1, 1, 1]] * 2))
    fewer = model.decode(tokens.tail_drop(torch.tensor([[7, 0, 7, 7, 7, 7, 7]] * 2)))
    differs = (fewer - model.decode(tokens)).abs().amax((0, 1, 3, 4)).view(7, 4).amax(1) > 1e-5
    assert differs.tolist() == [False, True, True, True, False, False, False]


def test_a_dropped_latent_is_carried_over_the_window_and_no_further():
    embeddings = torch.randn(1, 5, 1, 3)
    keep = torch.tensor([True, False, False, False, True])[None, :, None]
    fade = torch.tensor([0.0, 0.5, 1.0])
    carried, present = carry_over(embeddings, keep, fade, window=2)
    expected = [torch.zeros(3), fade * embeddings[0, 0, 0], fade**2 * embeddings[0, 0, 0], torch.zeros(3)]
    torch.testing.assert_close(carried[0, :4, 0], torch.stack(expected))
    assert present[0, :, 0].tolist() == [False, True, True, False, False]
    filled, known = fill_from_past(embeddings, keep, fade, window=2)
    assert filled[0, 4].equal(embeddings[0, 4])
    assert known[0, :, 0].tolist() == [True, True, True, False, True]


def test_attention_depends_on_differences_of_places_after_an_hour_too():
    places = torch.rand(9, 2, dtype=torch.double) * 16
    inputs = [torch.randn(1, 2, 9, 12) for _ in range(3)]

    def attended(first, shift):
        parts = [(first + block, places[3 * block : 3 * block + 3] + shift) for block in range(3)]
        return rotated(parts, STACK)(torch.nn.functional.scaled_dot_product_attention)(*inputs)

    here = attended(0, 0)
    torch.testing.assert_close(attended(27_000, 5.0), here, atol=1e-5, rtol=1e-5)
    moved = rotated([(0, places), (1, places[:0])], STACK)(torch.nn.functional.scaled_dot_product_attention)(*inputs)
    assert not torch.allclose(moved, here, atol=1e-3)


def test_frames_of_other_sizes_by_the_same_weights(model):
    assert isinstance(model, ResizableTokenizer)
    assert model.at((16, 24)) is model
    taller, video = model.at((32, 24)), torch.rand(2, 3, 12, 32, 24) * 2 - 1
    assert (taller.spec.resolution, taller.spec.block_capacity) == ((32, 24), 14)
    assert (model.spec.resolution, model.spec.block_capacity) == ((16, 24), 7)
    assert set(taller.parameters()) == set(model.parameters())
    tokens = taller.encode(video)
    assert tokens.codes.shape == (2, 3, 14)
    torch.testing.assert_close(tokens.features, taller.features(video), atol=1e-5, rtol=0)
    torch.testing.assert_close(taller.decode(tokens), taller.render(taller.embed(tokens), tokens.keep))
    assert taller.at((16, 24)).encode(video[:, :, :, :16]).codes.equal(model.encode(video[:, :, :, :16]).codes)


@pytest.mark.parametrize("size", [(8, 16), (48, 24), (16, 40), (20, 24)])
def test_sizes_out_of_bounds_are_refused(model, size):
    with pytest.raises(ValueError, match=rf"16 to 40 pixels a side up to 2:1, in multiples of 8x8, got {size[0]}x"):
        model.at(size)


def test_absolute_geometry_has_one_size():
    model = AdapTok(replace(CONFIG, geometry=AdapTokConfig().geometry))
    assert model.at((16, 24)) is model
    with pytest.raises(ValueError, match=r"takes 16x24 frames alone \(its geometry is absolute\), got 32x24"):
        model.at((32, 24))


def test_impossible_geometries_are_refused():
    with pytest.raises(ValueError, match="set pooled_queries to true"):
        replace(CONFIG, pooled_queries=False)
    with pytest.raises(ValueError, match="width 24 in 12 heads has 2"):
        replace(CONFIG, encoder=StackConfig(24, 2, 12))
    with pytest.raises(ValueError, match="in multiples of 8x8, got 48x48"):
        replace(CONFIG, resolution=(48, 48))
    with pytest.raises(ValueError, match="at least 1 block, got 0"):
        RotaryGeometry(window=0)


@pytest.mark.parametrize(("size", "candidates"), [((16, 24), [1, 4, 6]), ((32, 24), [2, 8, 12]), ((24, 24), [1, 6, 9])])
def test_the_cached_scorer_gives_the_scores_of_one_pass(model, scorer, size, candidates):
    tokenizer = model.at(size)
    tokens = tokenizer.encode(torch.rand(2, 3, 28, *size) * 2 - 1)
    predictor, sized = ScorerPredictor(tokenizer, scorer), scorer.at(tokenizer)
    assert predictor.sizes.tolist() == list(sized.candidates) == candidates
    cut = tokens
    for block in range(7):
        keep = cut.keep.clone()
        keep[:, block], keep[:, block + 1 :] = True, False
        with torch.no_grad():
            scores = sized(sized.scorer_inputs(tokenizer, replace(tokens, keep=keep)), keep)[:, block]
        expected = sized.denormalize(scores)
        torch.testing.assert_close(predictor.predict(cut, block), expected, atol=1e-5, rtol=1e-5)
        lengths = cut.lengths
        lengths[:, block] = LENGTHS[:, block]
        cut = tokens.tail_drop(lengths)


@pytest.mark.parametrize("gains", [False, True])
def test_candidates_of_smaller_frames_are_different_lengths_of_a_block(model, gains):
    def scorer(*sizes):
        return Scorer(ScorerConfig.for_tokenizer(CONFIG, STACK, sizes=sizes, metric="mse", gains=gains))

    small = model.at((16, 16))
    assert small.spec.block_capacity == 5
    predictor, tokens = ScorerPredictor(small, scorer(3, 5, 6, 7)), small.encode(torch.rand(2, 3, 8, 16, 16) * 2 - 1)
    assert predictor.sizes.tolist() == [2, 3, 4, 5]
    assert bool(predictor.predict(tokens, 0).isfinite().all())
    with pytest.raises(ValueError, match="6 candidate sizes cannot score 16x16 frames, of which a block has 5 latents"):
        ScorerPredictor(small, scorer(*range(1, 7)))


@pytest.mark.parametrize("closed_loop", [False, True])
def test_training_reaches_every_parameter_at_every_size(closed_loop):
    config = replace(CONFIG, geometry=replace(CONFIG.geometry, closed_loop=closed_loop))
    drop = TailDropConfig(mean=3, std=2, minimum=1, maximum=7)
    for size, frames in (((16, 24), 16), ((32, 24), 24)):
        torch.manual_seed(0)
        task = AdapTokTask(config, ObjectiveConfig(tail_drop=drop, prior=None), distortion())
        torch.nn.init.normal_(task.tokenizer.output.weight, std=0.1)
        batch = {"video": torch.rand(3, 3, frames, *size) * 2 - 1, "seed": torch.arange(3)}
        output = task(batch, "model", 0, {})
        output.loss.backward()
        assert output.terms["tokens"] > frames / 4
        without = [name for name, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []
        scorer = Scorer(ScorerConfig.for_tokenizer(config, STACK, sizes=(1, 3, 7), metric="x", gains=True))
        scoring = ScorerTask(scorer, task.tokenizer.requires_grad_(False), drop, distortion())
        scoring(batch, "model", 0, {}).loss.backward()
        assert [name for name, p in scoring.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_compiled_layers_of_a_closed_loop_share_the_graphs_of_a_block():
    """Of its frames and of its tokens, after no, one and two blocks."""
    geometry = replace(CONFIG.geometry, closed_loop=True)
    model = AdapTok(replace(CONFIG, encoder=StackConfig(24, 3, 2), geometry=geometry))
    graphs = graphs_of(model.encoder)
    for seed in range(2):
        keep = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(seed)) < 0.5
        model.features(torch.rand(2, 3, 20, 16, 24) * 2 - 1, keep)
    assert len(graphs) == 6


def test_compiled_layers_share_one_graph_a_stack_but_for_the_encoders_last():
    task = AdapTokTask(CONFIG, ObjectiveConfig(tail_drop=TailDropConfig(3, 2, 1, 7), prior=None), distortion())
    graphs = graphs_of(task.layers(), dynamic=False)
    for step in range(3):
        batch = {"video": torch.rand(2, 3, 16, 16, 24), "seed": torch.arange(2) + step}
        task(batch, "model", step, {}).loss.backward()
    assert len(graphs) == 3


def test_save_and_load(model, scorer, video, tmp_path):
    model.save(tmp_path / "model")
    scorer.save(tmp_path / "scorer")
    loaded = load_model(tmp_path / "model", AdapTok)
    assert loaded.config == model.config
    assert loaded.encode(video).codes.equal(model.encode(video).codes)
    assert load_model(tmp_path / "scorer", Scorer).config == scorer.config


@pytest.mark.parametrize(("rows", "columns", "capacity"), [(16, 16, 256), (15, 20, 300), (12, 12, 144), (3, 5, 40)])
def test_cells_of_any_size(rows, columns, capacity):
    cells = overlapping_cells(rows, columns, capacity)
    assert num_levels(capacity) == int(pyramid_order(capacity)[-1, 0]) + 1
    torch.testing.assert_close(cells[0], torch.ones(rows * columns))
    torch.testing.assert_close(cells[1:5].sum(0), torch.ones(rows * columns))
    area = rows * columns / 4.0 ** pyramid_order(capacity)[:, 0]
    torch.testing.assert_close(cells.sum(1), area)
    torch.testing.assert_close(coarser_weights(cells)[1:].sum(1), torch.ones(capacity - 1))
    pyramid = overlapping_pyramid(rows, columns, 5, torch.device("cpu"))
    centres = pyramid.cells.double() @ pyramid.patch_places / pyramid.cells.double().sum(1, keepdim=True)
    if rows % 2 == columns % 2 == 0:
        assert overlapping_cells(rows, columns, 5).equal(pyramid_cells(rows, columns, 5))
        torch.testing.assert_close(centres, pyramid.latent_places)
