"""Feature networks: the I3D files are loaded as published, recognised by content, and no other number is FVD."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvid.checkpoint import CheckpointError, load_model
from genvid.eval.features import loading as feature_networks
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.features.classifier import VideoClassifier, VideoClassifierConfig
from genvid.eval.features.i3d import I3D
from genvid.eval.features.loading import git_blob_id, load_features, load_i3d
from genvid.eval.features.mirrored import mirrored
from genvid.eval.features.transnet import TransNetFeatures
from genvid.eval.metrics.frechet import frechet_name

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Scripted(nn.Module):
    """The interface of i3d_torchscript.pt, around our own network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if rescale:
            x = x / 127.5 - 1
        if resize:
            batch, channels, frames = x.shape[:3]
            x = x.permute(0, 2, 1, 3, 4).reshape(-1, channels, x.shape[3], x.shape[4])
            x = F.interpolate(x, size=[224, 224], mode="bilinear", align_corners=False)
            x = x.reshape(batch, frames, channels, 224, 224).permute(0, 2, 1, 3, 4)
        return self.network(x)


@pytest.fixture(scope="module")
def i3d_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The two published formats, with the same random weights."""
    folder = tmp_path_factory.mktemp("i3d")
    torch.manual_seed(0)
    network = I3D().eval()
    torch.save(network.state_dict(), folder / "i3d_pretrained_400.pt")
    traced = torch.jit.trace(network, torch.zeros(1, 3, 9, 224, 224), check_trace=False)
    torch.jit.script(Scripted(traced)).save(str(folder / "i3d_torchscript.pt"))
    return folder / "i3d_pretrained_400.pt", folder / "i3d_torchscript.pt"


def test_i3d_has_the_published_size() -> None:
    assert sum(p.numel() for p in I3D().parameters()) == 12_697_264


def test_both_formats_give_the_same_features(i3d_files: tuple[Path, Path]) -> None:
    video = torch.rand(1, 3, 9, 40, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        first, second = (load_i3d(path)(video) for path in i3d_files)
    assert first.shape == (1, 400)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_only_recognised_files_make_fvd(i3d_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = i3d_files[0]
    assert not load_features(path).is_fvd
    assert load_features(path).name == f"unverified I3D {git_blob_id(path)[:8]}"
    monkeypatch.setitem(feature_networks.I3D_FILES, git_blob_id(path), "i3d_pretrained_400.pt")
    assert load_features(path).is_fvd
    assert load_features(path).name == "I3D Kinetics-400"


def test_blob_id_is_git_s(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content\n" * 1000)
    try:
        known = subprocess.run(["git", "hash-object", str(file)], capture_output=True, text=True, check=True).stdout
    except OSError:
        pytest.skip("git is not installed")
    assert git_blob_id(file) == known.strip()


def test_short_clips_and_wrong_files_are_refused_in_words(tmp_path: Path, i3d_files: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="at least 9 frames, got 8"):
        load_i3d(i3d_files[0]).check(torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(ValueError, match=r"i3d_torchscript.pt"):
        load_features(tmp_path / "absent.pt")
    torch.save({"Conv3d_1a_7x7.conv3d.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not fit I3D"):
        load_features(tmp_path / "other.pt")


def test_classifier_round_trip_lends_its_features(tmp_path: Path) -> None:
    classifier = VideoClassifier(VideoClassifierConfig(num_classes=3, frames=8, resolution=16)).eval()
    classifier.save(tmp_path / "classifier")
    video = torch.rand(2, 3, 8, 16, 16) * 2 - 1
    loaded = load_model(tmp_path / "classifier")
    assert torch.equal(loaded(video), classifier(video))
    network = load_features(tmp_path / "classifier")
    assert network(video).shape == (2, network.num_features)
    assert torch.equal(classifier.head(network(video)), classifier(video))
    assert not network.is_fvd
    assert network.name.startswith("video classifier ")


def test_classifier_learns_motion_that_no_single_frame_shows() -> None:
    """Squares that move left or right: their frames alone are alike."""
    torch.manual_seed(0)
    classifier = VideoClassifier(VideoClassifierConfig(num_classes=2, frames=8, resolution=16, width=8))

    def clips(count: int, seed: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        labels = torch.randint(2, (count,), generator=draw)
        video = -torch.ones(count, 3, 8, 16, 16)
        for clip, label in enumerate(labels.tolist()):
            x, y = (int(v) for v in torch.randint(0, 12, (2,), generator=draw))
            for t in range(8):
                columns = (torch.arange(4) + x + (t if label else -t)) % 16
                video[clip, :, t, y : y + 4][..., columns] = 1
        return video, labels

    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    video, labels = clips(64, 0)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(classifier(video), labels).backward()
        optimizer.step()
    video, labels = clips(64, 1)
    assert (classifier(video).argmax(-1) == labels).float().mean() > 0.9


def test_classifier_is_small_and_checks_its_configuration() -> None:
    config = VideoClassifierConfig(num_classes=6)
    assert 100_000 < sum(p.numel() for p in VideoClassifier(config).parameters()) < 300_000
    with pytest.raises(ValueError, match="at least 2 classes"):
        VideoClassifierConfig(num_classes=1)
    for width in (12, 0, -8):
        with pytest.raises(ValueError, match="multiple of 8"):
            VideoClassifierConfig(num_classes=2, width=width)


def test_videomae_is_transformers_own_and_bears_its_name(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.VideoMAEConfig(image_size=32, num_frames=4, **sizes)
    torch.manual_seed(0)
    model = transformers.VideoMAEForVideoClassification(config).eval()
    model.save_pretrained(tmp_path / "head")
    model.videomae.save_pretrained(tmp_path / "trunk")
    video = torch.rand(2, 3, 4, 32, 32) * 2 - 1
    mean, std = (torch.tensor(v)[:, None, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (((video + 1) / 2 - mean) / std).transpose(1, 2)
    with torch.no_grad():
        pooled = model.videomae(pixels).last_hidden_state.mean(1)
        for folder, expected in (("head", model.fc_norm(pooled)), ("trunk", pooled)):
            network = load_features(tmp_path / folder)
            torch.testing.assert_close(network(video), expected)
            assert network.name == f"VideoMAE {network.weights[:8]}"
            assert not network.is_fvd
    with pytest.raises(ValueError, match="exactly 4 frames, got 6"):
        network.check(torch.zeros(1, 3, 6, 32, 32))


class Frames(FeatureNetwork):
    """The brightness of every frame."""

    name, num_features, min_frames = "frames", 9, 9
    is_fvd = True

    def extract(self, video: Tensor) -> Tensor:
        return video.mean((1, 3, 4))


@pytest.mark.parametrize(("frames", "order"), [(4, [0, 1, 2, 3, 2, 1, 0, 1, 2]), (2, [0, 1] * 4 + [0]), (1, [0] * 9)])
def test_clips_that_are_too_short_are_mirrored_under_a_name_of_their_own(frames: int, order: list[int]) -> None:
    network = mirrored(Frames(), frames)
    video = torch.arange(frames).float().view(1, 1, frames, 1, 1).expand(2, 3, -1, 4, 4)
    assert network(video).tolist() == [order] * 2
    assert frechet_name(network) == f"Frechet distance (frames, clips of {frames} frames mirrored to 9)"
    assert mirrored(Frames(), 9).is_fvd
    assert mirrored(Frames(), None).is_fvd


class MeanColour(nn.Module):
    """A feature network of someone else's."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, video: Tensor) -> Tensor:
        return video.mean((2, 3, 4)) * self.scale


