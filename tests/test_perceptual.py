"""Perceptual distances: what they are zero for, how they rank, where gradients go, and where weights come from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from genvid import config
from genvid.frozen import Frozen
from genvid.perceptual import (
    LPIPS,
    PerceptualConfig,
    PerceptualDistance,
    SqueezeNetDistance,
    StructureConfig,
    StructureDistance,
    structure,
)
from genvid.perceptual.networks import BACKBONES

SQUEEZENET = Path(__file__).resolve().parents[1].parent / "shared" / "weights" / "squeezenet1_1_imagenet_onnx.pth"


@pytest.fixture(scope="module")
def trunk_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of random trunks, with the classifier entries that published files have too."""
    folder = tmp_path_factory.mktemp("trunks")
    torch.manual_seed(0)
    files = {}
    for net, backbone in BACKBONES.items():
        files[net] = folder / f"{net}.pth"
        torch.save({**backbone.build().state_dict(), "classifier.1.weight": torch.zeros(1)}, files[net])
    return files


def textured(size: int, frames: int = 2) -> Tensor:
    """A video with structure at several scales, in [-1, 1]."""
    torch.manual_seed(1)
    layers = [F.interpolate(torch.randn(frames, 3, n, n), (size, size), mode="bicubic") for n in (4, 8, 16, size)]
    return (sum(layers[:-1], 0.3 * layers[-1]) / 3).tanh().transpose(0, 1)[None]


def blur(video: Tensor, times: int) -> Tensor:
    frames = video[0].transpose(0, 1)
    for _ in range(times):
        frames = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return frames.transpose(0, 1)[None]


def distances(files: dict[str, Path]) -> list[PerceptualDistance]:
    return [StructureDistance(), SqueezeNetDistance(files["squeeze"]), *(LPIPS(net, files[net]) for net in files)]


def test_zero_for_equal_positive_otherwise_and_one_value_a_clip(trunk_files: dict[str, Path]) -> None:
    video = torch.cat([textured(32), textured(32)])
    other = torch.cat([video[:1], blur(video[1:], 2)])
    for distance in distances(trunk_files):
        value = distance(other, video)
        assert value.shape == (2,)
        assert value[0] == 0
        assert value[1] > 0


def test_passes_do_not_change_the_value(trunk_files: dict[str, Path]) -> None:
    video = textured(32, frames=5)
    for whole, cut in (
        (StructureDistance(), StructureDistance(frames_per_pass=2)),
        (SqueezeNetDistance(trunk_files["squeeze"]), SqueezeNetDistance(trunk_files["squeeze"], 2)),
    ):
        expected = whole.per_frame(blur(video, 1), video)
        assert expected.shape == (1, 5)
        torch.testing.assert_close(cut.per_frame(blur(video, 1), video), expected)


def test_float32_under_autocast(trunk_files: dict[str, Path]) -> None:
    video = textured(32)
    for distance in distances(trunk_files):
        expected = distance(blur(video, 1), video)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(distance(blur(video, 1), video), expected)


class HalfLPIPS(LPIPS):
    """In training in float16 on a CPU too."""

    def precision(self, video: Tensor, recorded: bool) -> torch.autocast:
        return torch.autocast("cpu", torch.float16, enabled=recorded)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("net", ["squeeze", "vgg"])
def test_networks_in_half_precision_in_training_alone(net: str, compiled: bool, trunk_files: dict[str, Path]) -> None:
    exact, half = (kind(net, trunk_files[net]) for kind in (LPIPS, HalfLPIPS))  # type: ignore[arg-type]
    if compiled:
        half.compile(backend="aot_eager", dynamic=False)
    target = textured(64, frames=1)
    assert torch.equal(half(blur(target, 2), target), exact(blur(target, 2), target))
    for video in (blur(target, 2), target + 0.01 * torch.randn(target.shape)):
        _assert_near(half, exact, video, target)
    assert half(target.clone().requires_grad_(), target) == 0


@pytest.mark.gpu
def test_networks_on_a_gpu_in_half_precision_in_training_alone(gpu: torch.device, trunk_files: dict[str, Path]) -> None:
    target = textured(64).to(gpu)
    for net in trunk_files:
        distance = LPIPS(net, trunk_files[net])  # type: ignore[arg-type]

        def autocast(video: Tensor, target: Tensor, distance: LPIPS = distance) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16):
                return distance(video, target)

        assert torch.equal(autocast(blur(target, 2), target), distance(blur(target, 2), target))
        _assert_near(autocast, distance, blur(target, 2), target)


