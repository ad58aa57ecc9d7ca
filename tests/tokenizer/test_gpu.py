"""Tokenizers on a GPU give the tokens, videos, scores, losses and gradients of the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from disturbed import disturbed
from test_adaptok_tasks import DROP, MODEL, NETWORK, OBJECTIVE, make_batch, make_distortion, make_tokenizer
from tiny_codecs import cosmos, drifting, make_lit
from torch.nn.functional import scaled_dot_product_attention

from genvid.allocation import UniformAllocator
from genvid.hardware import hardware
from genvid.tokenizer.adaptok.config import RotaryGeometry
from genvid.tokenizer.adaptok.discriminator import DiscriminatorConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokenizer.adaptok.stream import StreamBudget, StreamDecoder, StreamEncoder
from genvid.tokenizer.adaptok.tail_drop import TailDropConfig
from genvid.tokenizer.adaptok.tasks import AdapTokTask, AdversarialAdapTokTask, ScorerTask
from genvid.tokenizer.layers import TransformerBlock
from genvid.tokenizer.lit.budget import BudgetAllocator
from genvid.tokenizer.lit.model import LIT
from genvid.tokenizer.lit.redundancy import RedundancyAllocator, RedundancyConfig
from genvid.tokenizer.streams import video_decoder, video_encoder
from genvid.tokens import BlockTokens
from genvid.train.task import StepOutput, TrainingTask

pytestmark = pytest.mark.gpu
CLOSE = {"rtol": 1e-2, "atol": 1e-3}
"""Convolutions on a GPU are in TF32."""


def make_scorer() -> Scorer:
    torch.manual_seed(1)
    config = ScorerConfig.for_tokenizer(MODEL, NETWORK, sizes=(1, 3, 6), metric="x")
    return Scorer(config).eval()


def test_adaptok_gives_the_same_tokens_and_videos(gpu: torch.device) -> None:
    tokenizer, video = make_tokenizer(), make_batch()["video"]
    tokens = UniformAllocator(3)(tokenizer.encode(video))
    decoded = tokenizer.decode(tokens)
    tokenizer.to(gpu)
    again = UniformAllocator(3)(tokenizer.encode(video.to(gpu)))
    assert tokens.codes is not None
    assert again.codes is not None
    assert torch.equal(again.codes.cpu(), tokens.codes)
    torch.testing.assert_close(tokenizer.decode(again).cpu(), decoded, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("single", [False, True])
def test_streams_and_clips_are_replayed_to_the_same_tokens_and_videos(gpu: torch.device, single: bool) -> None:
    """By CUDA graphs from the second use of a shape on."""
    torch.manual_seed(0)
    rotary = RotaryGeometry(window=2, sides=(16, 16), aspect=(1, 1), single_first_frame=single)
    config = replace(MODEL, frames=MODEL.frames + single, pooled_queries=True, geometry=rotary)
    stream, clip = disturbed(AdapTok(config)), make_tokenizer()
    sizes = ScorerConfig.for_tokenizer(stream.config, NETWORK, sizes=(1, 3, 6), metric="x", gains=True)
    scorer, video = disturbed(Scorer(sizes)), torch.rand(1, 3, 40, *MODEL.resolution) * 2 - 1

    def coded(device: torch.device) -> list[torch.Tensor]:
        for network in (stream, clip, scorer):
            network.to(device)
        encode_next = StreamEncoder(stream, StreamBudget(ScorerPredictor(stream, scorer), 9, 3))
        tokens = encode_next(video.to(device))
        results = [tokens.keep, tokens.codes, StreamDecoder(stream)(tokens)]
        encode, decode = video_encoder(clip), video_decoder(clip)
        for start in range(0, 40, MODEL.frames):
            tokens = encode(video[:, :, start : start + MODEL.frames].to(device)).tail_drop(
                torch.tensor([[3, 6]], device=device)
            )
            results += [tokens.codes, decode(tokens)]
        return [result.cpu() for result in results]

    expected = coded(torch.device("cpu"))
    torch.testing.assert_close(coded(gpu), expected, rtol=1e-3, atol=1e-4)


def test_the_scorer_gives_the_same_curves(gpu: torch.device) -> None:
    tokenizer, scorer, video = make_tokenizer(), make_scorer(), make_batch()["video"]

    def curves() -> list[torch.Tensor]:
        device = next(tokenizer.parameters()).device
        tokens = tokenizer.encode(video.to(device)).tail_drop(torch.tensor([[3, 6]] * 4, device=device))
        predictor = ScorerPredictor(tokenizer, scorer)
        return [predictor.predict(tokens, block).cpu() for block in range(2)]

    expected = curves()
    tokenizer.to(gpu)
    scorer.to(gpu)
    torch.testing.assert_close(curves(), expected, rtol=1e-3, atol=1e-4)


def test_the_gelu_within_a_product_is_as_near_to_the_exact_one(gpu: torch.device) -> None:
    torch.manual_seed(0)
    layer, x = TransformerBlock(64, 2).to(gpu), torch.randn(3, 50, 64, device=gpu)
    with torch.no_grad():
        exact = layer(x, scaled_dot_product_attention)
        layer.round(torch.bfloat16)
        within = layer(x, scaled_dot_product_attention)
    plain = layer(x, scaled_dot_product_attention)  # with gradients
    assert not within.equal(plain)
    assert (within - exact).norm() < 1.1 * (plain - exact).norm()


def adversarial() -> TrainingTask:
    return AdversarialAdapTokTask(MODEL, OBJECTIVE, make_distortion(), DiscriminatorConfig(transformer=NETWORK))


TASKS = {
    "tokenizer": lambda: AdapTokTask(MODEL, OBJECTIVE, make_distortion()),
    "adversarial": adversarial,
    "scorer": lambda: ScorerTask(make_scorer(), make_tokenizer(), DROP, make_distortion()),
}


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_losses_and_gradients_are_the_same(gpu: torch.device, make) -> None:
    def gradients(task: TrainingTask, device: torch.device) -> dict[str, torch.Tensor | None]:
        batch, carry, found = {name: value.to(device) for name, value in make_batch().items()}, {}, {}
        for phase in task.phases:
            output = task(batch, phase, 0, carry)
            output.loss.backward()
            carry, found[f"{phase} loss"] = output.carry, output.loss.detach().cpu()
        return found | {n: None if p.grad is None else p.grad.cpu() for n, p in task.named_parameters()}

    torch.manual_seed(0)
    task = make()
    on_gpu = copy.deepcopy(task).to(gpu)
    torch.testing.assert_close(gradients(on_gpu, gpu), gradients(task, torch.device("cpu")), **CLOSE)


@pytest.mark.parametrize("rule", ["threshold", "budget"])
def test_lit_gives_the_same_masks_and_videos(gpu: torch.device, tmp_path: Path, rule: str) -> None:
    lit, video = make_lit(cosmos(tmp_path / "codec")), drifting()

    def coded(lit: LIT, video: torch.Tensor) -> tuple[BlockTokens, torch.Tensor]:
        tokens = lit.encode(video)
        budget = BudgetAllocator(40, lit.metric)
        allocate = budget if rule == "budget" else RedundancyAllocator(RedundancyConfig(0.5), lit.metric)
        return allocate(tokens), lit.decode(allocate(tokens))

    tokens, decoded = coded(lit, video)
    again, redone = coded(lit.to(gpu), video.to(gpu))
    changed = (again.keep.cpu() != tokens.keep).sum()
    assert changed <= 2  # latents that lie on the threshold
    if not changed:
        torch.testing.assert_close(redone.cpu(), decoded, rtol=1e-2, atol=1e-2)


def test_a_step_that_is_compiled_in_half_precision_computes_kept_tokens_alone(gpu: torch.device) -> None:
    if not hardware(gpu).kernels:
        pytest.skip("needs Triton and a GPU that it compiles for")
    torch.manual_seed(0)
    task = AdapTokTask(MODEL, replace(OBJECTIVE, tail_drop=TailDropConfig(2, 1, 1, 6)), make_distortion()).to(gpu)
    disturbed(task.tokenizer)
    batch = {name: value.to(gpu) for name, value in make_batch(16).items()}

    def loss_and_gradient(forward: Callable[..., StepOutput]) -> tuple[float, torch.Tensor]:
        task.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = forward(batch, "model", 0, {}).loss
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])

    (expected, gradient), compiled = loss_and_gradient(task.forward), torch.compile(task.forward, dynamic=False)
    loss_and_gradient(compiled)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        loss, found = loss_and_gradient(compiled)
    assert any("_key_gradient_tile" in event.key for event in profiled.key_averages())
    # Codes are sampled from rounded products: a few of the 192 may be others.
    assert loss == pytest.approx(expected, rel=0.02)
    assert (found - gradient).norm() < 0.3 * gradient.norm()
