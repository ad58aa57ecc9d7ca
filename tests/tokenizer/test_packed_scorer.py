"""Scores from kept tokens alone equal those of one masked pass over everything, whatever is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compiled import graphs_of
from disturbed import disturbed
from test_packed import CONFIG, MODELS
from test_scorer import plain

from genvid.tokenizer.adaptok import scorer_stream
from genvid.tokenizer.adaptok.config import AbsoluteGeometry, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.packed_past import PackedPast
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.scorer_stream import PackedScorerStream, ScorerPredictor
from genvid.tokenizer.layers import StackConfig
from genvid.tokens import BlockTokens

STACK = StackConfig(24, 3, 3)
LENGTHS = {
    "ragged": [[7, 3, 1, 5, 2], [2, 4, 7, 1, 6], [1, 1, 1, 2, 7]],
    "empty blocks": [[0, 0, 3, 7, 1], [2, 0, 0, 0, 7], [0, 0, 0, 0, 0]],
    "all": [[7] * 5] * 3,
    "one clip": [[3, 7, 2, 4, 1]],
}


@pytest.fixture
def packed(monkeypatch):
    monkeypatch.setattr(scorer_stream, "has_kernel", lambda *device: True)


@pytest.fixture(params=MODELS)
def tokenizer(request) -> AdapTok:
    torch.manual_seed(0)
    return disturbed(AdapTok(MODELS[request.param]))


def make_scorer(tokenizer: AdapTok, *, gains: bool = False) -> Scorer:
    torch.manual_seed(1)
    config = ScorerConfig.for_tokenizer(tokenizer.config, STACK, sizes=(1, 3, 7), metric="mse", gains=gains)
    return disturbed(Scorer(config))


def coded(tokenizer: AdapTok, clips: int) -> BlockTokens:
    """With rotary geometry 5 blocks, more than its window, else 4."""
    frames = tokenizer.config.frames + (4 if tokenizer.window is not None else 0)
    video = torch.rand(clips, 3, frames, 16, 24, generator=torch.Generator().manual_seed(1))
    return tokenizer.encode(video * 2 - 1)


@pytest.mark.parametrize("kept", [*LENGTHS, "any positions"])
@pytest.mark.parametrize("gains", [False, True])
def test_kept_tokens_alone_give_the_scores_of_the_masked_pass(tokenizer, kept, gains, packed):
    scorer, tokens = make_scorer(tokenizer, gains=gains), coded(tokenizer, len(LENGTHS.get(kept, [[]] * 3)))
    keep = torch.rand(tokens.keep.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    if kept in LENGTHS:
        keep = torch.arange(7) < torch.tensor(LENGTHS[kept])[:, : keep.shape[1], None]
    cut = replace(tokens, keep=keep)
    predictor = ScorerPredictor(tokenizer, scorer)
    scores = [predictor.predict(cut, block) for block in range(keep.shape[1])]
    expected = [plain(tokenizer, scorer, cut, block) for block in range(keep.shape[1])]
    assert torch.stack(expected).std() > 0.1
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predictor.predict(cut, 3), expected[3], atol=1e-5, rtol=1e-5)  # none is scored before


def test_a_block_that_is_scored_twice_has_the_same_scores(tokenizer, packed):
    """With rotary geometry also where the past fills the window."""
    scorer, tokens = make_scorer(tokenizer), coded(tokenizer, 3)
    cut = tokens.tail_drop(torch.tensor(LENGTHS["ragged"])[:, : tokens.keep.shape[1]])
    predictor = ScorerPredictor(tokenizer, scorer)
    for block in range(cut.keep.shape[1] - 1):
        expected = plain(tokenizer, scorer, cut, block)
        for _ in range(2):
            torch.testing.assert_close(predictor.predict(cut, block), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gains", [False, True])
def test_values_of_dropped_tokens_do_not_matter(tokenizer, gains, packed):
    scorer, tokens = make_scorer(tokenizer, gains=gains), coded(tokenizer, 3)
    lengths = torch.tensor(LENGTHS["ragged"])[:, : tokens.keep.shape[1]]
    last = lengths.shape[1] - 1
    cut = tokens.tail_drop(torch.cat([lengths[:, :-1], torch.full((3, 1), 7)], 1))
    assert cut.features is not None
    assert cut.codes is not None
    wild = replace(
        cut,
        features=torch.where(cut.keep[..., None], cut.features, 7.0),
        codes=torch.where(cut.keep, cut.codes, 31 - cut.codes),
    )
    scores, again = (ScorerPredictor(tokenizer, scorer).predict(of, last) for of in (cut, wild))
    assert again.equal(scores)


def test_products_are_of_kept_tokens_alone(packed):
    """And of the last layer, of those that scores are read from."""
    tokenizer = disturbed(AdapTok(CONFIG))
    scorer, tokens = make_scorer(tokenizer), coded(tokenizer, 3)
    counts = list[tuple[int, int]]()
    scorer.layers[0].register_forward_pre_hook(lambda _, inputs: counts.append((inputs[0].shape[1], 0)))
    scorer.layers[-1].down.register_forward_pre_hook(
        lambda _, inputs: counts.append((counts.pop()[0], inputs[0].shape[1]))
    )
    predictor = ScorerPredictor(tokenizer, scorer)
    for block in range(4):
        predictor.predict(tokens.tail_drop(torch.tensor([[4, 1, 7, 7], [1, 3, 7, 7], [0, 0, 2, 7]])), block)
    assert counts == [(21, 9), (5 + 21, 9), (4 + 21, 9), (16 + 21, 9)]


@torch._dynamo.config.patch(recompile_limit=16)
def test_the_compilations_of_one_batch_serve_all_lengths(packed):
    tokenizer = disturbed(AdapTok(CONFIG))
    scorer, tokens = make_scorer(tokenizer).requires_grad_(False), coded(tokenizer, 3)

    def scores(step: int) -> list[torch.Tensor]:
        keep = torch.rand(tokens.keep.shape, generator=torch.Generator().manual_seed(step)) < 0.5
        predictor = ScorerPredictor(tokenizer, scorer)
        return [predictor.predict(replace(tokens, keep=keep), block) for block in range(4)]

    expected = [scores(step) for step in range(4)]
    graphs = graphs_of(scorer.layers)
    torch.testing.assert_close(scores(0), expected[0], atol=1e-5, rtol=1e-5)
    compiled = len(graphs)
    torch.testing.assert_close([scores(step) for step in range(1, 4)], expected[1:], atol=1e-5, rtol=1e-5)
    assert len(graphs) == compiled < 16


@pytest.mark.gpu
@pytest.mark.parametrize("gains", [False, True])
@pytest.mark.parametrize(
    "geometry", [AbsoluteGeometry(), RotaryGeometry(2, (64, 64), (1, 1))], ids=["absolute", "rotary"]
)
@torch.no_grad()
def test_the_kernel_gives_the_same_scores(gpu, geometry, gains, monkeypatch):
    torch.manual_seed(0)
    large = replace(CONFIG, resolution=(64, 64), block_capacity=200, pooled_queries=True, geometry=geometry)
    tokenizer = disturbed(AdapTok(large)).to(gpu)
    sizes = ScorerConfig.for_tokenizer(large, StackConfig(128, 3, 2), sizes=(50, 100, 200), metric="mse", gains=gains)
    scorer = disturbed(Scorer(sizes)).to(gpu)
    tokens = tokenizer.encode(torch.rand(6, 3, 16, 64, 64, device=gpu) * 2 - 1)
    lengths = torch.randint(0, 201, (6, 4))
    lengths[0, 1], lengths[1, 1] = 200, 0
    cut, runs = tokens.tail_drop(lengths), list[PackedPast]()
    run = PackedPast.run
    monkeypatch.setattr(
        PackedPast, "run", lambda past, *given, **named: runs.append(past) or run(past, *given, **named)
    )

    def scores() -> torch.Tensor:
        predictor = ScorerPredictor(tokenizer, scorer)
        return torch.stack([predictor.predict(cut, block) for block in range(4)])

    exact = scores()
    assert not runs
    with torch.autocast("cuda", torch.bfloat16):
        alone = scores()
        assert len(runs) == 4
        monkeypatch.setattr(scorer_stream, "has_kernel", lambda *device: False)
        masked = scores()
    assert len(runs) == 4
    assert (alone - exact).norm() < 1.2 * (masked - exact).norm() + 1e-3 * exact.norm()


@pytest.mark.gpu
@torch.no_grad()
def test_a_pass_does_not_wait_for_the_gpu(gpu):
    tokenizer = disturbed(AdapTok(CONFIG)).to(gpu)
    scorer = make_scorer(tokenizer).to(gpu)
    tokens = tokenizer.encode(torch.rand(6, 3, 16, 16, 24, device=gpu) * 2 - 1)
    stream = PackedScorerStream(ScorerPredictor(tokenizer, scorer).passes)
    with torch.autocast("cuda", torch.bfloat16):
        stream.score(tokens.select_blocks(slice(0, 1)))  # compiles the kernel
        stream = PackedScorerStream(ScorerPredictor(tokenizer, scorer).passes)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for block in range(4):
                whole = tokens.select_blocks(slice(block, block + 1))
                stream.score(whole)
                stream.append(whole, torch.rand(6, 1, 7) < 0.5)
        finally:
            torch.cuda.set_sync_debug_mode("default")
