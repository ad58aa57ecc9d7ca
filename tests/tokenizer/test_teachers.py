"""Teachers: any network of transformers by its folder, with its preprocessing; features by block and cell."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genvid.perceptual.networks import squeezenet1_1
from genvid.tokenizer.teachers import ModuleTeacherConfig, SqueezeNetTeacher, TransformersConfig

transformers = pytest.importorskip("transformers")
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}
FRAMES = {
    "dinov2": transformers.Dinov2WithRegistersConfig(**SIZES, image_size=16, num_register_tokens=2),
    "siglip": transformers.SiglipVisionConfig(**SIZES, image_size=16),
}
CLIPS = {
    "videomae": transformers.VideoMAEConfig(**SIZES, image_size=16, num_frames=4),
    "vjepa2": transformers.VJEPA2Config(
        **SIZES, crop_size=16, pred_hidden_size=8, pred_num_attention_heads=2, pred_num_hidden_layers=1, mlp_ratio=2
    ),
}


def write(folder, config, side=16):
    torch.manual_seed(0)
    network = transformers.AutoModel.from_config(config).eval()
    network.save_pretrained(folder)
    preparation = {"image_mean": MEAN, "image_std": STD, "crop_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return network


def prepared(frames):
    """Frames (N, 3, H, W) in [-1, 1] as an image processor prepares them, one channel at a time."""
    frames = F.interpolate(frames, (16, 16), mode="bilinear", align_corners=False, antialias=True)
    return torch.stack([((frames[:, c] + 1) / 2 - MEAN[c]) / STD[c] for c in range(3)], 1)


def make_video():
    return torch.rand(2, 3, 8, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("kind", FRAMES)
def test_a_network_of_frames_reads_the_middle_of_every_block(tmp_path, kind):
    network, video = write(tmp_path, FRAMES[kind]), make_video()
    teacher = TransformersConfig(str(tmp_path)).build()
    patches, pooled = teacher(video, 2)
    assert (patches.shape, pooled.shape, teacher.width) == ((2, 2, 2, 2, 8), (2, 2, 8), 8)
    for clip in range(2):
        for block in range(2):
            with torch.no_grad():
                states = network(prepared(video[clip : clip + 1, :, 4 * block + 2])).last_hidden_state[0]
            torch.testing.assert_close(patches[clip, block].flatten(0, 1), states[-4:], rtol=1e-4, atol=1e-5)
            expected = states[0] if len(states) > 4 else states.mean(0)
            torch.testing.assert_close(pooled[clip, block], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CLIPS)
def test_a_network_of_clips_is_averaged_over_each_block(tmp_path, kind):
    network, video = write(tmp_path, CLIPS[kind]), make_video()
    patches, pooled = TransformersConfig(str(tmp_path)).build()(video, 2)
    frames = [0, 2, 5, 7] if kind == "videomae" else range(8)
    clip = torch.stack([prepared(video[:, :, t]) for t in frames], 1)
    with torch.no_grad():
        states = network(clip) if kind == "videomae" else network(clip, skip_predictor=True)
    expected = states.last_hidden_state.view(2, 2, -1, 2, 2, 8).mean(2)
    torch.testing.assert_close(patches, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_squeezenet_gives_its_last_activations(tmp_path):
    torch.manual_seed(0)
    trunk, video = squeezenet1_1(), make_video()
    torch.save(trunk.state_dict(), tmp_path / "squeezenet.pth")
    teacher = SqueezeNetTeacher(tmp_path / "squeezenet.pth")
    patches, pooled = teacher(F.interpolate(video, (8, 32, 32)), 4)
    assert patches.shape == (2, 4, 1, 1, 512)
    torch.testing.assert_close(pooled, patches[:, :, 0, 0])
    assert teacher.name.startswith("SqueezeNet ")


class Brightness(nn.Module):
    width = 3

    def forward(self, video):
        return F.avg_pool3d(video, (2, 8, 8)).permute(0, 2, 3, 4, 1)


def test_any_module_is_a_teacher(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    teacher = ModuleTeacherConfig(f"{__name__}:Brightness").build()
    patches, pooled = teacher(make_video(), 2)
    expected = F.avg_pool3d(make_video(), (4, 8, 8)).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(patches, expected)
    torch.testing.assert_close(pooled, expected.mean((2, 3)))
    for source, words in ((f"{__name__}:make_video", "int `width`"), ("nowhere:Network", "package.module:callable")):
        with pytest.raises(ValueError, match=words):
            ModuleTeacherConfig(source).build()


def test_folders_that_lack_something_are_refused_in_one_sentence(tmp_path):
    write(tmp_path, FRAMES["siglip"])
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no preprocessor_config.json with image_mean"):
        TransformersConfig(str(tmp_path)).build()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no network that transformers can load"):
        TransformersConfig(str(tmp_path)).build()
