"""The scorer reads kept tokens of earlier blocks, and its cached form gives the same numbers."""

from dataclasses import replace

import pytest
import torch

from genvid.checkpoint import CheckpointError, fingerprint, load_model
from genvid.provenance import Origin, ProvenanceError
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.loading import load_scorer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens import VideoTokenizer

TOKENIZER = AdapTokConfig(
    frames=12,
    resolution=(16, 16),
    block_capacity=6,
    encoder=StackConfig(16, 1, 2),
    decoder=StackConfig(24, 1, 2),
    quantizer=VQConfig(codebook_size=32, code_dim=8),
)
CONFIG = ScorerConfig.for_tokenizer(TOKENIZER, StackConfig(20, 2, 4), sizes=(1, 4, 6), metric="lpips")
LENGTHS = torch.tensor([[4, 1, 6], [6, 4, 1], [1, 0, 1]])


@pytest.fixture(params=["published", "novelty"])
def tokenizer(request):
    torch.manual_seed(0)
    return AdapTok(replace(TOKENIZER, pooled_queries=request.param == "novelty")).eval()


@pytest.fixture
def scorer(tokenizer):
    torch.manual_seed(1)
    gains = tokenizer.config.pooled_queries
    scorer = Scorer(
        ScorerConfig.for_tokenizer(
            tokenizer.config, StackConfig(20, 2, 4), sizes=(1, 4, 6), metric="lpips", gains=gains
        )
    ).eval()
    assert scorer.config.novelty == gains
    scorer.target_scale.mean.fill_(0.3)
    scorer.target_scale.std.fill_(0.1)
    scorer.evidence_scale.mean.fill_(0.1)
    scorer.evidence_scale.std.fill_(2.0)
    return scorer


@pytest.fixture
def tokens(tokenizer):
    torch.manual_seed(2)
    return tokenizer.encode(torch.rand(3, 3, 12, 16, 16) * 2 - 1)


def plain(tokenizer, scorer, tokens, block):
    """One pass over everything: earlier blocks as kept, the block whole, later ones removed."""
    keep = tokens.keep.clone()
    keep[:, block], keep[:, block + 1 :] = True, False
    with torch.no_grad():
        scores = scorer(scorer.scorer_inputs(tokenizer, replace(tokens, keep=keep)), keep)
    return scorer.denormalize(scores[:, block])


@pytest.mark.parametrize("decided", [LENGTHS, torch.zeros(3, 3), torch.tensor([[0, 4, 6]] * 3)])
def test_predictor_equals_plain_scoring(tokenizer, scorer, tokens, decided):
    predictor = ScorerPredictor(tokenizer, scorer)
    assert predictor.sizes.tolist() == [1, 4, 6]
    cut = tokens
    for block in range(3):
        prediction = predictor.predict(cut, block)
        assert prediction.shape == (3, 3)
        torch.testing.assert_close(prediction, plain(tokenizer, scorer, cut, block), atol=1e-6, rtol=1e-5)
        lengths = cut.lengths
        lengths[:, block] = decided[:, block]
        cut = tokens.tail_drop(lengths)


def test_predictor_forgets_what_does_not_match(tokenizer, scorer, tokens):
    predictor = ScorerPredictor(tokenizer, scorer)
    questions = [
        (tokens, 1),
        (tokens.tail_drop(LENGTHS), 1),
        (tokens.tail_drop(LENGTHS), 2),
        (tokens[torch.tensor([2, 0])].tail_drop(LENGTHS[:2]), 1),
        (tokens.tail_drop(LENGTHS), 0),
        (replace(tokens, features=tokens.features.flip(0)), 1),
        (replace(tokens, codes=tokens.codes.flip(0)), 1),
        (tokens.tail_drop(LENGTHS), 2),
    ]
    for asked, block in questions:
        expected = plain(tokenizer, scorer, asked, block)
        torch.testing.assert_close(predictor.predict(asked, block), expected, atol=1e-6, rtol=1e-5)


