"""Semantic losses: what the heads read, against slow references, and that they shape the tokens."""

import dataclasses
import math

import pytest
import torch
from test_adaptok_tasks import DROP, MODEL, NETWORK, make_batch, make_distortion
from torch import nn

from genvid.tokenizer.adaptok.config import RotaryGeometry
from genvid.tokenizer.adaptok.discriminator import DiscriminatorConfig
from genvid.tokenizer.adaptok.semantic import (
    DecoderAlignmentConfig,
    EncoderInputConfig,
    PrefixHead,
    PrefixHeadsConfig,
    SemanticConfig,
    SemanticLoss,
    averaged,
    distance,
)
from genvid.tokenizer.adaptok.tasks import AdapTokTask, AdversarialAdapTokTask, ObjectiveConfig
from genvid.tokenizer.teachers import ModuleTeacher, ModuleTeacherConfig

PREFIX = PrefixHeadsConfig(grid=(2, 2), width=16, heads=2)
SEMANTIC = SemanticConfig(ModuleTeacherConfig("x:y"), PREFIX, DecoderAlignmentConfig(layer=0))


class Corners(nn.Module):
    """Brightness of the quarters of a picture, with a constant."""

    width = 4

    def forward(self, video):
        means = nn.functional.avg_pool3d(video, (4, 8, 8))
        return torch.cat([means, torch.ones_like(means[:, :1])], 1).permute(0, 2, 3, 4, 1)