def _assert_near(
    half: Callable[[Tensor, Tensor], Tensor], exact: Callable[[Tensor, Tensor], Tensor], video: Tensor, target: Tensor
) -> None:
    """Other distances, but within 1 %, with gradients within 5 degrees, whose lengths are within 1 %."""
    found, expected = (
        (value := distance(leaf := video.clone().requires_grad_(), target), *torch.autograd.grad(value.sum(), leaf))
        for distance in (half, exact)
    )
    assert not torch.equal(found[0], expected[0])
    assert_close(found[0], expected[0], rtol=1e-2, atol=0)
    assert_close(found[1].norm(), expected[1].norm(), rtol=1e-2, atol=0)
    assert F.cosine_similarity(found[1].flatten(), expected[1].flatten(), dim=0) > 0.9962


@pytest.mark.parametrize("net", ["vgg", "alex", "squeeze"])
def test_convolutions_are_channels_last_and_weights_stay_in_place(net: str, trunk_files: dict[str, Path]) -> None:
    """Every convolution gets its input in the layout of its weights, which copies of the network keep."""
    distance = copy.deepcopy(LPIPS(net, trunk_files[net]))  # type: ignore[arg-type]
    convolutions = [layer for layer in distance._trunk.network.modules() if isinstance(layer, nn.Conv2d)]
    places, inputs = [layer.weight.data_ptr() for layer in convolutions], []
    for layer in convolutions[1:]:
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    distance(blur(textured(64), 1), textured(64))
    assert len(inputs) == 2 * len(convolutions[1:])
    assert all(features.is_contiguous(memory_format=torch.channels_last) for features in inputs)
    assert [layer.weight.data_ptr() for layer in convolutions] == places


def test_gradient_reaches_the_video_only_and_is_finite_at_zero(trunk_files: dict[str, Path]) -> None:
    for distance in distances(trunk_files):
        target = textured(32).requires_grad_()
        for start in (target.detach().clone(), blur(target.detach(), 1)):
            video = start.requires_grad_()
            distance(video, target).sum().backward()
            assert video.grad is not None
            assert video.grad.isfinite().all()
        assert video.grad.abs().sum() > 0
        assert target.grad is None


def test_the_gradient_is_computed_with_the_distance_and_kept_in_place_of_features(trunk_files: dict[str, Path]) -> None:
    target = textured(32, frames=5)
    for distance in [StructureDistance(2), SqueezeNetDistance(trunk_files["squeeze"], 2)]:
        video, weights = blur(target, 1).requires_grad_(), torch.linspace(-1, 1, 5)
        frames, wanted = video[0].transpose(0, 1), target[0].transpose(0, 1)
        (expected,) = torch.autograd.grad(distance.frame_distance(frames, wanted) @ weights, video)
        measured = distance.per_frame(video, target)[0] @ weights
        reached, recorded = [measured.grad_fn], set()
        while reached:
            recorded.add(node := reached.pop())
            reached += [other for other, _ in node.next_functions if other is not None and other not in recorded]
        assert not {"ConvolutionBackward0", "ReluBackward0", "AbsBackward0"} & {node.name() for node in recorded}
        torch.testing.assert_close(torch.autograd.grad(measured, video)[0], expected)


def test_networks_follow_the_task_that_holds_them(trunk_files: dict[str, Path]) -> None:
    """And are on its device before a step is compiled, which could not move them in one piece."""
    distance = SqueezeNetDistance(trunk_files["squeeze"])
    nn.Sequential(Frozen(distance)).to("meta")
    for weights in (distance.mean, *distance._trunk.network.parameters(), *distance._heads.network):
        assert weights.is_meta


def test_adds_nothing_to_the_state_of_a_task_and_survives_a_copy(trunk_files: dict[str, Path]) -> None:
    video = textured(32)
    for distance in distances(trunk_files):
        task = nn.ModuleDict({"loss": distance})
        assert not task.state_dict()
        assert not list(task.parameters())
        twin = copy.deepcopy(task)["loss"]
        assert torch.equal(twin(blur(video, 1), video), distance(blur(video, 1), video))


@pytest.mark.parametrize("size", [16, 32, 128])
def test_structure_ranks_degrees_of_each_distortion(size: int) -> None:
    video, noise = textured(size), torch.randn(1, 3, 2, size, size, generator=torch.Generator().manual_seed(2))
    distance = StructureDistance()
    for family in (
        [blur(video, n) for n in (1, 2, 4)],
        [video + s * noise for s in (0.02, 0.1, 0.3)],
        [video + s for s in (0.05, 0.1, 0.3)],
        [torch.roll(video, n, -1) for n in (1, 2, 4)],
    ):
        values = [float(distance(changed, video)) for changed in family]
        assert values == sorted(values)
        assert values[0] > 0


def test_structure_forgives_a_shift_more_than_blur_where_squared_error_does_not() -> None:
    """One pixel of motion is hardly seen, lost detail is: squared error says the opposite."""
    video = textured(64)
    shifted, blurred = torch.roll(video, 1, -1), blur(video, 3)
    assert (shifted - video).square().mean() > (blurred - video).square().mean()
    distance = StructureDistance()
    assert distance(shifted, video) < distance(blurred, video)