def test_a_block_as_kept_and_the_next_one_whole_are_one_pass(tokenizer, scorer, tokens):
    read = []
    scorer.layers[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    predictor = ScorerPredictor(tokenizer, scorer)
    for block in range(3):
        predictor.predict(tokens.tail_drop(torch.tensor([[4, 1, 6], [1, 3, 6], [0, 0, 6]])), block)
    assert read == [6, 4 + 6, 3 + 6]


def test_scores_do_not_see_later_blocks_or_dropped_tokens(tokenizer, scorer, tokens):
    cut = tokens.tail_drop(torch.tensor([[3, 6, 6]]).expand(3, -1))
    scorer_inputs = scorer.scorer_inputs(tokenizer, cut)
    before = scorer(scorer_inputs, cut.keep)
    changed = scorer_inputs.clone()
    changed[:, 0, 3:] = torch.nan
    changed[:, 2] = 7.0
    after = scorer(changed, cut.keep)
    torch.testing.assert_close(after[:, 1], before[:, 1])
    assert not torch.allclose(after[:, 2], before[:, 2])
    shorter = scorer(scorer_inputs, tokens.keep)
    assert not torch.allclose(shorter[:, 1], before[:, 1])


@pytest.mark.parametrize("gains", [False, True])
def test_statistics_are_those_of_all_targets_so_far(gains):
    scorer = Scorer(replace(CONFIG, gains=gains))
    curves = torch.rand(5, 40, 3) * 3
    targets = scorer.targets(curves)
    for step, target in enumerate(targets):
        scorer.update_targets(target.mean(0), target.square().mean(0), step)
    std = targets.std((0, 1), correction=0)
    if gains:
        std[1:] = std[1:].square().mean().sqrt()
    torch.testing.assert_close(scorer.target_scale.mean, targets.mean((0, 1)))
    torch.testing.assert_close(scorer.target_scale.std, std)
    torch.testing.assert_close(scorer.denormalize(scorer.normalize(targets)), curves)


def test_gains_are_what_each_further_size_takes_off():
    scorer = Scorer(replace(CONFIG, gains=True))
    curve = torch.tensor([[5.0, 3.0, 2.5]])
    assert scorer.targets(curve).tolist() == [[5.0, 2.0, 0.5]]
    scorer.update_targets(torch.tensor([5.0, 2.0, 0.5]), torch.tensor([26.0, 5.0, 1.0]), 0)
    untrained = scorer.denormalize(torch.zeros(1, 3))
    torch.testing.assert_close(untrained, curve)  # nothing learned: the mean curve


def test_gradients_reach_every_parameter(tokenizer, scorer, tokens):
    scorer(scorer.scorer_inputs(tokenizer, tokens).detach(), tokens.keep).square().sum().backward()
    assert [name for name, p in scorer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_save_and_load(scorer, tokenizer, tokens, tmp_path):
    scorer.save(tmp_path / "scorer")
    loaded = load_model(tmp_path / "scorer")
    assert loaded.config == scorer.config
    assert torch.equal(loaded.target_scale.mean, scorer.target_scale.mean)
    scorer_inputs = scorer.scorer_inputs(tokenizer, tokens)
    assert loaded(scorer_inputs, tokens.keep).equal(scorer(scorer_inputs, tokens.keep))
    with pytest.raises(CheckpointError, match="not a VideoTokenizer"):
        load_model(tmp_path / "scorer", VideoTokenizer)


def test_tokens_without_features_are_refused(tokenizer, scorer, tokens):
    with pytest.raises(ValueError, match="encoder features"):
        ScorerPredictor(tokenizer, scorer).predict(replace(tokens, features=None), 0)


def test_the_scorer_of_a_larger_tokenizer_is_refused_by_its_origin(tokenizer, scorer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    AdapTok(replace(tokenizer.config, block_capacity=4)).save(tmp_path / "small")
    scorer.origin = Origin({"tokenizer": fingerprint(tmp_path / "tokenizer")})
    scorer.save(tmp_path / "scorer")
    with pytest.raises(ProvenanceError, match=r"scorer was not made from this tokenizer .*: use the tokenizer that"):
        load_scorer(tmp_path / "scorer", load_model(tmp_path / "small", AdapTok))


@pytest.mark.parametrize("sizes", [(), (0, 2), (4, 2), (2, 2), (2, 7)])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must ascend within 1 to 6"):
        replace(CONFIG, sizes=sizes)


def test_parameter_count_of_the_published_size():
    network = StackConfig(768, 12, 12)
    config = ScorerConfig.for_tokenizer(AdapTokConfig(), network, sizes=tuple(range(64, 513, 64)), metric="lpips")
    with torch.device("meta"):
        scorer = Scorer(config)
    assert round(sum(p.numel() for p in scorer.parameters()) / 1e6, 2) == 88.96