@pytest.fixture
def teacher(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    return ModuleTeacher(f"{__name__}:Corners")


def make_task(teacher, semantic=SEMANTIC):
    torch.manual_seed(0)
    objective = ObjectiveConfig(tail_drop=DROP, prior=None, semantic=semantic)
    return AdapTokTask(MODEL, objective, make_distortion(), teacher=teacher)


def test_a_head_is_attention_of_its_queries_over_the_kept_tokens_of_one_block():
    torch.manual_seed(0)
    head = PrefixHead(PREFIX, 3, 4, 5).double()
    vectors = torch.randn(2, 3, 6, 3).double()
    keep = torch.arange(6) < torch.tensor([[1, 4, 6], [2, 3, 5]])[..., None]
    found = head(vectors, keep)
    for clip in range(2):
        for block in range(3):
            count = int(keep[clip, block].sum())
            waves = [[f(i / 10_000 ** (k / 8)) for f in (math.sin, math.cos) for k in range(8)] for i in range(count)]
            tokens = head.norm(head.read(vectors[clip, block, :count]) + torch.tensor(waves))
            keys, values = head.keys_values(tokens).chunk(2, -1)
            read = []
            for part in (slice(0, 8), slice(8, 16)):
                scores = head.queries[:, part] @ keys[:, part].T / math.sqrt(8)
                read.append(scores.softmax(-1) @ values[:, part])
            x = torch.cat(read, 1) + head.queries
            torch.testing.assert_close(found[clip, block], head.predict(x + head.mlp(x)), rtol=1e-5, atol=1e-6)


def test_heads_see_neither_dropped_tokens_nor_other_blocks():
    torch.manual_seed(0)
    head, vectors = PrefixHead(PREFIX, 3, 4, 5), torch.randn(1, 2, 6, 3)
    keep = torch.arange(6).expand(1, 2, 6) < 3
    other = vectors.clone()
    other[:, 0, 3:] += 1
    other[:, 1] += 1
    assert head(other, keep)[:, 0].equal(head(vectors, keep)[:, 0])


def test_losses_are_the_mean_angles_to_the_features(teacher):
    torch.manual_seed(0)
    loss = SemanticLoss(SEMANTIC, teacher, MODEL, 4)
    video, keep = make_batch(2)["video"], torch.arange(6).expand(2, 2, 6) < 4
    vectors, states, targets = torch.randn(2, 2, 6, 4), torch.randn(2, 2, 2, 2, 32), loss.targets(video)
    found = loss(targets, vectors, keep, states)

    def slow(predicted, wanted):
        angles = [
            sum(a * b for a, b in zip(p, w, strict=True)) / (math.hypot(*p) * math.hypot(*w))
            for p, w in zip(predicted.flatten(0, -2).tolist(), wanted.flatten(0, -2).tolist(), strict=True)
        ]
        return 1 - sum(angles) / len(angles)

    for clip in range(2):
        patches, pooled = targets.patches[clip].flatten(1, 2), targets.pooled[clip]
        expected = {
            "semantic_patches": 0.5 * slow(loss.patches(vectors, keep)[clip], patches),
            "semantic_pooled": 0.5 * slow(loss.pooled(vectors, keep)[clip], pooled),
            "semantic_decoder": 0.7 * slow(loss.align(states)[clip], patches),
        }
        assert {name: value[clip].item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(distance(patches[None], 2 * patches[None]), torch.zeros(1), atol=1e-6, rtol=0)


def test_features_are_averaged_over_cells_of_any_grid():
    patches = torch.arange(2 * 4 * 6.0).view(1, 1, 2, 4, 6)
    coarse = averaged(patches, (1, 2))
    torch.testing.assert_close(coarse[0, 0, 0], patches[0, 0, :, :2].mean((0, 1)))
    assert averaged(patches, (4, 4))[0, 0, 4].equal(patches[0, 0, 0, 0])


def test_the_states_are_those_of_the_chosen_layer(teacher):
    tokenizer, keep = make_task(teacher).tokenizer, torch.ones(2, 2, 6, dtype=torch.bool)
    nn.init.normal_(tokenizer.output.weight, std=0.1)
    embeddings = torch.randn(2, 2, 6, 32)
    video, states = tokenizer.render_with_states(embeddings, keep, 1)
    assert states.shape == (2, 2, 2, 2, 32)
    assert video.equal(tokenizer.render(embeddings, keep))
    assert tokenizer.frames(states.flatten(1, 3), range(2)).equal(video)
    assert not tokenizer.render_with_states(embeddings, keep, 0)[1].equal(states)


def test_only_training_needs_teacher_and_heads(teacher):
    task = make_task(teacher)
    assert not any("semantic" in name for name in task.exportable().state_dict())
    assert not any("teacher" in name for name in task.state_dict())
    output = task(make_batch(), "model", 0, {})
    assert {"semantic_patches", "semantic_pooled", "semantic_decoder"} <= output.terms.keys()
    nn.init.normal_(task.tokenizer.output.weight, std=0.1)
    task(make_batch(), "model", 0, {}).loss.backward()
    assert not [name for name, p in task.named_parameters() if p.grad is None]
    whole = make_task(teacher).train()
    losses = [whole({k: v[rows] for k, v in make_batch().items()}, "model", 0, {}).loss for rows in ([0, 1], [2, 3])]
    assert sum(losses).item() == pytest.approx(whole(make_batch(), "model", 0, {}).loss.item(), rel=1e-5)


@pytest.mark.parametrize("part", ["prefix", "decoder"])
def test_the_encoder_learns_what_the_teacher_sees(teacher, part):
    semantic = dataclasses.replace(SEMANTIC, **{"decoder" if part == "prefix" else "prefix": None})
    task = make_task(teacher, semantic).train()
    batch = make_batch(8)
    names = [f"semantic_{name}" for name in (("patches", "pooled") if part == "prefix" else ("decoder",))]
    optimizer, losses = torch.optim.Adam(task.parameters(), lr=3e-3), []
    for _ in range(25):
        output = task(batch, "model", 0, {})
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(float(output.terms[name]) for name in names))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("closed_loop", [False, True])
def test_features_enter_the_encoder_of_some_training_clips_and_of_none_in_use(teacher, closed_loop):
    model = MODEL
    if closed_loop:
        geometry = RotaryGeometry(window=1, sides=(16, 16), aspect=(1, 1), closed_loop=True)
        model = dataclasses.replace(MODEL, geometry=geometry, pooled_queries=True)
    semantic = dataclasses.replace(SEMANTIC, encoder=EncoderInputConfig(0.4))
    torch.manual_seed(0)
    objective = ObjectiveConfig(tail_drop=DROP, prior=None, semantic=semantic)
    task = AdapTokTask(model, objective, make_distortion(), teacher=teacher).train()
    batch, added = make_batch(24), []
    features = task.tokenizer.features
    task.tokenizer.features = lambda video, keep, beside: added.append(beside) or features(video, keep, beside)
    task(batch, "model", 0, {}).loss.backward()
    assert added[0].eq(0).all(), "training begins as without"
    nn.init.normal_(task.semantic.enter[1].weight)
    task(batch, "model", 0, {}).loss.backward()
    without = added[1].eq(0).flatten(1).all(1)
    assert 4 < without.sum() < 15
    plain, given = features(batch["video"]), features(batch["video"], None, added[1])
    assert given[without].equal(plain[without])
    assert (given[~without] != plain[~without]).flatten(1).any(1).all()
    first = added[1].clone()
    first[:, 1] = 0
    assert features(batch["video"], None, first)[:, 0].equal(given[:, 0])
    task(({k: v[5:9] for k, v in batch.items()}), "model", 0, {})
    torch.testing.assert_close(added[2], added[1][5:9])
    task.eval()(batch, "model", 0, {})
    assert added[3] is None
    assert not any("enter" in name for name in task.exportable().state_dict())


def test_with_a_discriminator_too(teacher):
    objective = ObjectiveConfig(tail_drop=DROP, prior=None, semantic=SEMANTIC)
    adversary = DiscriminatorConfig(transformer=NETWORK)
    task = AdversarialAdapTokTask(MODEL, objective, make_distortion(), adversary, teacher=teacher)
    assert "semantic_patches" in task(make_batch(), "generator", 0, {}).terms


def test_what_does_not_belong_together_is_refused(teacher):
    with pytest.raises(ValueError, match="belong together"):
        make_task(None)
    with pytest.raises(ValueError, match="layer 2 is not among the decoder's 2 layers"):
        make_task(teacher, dataclasses.replace(SEMANTIC, decoder=DecoderAlignmentConfig(layer=2)))
    with pytest.raises(ValueError, match="trains nothing"):
        SemanticConfig(ModuleTeacherConfig("x:y"), prefix=None)
    with pytest.raises(ValueError, match="between 0 and 1, got 0: an encoder in use has no features"):
        EncoderInputConfig(0.0)
    with pytest.raises(ValueError, match="not both 0"):
        PrefixHeadsConfig(0.0, 0.0)