def test_structure_masks_noise_in_texture() -> None:
    flat, texture = torch.zeros(1, 3, 1, 32, 32), textured(32, frames=1)
    noise = 0.05 * torch.randn(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    distance = StructureDistance()
    assert distance(flat + noise, flat) > 1.2 * distance(texture + noise, texture)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (17, 30)])
def test_structure_filters_equal_convolution_interpolation_and_pooling(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size)
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    padded = F.pad(image.view(6, 1, *size), (1, 1, 1, 1), mode="replicate")
    coarse = F.conv2d(padded, torch.outer(kernel, kernel)[None, None], stride=2)
    coarse = coarse.view(2, 3, *coarse.shape[-2:])
    assert_close(structure._filtered(image, structure._halving), coarse)
    wide = F.interpolate(coarse, size, mode="bilinear", align_corners=False)
    assert_close(structure._filtered(coarse, structure._doubling, size), wide)
    means = F.avg_pool2d(image, 5, stride=1, padding=2, count_include_pad=False)
    assert_close(structure._filtered(image, structure._averaging), means)


def test_structure_can_be_minimised() -> None:
    """Descent on the distance alone recovers a blurred video: fewer than half the error, and nearly no distance."""
    target = textured(32)
    distance = StructureDistance()
    video = blur(target, 4).requires_grad_()
    first = float(distance(video, target).detach())
    optimizer = torch.optim.Adam([video], lr=0.02)
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 120)
        optimizer.zero_grad()
        distance(video, target).sum().backward()
        optimizer.step()
    assert float(distance(video, target).detach()) < 0.2 * first
    assert (video - target).abs().mean() < 0.5 * (blur(target, 4) - target).abs().mean()


@pytest.mark.parametrize("net", ["vgg", "alex", "squeeze"])
def test_lpips_equals_torchmetrics_on_the_same_trunk(
    net: str, trunk_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle is torchmetrics' LPIPS with its own heads; only its torchvision trunk is replaced by ours."""
    oracle = pytest.importorskip("torchmetrics.functional.image.lpips")
    ours = LPIPS(net, trunk_files[net])  # type: ignore[arg-type]
    trunk = BACKBONES[net].build()
    trunk.load_state_dict({k: v for k, v in torch.load(trunk_files[net]).items() if k.startswith("features.")})
    layers = list(trunk.features) + [nn.Identity()] * 2
    monkeypatch.setattr(oracle, "_get_tv_model_features", lambda *_: layers)
    theirs = oracle._LPIPS(net=net, pretrained=True)
    video = textured(64)
    frames, wanted = (x[0].transpose(0, 1) for x in (blur(video, 1), video))
    with torch.no_grad():
        torch.testing.assert_close(ours.frame_distance(frames, wanted), theirs(frames, wanted).flatten())


def test_only_the_published_weights_are_called_lpips(trunk_files: dict[str, Path]) -> None:
    assert not LPIPS("vgg", trunk_files["vgg"]).name.startswith("LPIPS")
    assert "ONNX" not in SqueezeNetDistance(trunk_files["squeeze"]).name


def test_shared_squeezenet_weights_are_recognised_and_see_blur() -> None:
    if not SQUEEZENET.is_file():
        pytest.skip("the shared SqueezeNet weights are not on this machine")
    distance = SqueezeNetDistance(SQUEEZENET)
    assert distance.name == "SqueezeNet-ONNX perceptual distance"
    video = textured(64)
    values = [float(distance(blur(video, n), video)) for n in (1, 2, 4)]
    assert 0 < values[0] < values[1] < values[2] < 2


def test_configuration_chooses() -> None:
    chosen = config.decode(PerceptualConfig, {"type": "structure"})
    assert chosen == StructureConfig()
    assert chosen.build().name == "structure distance"
    with pytest.raises(config.ConfigError, match=r"lpipz"):
        config.decode(PerceptualConfig, {"type": "lpipz"})


def test_bad_input_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vgg16-397923af.pth.*type: structure"):
        LPIPS("vgg", tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="one shape"):
        StructureDistance()(torch.zeros(1, 3, 2, 16, 16), torch.zeros(1, 3, 1, 16, 16))
    with pytest.raises(ValueError, match="at least 8 pixels, got 4x32"):
        StructureDistance()(torch.zeros(1, 3, 1, 4, 32), torch.zeros(1, 3, 1, 4, 32))


def test_smallest_frames_are_measured_and_smaller_ones_refused(trunk_files: dict[str, Path]) -> None:
    for distance in distances(trunk_files):
        size = distance.min_size
        assert distance(torch.zeros(1, 3, 1, size, size), torch.ones(1, 3, 1, size, size)) > 0
        with pytest.raises(ValueError, match=f"at least {size} pixels"):
            distance(torch.zeros(1, 3, 1, size - 1, size), torch.ones(1, 3, 1, size - 1, size))