def nothing() -> str:
    return "no module"


@pytest.fixture(scope="module")
def transnet_arrays() -> dict[str, np.ndarray]:
    """Random weights under the names of the published file, parts behind the features among them."""
    generator, arrays = np.random.default_rng(0), {"fc1.weight": np.zeros((1024, 4864), np.float16)}
    for stage, (inputs, filters) in enumerate([(3, 16), (64, 32), (128, 64)]):
        for block, channels in enumerate([inputs, 4 * filters]):
            name = f"SDDCNN.{stage}.DDCNN.{block}"
            for dilation in (1, 2, 4, 8):
                shapes = [(2 * filters, channels, 1, 3, 3), (filters, 2 * filters, 3, 1, 1)]
                for layer, shape in enumerate(shapes):
                    values = generator.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
                    arrays[f"{name}.Conv3D_{dilation}.layers.{layer}.weight"] = values.astype(np.float16)
            statistics = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
            arrays |= {f"{name}.bn.{key}": np.full(4 * filters, value, np.float16) for key, value in statistics.items()}
            arrays[f"{name}.bn.num_batches_tracked"] = np.array(0)
    return arrays


def test_transnet_is_read_with_the_published_names_and_sees_the_order_of_frames(
    tmp_path: Path, transnet_arrays: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "transnet.npz", **transnet_arrays)
    network = load_features(tmp_path / "transnet.npz")
    assert isinstance(network, TransNetFeatures)
    assert frechet_name(network).startswith("Frechet distance (TransNet V2 ")
    clip = torch.rand(1, 3, 8, 54, 96) * 2 - 1
    features = network(torch.cat([clip, clip[:, :, torch.randperm(8)]]))
    assert features.shape == (2, network.num_features) == (2, 448)
    torch.testing.assert_close(network(clip)[0], features[0], atol=1e-5, rtol=1e-4)
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_files_that_are_not_transnet_are_refused_in_words(
    tmp_path: Path, transnet_arrays: dict[str, np.ndarray]
) -> None:
    lacking = {name: array for name, array in transnet_arrays.items() if name != "SDDCNN.1.DDCNN.0.bn.bias"}
    np.savez(tmp_path / "lacking.npz", **lacking)
    with pytest.raises(CheckpointError, match=r"lacking\.npz does not fit .*missing 1\.DDCNN\.0\.bn\.bias"):
        load_features(tmp_path / "lacking.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(CheckpointError, match=r"text\.npz is no \.npz file of arrays"):
        load_features(tmp_path / "text.npz")


def test_dotted_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    network = load_features("test_features:MeanColour")
    video = torch.rand(2, 3, 4, 8, 8)
    torch.testing.assert_close(network(video), video.mean((2, 3, 4)))
    assert network.name.startswith("test_features:MeanColour ")
    assert not network.is_fvd
    for wrong in ("test_features:absent", "no_such_module:x", "test_features:nothing"):
        with pytest.raises(ValueError, match=r"no feature network|not a torch module|is a torch module"):
            load_features(wrong)
    with pytest.raises(ValueError, match="num_features"):
        load_features("torch.nn:Identity")


def test_convolutions_are_exact_inside_and_as_before_outside() -> None:
    seen = []

    class Looks(FeatureNetwork):
        name, num_features, min_frames = "looks", 1, 1

        def extract(self, video: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return video.flatten(1)[:, :1]

    before = torch.backends.cudnn.allow_tf32
    Looks()(torch.zeros(1, 3, 1, 2, 2))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before
