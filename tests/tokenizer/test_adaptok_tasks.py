"""Training the tokenizer and its scorer: what is drawn, what is counted, what gets gradients, and that it learns."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from disturbed import disturbed

from genvid import noise
from genvid.perceptual import StructureDistance
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.curves import measure_curve
from genvid.tokenizer.adaptok.discriminator import DiscriminatorConfig, discriminator_loss
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.prior import PriorConfig, TokenPrior
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.tail_drop import TailDropConfig, at_most, sample_lengths
from genvid.tokenizer.adaptok.tasks import AdapTokTask, AdversarialAdapTokTask, ObjectiveConfig, ScorerTask
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.losses import Distortion, DistortionConfig
from genvid.tokenizer.quantizer import FSQConfig, Quantized, VQConfig
from genvid.tokens import BlockTokens

NETWORK = StackConfig(32, 2, 2)
MODEL = AdapTokConfig(
    frames=8,
    resolution=(16, 16),
    patch=(4, 8, 8),
    block_capacity=6,
    encoder=NETWORK,
    decoder=NETWORK,
    quantizer=VQConfig(codebook_size=32, code_dim=4),
)
DROP = TailDropConfig(mean=3, std=2, minimum=1, maximum=6)
OBJECTIVE = ObjectiveConfig(tail_drop=DROP, prior=PriorConfig(NETWORK))


def make_distortion(**weights) -> Distortion:
    return Distortion(DistortionConfig(**(weights or {"l1": 1.0, "perceptual": 1.0})), StructureDistance())


def make_batch(count: int = 4) -> dict[str, torch.Tensor]:
    seeds = noise.sample_seeds(0, "clips", torch.arange(count))
    video = noise.uniform(seeds, "video", 3, 8, 16, 16).float() * 2 - 1
    return {"video": video, "seed": seeds, "label": torch.zeros(count, dtype=torch.long)}


def make_tokenizer() -> AdapTok:
    torch.manual_seed(0)
    tokenizer = AdapTok(MODEL)
    torch.nn.init.normal_(tokenizer.output.weight, std=0.1)
    return tokenizer.eval()


def test_tail_drop_draws_the_published_distribution():
    seeds = noise.sample_seeds(1, "clips", torch.arange(50_000))
    lengths = sample_lengths(TailDropConfig(), seeds, 4)
    assert lengths.double().mean() == pytest.approx(260.4, abs=1)
    assert lengths.double().std() == pytest.approx(108.8, abs=1)
    assert (lengths <= 64).double().mean() == pytest.approx(0.029, abs=0.003)
    assert (int(lengths.min()), int(lengths.max())) == (32, 512)


def test_impossible_tail_drops_are_refused():
    with pytest.raises(ValueError, match="1 <= minimum <= maximum, got 0 and 4"):
        TailDropConfig(minimum=0, maximum=4)


@pytest.mark.parametrize("quantizer", [MODEL.quantizer, FSQConfig(levels=(4, 4, 2))])
def test_every_parameter_of_the_tokenizer_gets_a_gradient(quantizer):
    config = AdapTokConfig(**{**MODEL.__dict__, "quantizer": quantizer})
    torch.manual_seed(0)
    task = AdapTokTask(config, OBJECTIVE, make_distortion())
    torch.nn.init.normal_(task.tokenizer.output.weight, std=0.1)
    task(make_batch(), "model", 0, {}).loss.backward()
    without = [name for name, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_a_loss_is_a_sum_over_clips_that_do_not_know_each_other():
    torch.manual_seed(0)
    task = AdapTokTask(MODEL, OBJECTIVE, make_distortion()).train()
    batch = make_batch(4)
    whole = task(batch, "model", 0, {}).loss
    halves = [task({k: v[rows] for k, v in batch.items()}, "model", 0, {}).loss for rows in ([0, 1], [2, 3])]
    assert whole.item() == pytest.approx(sum(h.item() for h in halves), rel=1e-5)


def test_the_generator_phase_leaves_the_discriminator_alone_and_the_other_way_round():
    torch.manual_seed(0)
    task = AdversarialAdapTokTask(MODEL, OBJECTIVE, make_distortion(), DiscriminatorConfig(transformer=NETWORK))
    torch.nn.init.normal_(task.tokenizer.output.weight, std=0.1)
    batch = make_batch()
    generator, discriminator = set(task.trainable("generator")), set(task.trainable("discriminator"))
    assert generator | discriminator == set(task.parameters())
    assert not generator & discriminator
    output = task(batch, "generator", 0, {})
    output.loss.backward()
    assert all(p.grad is None for p in discriminator)
    assert all(p.grad is not None for p in generator)
    task.zero_grad()
    task(batch, "discriminator", 0, output.carry).loss.backward()
    assert all(p.grad is None for p in generator)
    assert all(p.grad is not None for p in discriminator)


def test_each_phase_compiles_to_one_graph_that_gives_the_same_gradients(monkeypatch):
    def gradients(task):
        output = task(batch, "generator", 0, {})
        output.loss.backward()
        task(batch, "discriminator", 0, output.carry).loss.backward()
        return {name: p.grad for name, p in task.named_parameters()}

    torch.manual_seed(0)
    task = AdversarialAdapTokTask(MODEL, OBJECTIVE, make_distortion(), DiscriminatorConfig(transformer=NETWORK))
    batch = make_batch()
    torch.nn.init.normal_(task.tokenizer.output.weight, std=0.1)
    compiled = copy.deepcopy(task)
    whole = functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", lambda function, mode: whole(function))
    compiled.use_compiler(None)
    torch.testing.assert_close(gradients(compiled), gradients(task))


@pytest.mark.parametrize(
    "discriminator", [(), (DiscriminatorConfig(transformer=NETWORK),)], ids=["alone", "adversarial"]
)
def test_compiled_layers_and_distance_give_the_same_gradients(monkeypatch, discriminator):
    def gradients(task):
        carry = {}
        for phase in task.phases:
            output = task(make_batch(), phase, 0, carry)
            output.loss.backward()
            carry = output.carry
        return {name: p.grad for name, p in task.named_parameters()}

    torch.manual_seed(0)
    kind = AdversarialAdapTokTask if discriminator else AdapTokTask
    task = kind(MODEL, OBJECTIVE, make_distortion(), *discriminator)
    torch.nn.init.normal_(task.tokenizer.output.weight, std=0.1)
    compiled = copy.deepcopy(task)
    seen = []
    original = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic: seen.append(function) or original(function, backend="aot_eager")
    )
    compiled.compile_layers()
    others = len(task.discriminator.blocks) if discriminator else 0
    assert len(seen) == len([*task.layers()]) + others + 1
    torch.testing.assert_close(gradients(compiled), gradients(task))


def test_the_discriminator_trains_from_the_first_step_with_an_adversarial_loss():
    config = DiscriminatorConfig(transformer=NETWORK, start_step=2, every=3)
    task = AdversarialAdapTokTask(MODEL, OBJECTIVE, make_distortion(), config)
    assert [len(task.phases_at(step)) for step in range(8)] == [1, 1, 2, 1, 1, 2, 1, 1]
    terms = [task(make_batch(2), "generator", step, {}).terms for step in (1, 2)]
    assert ["adversarial" in term for term in terms] == [False, True]


def test_soft_labels_prefer_separated_logits():
    seeds = torch.arange(64)
    logits = torch.linspace(-1, 1, 64)
    right = discriminator_loss(logits + 2, logits - 2, seeds, 0.15).mean()
    wrong = discriminator_loss(logits - 2, logits + 2, seeds, 0.15).mean()
    assert right < wrong


def test_the_prior_counts_every_kept_token_after_the_first_and_no_other():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    prior = TokenPrior(PriorConfig(NETWORK, context_noise=0.0), code_dim=4, num_tokens=12).eval()
    keep = BlockTokens(torch.ones(2, 2, 6, dtype=torch.bool)).tail_drop(torch.tensor([[3, 2], [6, 6]])).keep
    quantized = tokenizer.quantizer(tokenizer.features(make_batch(2)["video"]), keep)
    both = prior(tokenizer.quantizer, quantized, keep, torch.arange(2))
    slots = [0, 1, 2, 6, 7]
    x = prior.read(quantized.vectors[:1].flatten(1, 2)[:, slots]) + prior.positions[slots]
    for block in prior.blocks:
        x = block(x, lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    predicted = torch.nn.functional.normalize(prior.predict(prior.norm(x[:, :-1])), dim=-1)
    logits = predicted @ tokenizer.quantizer.codebook().T / prior.config.temperature
    codes = quantized.codes[:1].flatten(1)[:, slots[1:]]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), codes)
    assert both[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_prior_of_one_row_is_that_of_a_row_for_each_clip():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    prior = TokenPrior(PriorConfig(NETWORK, context_noise=0.7), code_dim=4, num_tokens=12)
    keep = torch.rand(5, 2, 6) < 0.5
    keep[1], keep[3] = False, True
    vectors = torch.randn(5, 2, 6, 4, requires_grad=True)
    codes = torch.randint(32, keep.shape)
    quantized = Quantized(vectors, codes, vectors.detach(), torch.zeros(5))

    def found(most_kept: int | None) -> list[torch.Tensor]:
        losses = prior(tokenizer.quantizer, quantized, keep, torch.arange(5), most_kept)
        return [losses, *torch.autograd.grad(losses @ torch.arange(1.0, 6.0), [vectors, *prior.parameters()])]

    expected = found(None)
    assert expected[0][1] == 0
    for spare in (0, 9):
        torch.testing.assert_close(found(int(keep.sum()) + spare), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", [AdapTokTask, AdversarialAdapTokTask])
def test_a_step_of_kept_tokens_alone_has_the_losses_and_gradients_of_the_masked_one(monkeypatch, task):
    torch.manual_seed(0)
    adversary = [DiscriminatorConfig(transformer=NETWORK)] if task is AdversarialAdapTokTask else []
    objective = replace(OBJECTIVE, tail_drop=TailDropConfig(2, 1, 1, 6))
    trained = task(MODEL, objective, make_distortion(), *adversary).train()
    disturbed(trained.tokenizer).train()
    batch, given = make_batch(16), []

    def losses_and_gradients() -> list[torch.Tensor]:
        trained.zero_grad()
        output = trained(batch, trained.phases[0], 0, {})
        output.loss.backward()
        return [output.loss.detach(), *(p.grad for p in trained.parameters() if p.grad is not None)]

    expected, render = losses_and_gradients(), AdapTok.render_with_states
    monkeypatch.setattr(AdapTok, "packs_training", lambda tokenizer, device: True)
    monkeypatch.setattr(
        AdapTok, "render_with_states", lambda *arguments: given.append(arguments[-1]) or render(*arguments)
    )
    torch.testing.assert_close(losses_and_gradients(), expected, rtol=1e-3, atol=1e-4)
    assert given == [objective.tail_drop.most_kept(16, 2)]
    assert given[0] < 32 * 6


@pytest.mark.parametrize(
    "config",
    [TailDropConfig(), TailDropConfig(3, 2, 1, 12), TailDropConfig(100, 30, 1, 64), TailDropConfig(8, 1, 4, 4)],
)
@pytest.mark.parametrize("clips", [15, 16])
def test_batches_keep_at_most_five_deviations_above_the_mean(config, clips):
    """16 clips are whole groups of consecutive seeds, which deviate less; of 15 nothing is known."""
    steps = [noise.consecutive_seeds(step, clips) for step in noise.sample_seeds(1, "steps", torch.arange(4000))]
    seeds = torch.stack(steps) if clips == 16 else noise.sample_seeds(1, "clips", torch.arange(4000 * clips))
    totals = sample_lengths(config, seeds.flatten(), 4).view(4000, -1).sum(1).double()
    most, all_of_them = config.most_kept(clips, 4), clips * 4 * config.maximum
    expected = min(all_of_them, float(totals.mean() + 5 * totals.std()))
    assert most == pytest.approx(expected, abs=0.3 * float(totals.std()) + 128)
    assert totals.max() <= most <= all_of_them


def test_only_training_cuts_lengths_beyond_the_most(monkeypatch):
    """The clips that are measured may have any seeds, so their lengths are not drawn evenly."""
    monkeypatch.setattr(TailDropConfig, "most_kept", lambda *arguments: 3)
    task, batch = AdapTokTask(MODEL, OBJECTIVE, make_distortion()), make_batch(8)
    drawn = sample_lengths(DROP, batch["seed"], 2)
    assert drawn.sum() > 3
    for training, expected in ((True, 3), (False, drawn.sum())):
        _, _, keep, _ = task.train(training).loss_parts(batch)
        assert keep.sum() == expected


def test_lengths_beyond_the_most_are_cut_from_the_last_ones():
    lengths = torch.tensor([[3, 4], [5, 6]])
    assert at_most(lengths, 18).equal(lengths)
    assert at_most(lengths, 13).tolist() == [[3, 4], [5, 1]]
    assert at_most(lengths, 6).tolist() == [[3, 3], [0, 0]]


def make_scorer_task(gains: bool, **weights: float) -> ScorerTask:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = ScorerConfig.for_tokenizer(MODEL, NETWORK, sizes=(1, 3, 6), metric="test", gains=gains)
    return ScorerTask(Scorer(config), tokenizer, DROP, make_distortion(**weights)).train()


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_scorer_is_trained_on_one_block_of_complete_clips(step):
    """The loss of a step, which computes the blocks up to the scored one alone, is that of complete clips."""
    task, batch = make_scorer_task(gains=False), make_batch(8)
    tokenizer, scorer = make_tokenizer(), task.scorer
    block = int(2 * noise.uniform(torch.tensor([step]), "scored block"))
    lengths = sample_lengths(DROP, batch["seed"], 2)
    lengths[:, block] = 6
    tokens = tokenizer.encode(batch["video"]).tail_drop(lengths)
    curve = measure_curve(tokenizer, tokens, batch["video"], block, (1, 3, 6), make_distortion())
    scores = scorer(scorer.scorer_inputs(tokenizer, tokens), tokens.keep)[:, block]
    expected = (scores - scorer.normalize(curve)).square().mean(1).sum()
    assert task(batch, "model", step, {}).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_scorer_step_compiles_to_two_graphs_that_give_the_same_gradients(monkeypatch):
    """And its distance; of each scored block."""

    def gradients(task):
        for step in range(3):
            task(batch, "model", step, {}).loss.backward()
        return {name: p.grad for name, p in task.named_parameters()}

    batch = make_batch()
    compiled = make_scorer_task(gains=True)
    whole = functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", lambda function, mode=None, dynamic=None: whole(function, dynamic=dynamic))
    compiled.use_compiler(None)
    torch.testing.assert_close(gradients(compiled), gradients(make_scorer_task(gains=True)))


@pytest.mark.parametrize("gains", [False, True])
def test_the_scorer_learns_the_curves_and_keeps_their_statistics(gains):
    tokenizer, task = make_tokenizer(), make_scorer_task(gains, mse=1.0, perceptual=0.0)
    assert not any("tokenizer" in name for name in task.state_dict())
    optimizer = torch.optim.Adam(task.parameters(), lr=2e-3)
    batch, losses = make_batch(8), []
    for step in range(60):
        output = task(batch, "model", step, {})
        output.loss.backward()
        task.update_statistics("model", step, output.sums)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[5:15])
    targets = torch.cat(
        [
            measure_curve(
                tokenizer,
                tokenizer.encode(batch["video"]),
                batch["video"],
                g,
                (1, 3, 6),
                make_distortion(mse=1.0, perceptual=0.0),
            )
            for g in (0, 1)
        ]
    )
    assert task.scorer.target_scale.mean[0].item() == pytest.approx(targets[:, 0].mean().item(), rel=0.2)
    assert (task.scorer.target_scale.std > 0).all()
    with torch.no_grad():
        tokens = tokenizer.encode(batch["video"])
        features = task.scorer.evidence_scale(task.scorer.scorer_inputs(tokenizer, tokens))[tokens.keep][:, :16]
    assert features.std(0).mean().item() == pytest.approx(1, rel=0.2)
