"""Frozen codecs: what goes in comes out, streams equal one call, and bad input is one sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_codecs import CLASSES, cosmos, drifting, save_codec
from torch import nn

from genvid.tokenizer.lit.codecs.codec import Codec
from genvid.tokenizer.lit.codecs.diffusers_codec import DiffusersCodecConfig
from genvid.tokenizer.lit.codecs.torchscript_codec import TorchScriptCodecConfig

STRIDES = {
    "AutoencoderKLCosmos": (4, 8),
    "AutoencoderKLWan": (4, 4),
    "AutoencoderKLCogVideoX": (4, 8),
    "AutoencoderKLLTXVideo": (8, 16),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("codecs")


def load(name: str, folder: Path, window: int | None = None) -> Codec:
    target = folder / name
    if not target.exists():
        save_codec(name, target)
    return DiffusersCodecConfig(str(target), codec_window=window).load()


@pytest.mark.parametrize("name", CLASSES)
def test_a_codec_says_what_it_does(name: str, folder: Path) -> None:
    codec = load(name, folder)
    assert (codec.geometry.temporal_stride, codec.geometry.spatial_stride) == STRIDES[name]
    video = drifting(1, 17, 32)
    latents = codec.encode(video)
    spec = codec.spec((32, 32))
    assert latents.shape == (1, spec.token_dim, spec.num_blocks(17), *(2 * [32 // codec.geometry.spatial_stride]))
    assert codec.decode(latents).shape == video.shape
    assert not any(parameter.requires_grad for parameter in codec.parameters())


@pytest.mark.parametrize(
    ("name", "window", "blocks", "frames"),
    [
        ("AutoencoderKLCosmos", None, 7, 25),
        ("AutoencoderKLCogVideoX", None, 8, 25),  # in steps of two blocks
        ("AutoencoderKLCosmos", 9, 7, 18),
        ("AutoencoderKLCosmos", 17, 3, 17),  # at least a window
    ],
)
def test_the_longest_clip_of_so_many_blocks(
    name: str, window: int | None, blocks: int, frames: int, folder: Path
) -> None:
    spec = load(name, folder, window).spec((32, 32))
    assert spec.longest_clip(blocks) == frames == spec.filled(frames)
    assert spec.num_blocks(frames) <= max(blocks, 5)
    in_blocks = spec.block_frames(spec.num_blocks(frames))
    assert (in_blocks[0], sum(in_blocks)) == (1, frames)


@pytest.mark.parametrize("name", ["AutoencoderKLCosmos", "AutoencoderKLWan", "AutoencoderKLCogVideoX"])
def test_causal_codecs_do_not_look_ahead(name: str, folder: Path) -> None:
    codec, video = load(name, folder), drifting(1, 17, 32)
    changed = video.clone()
    changed[:, :, 9:] = 0.5
    blocks = codec.spec((32, 32)).num_blocks(9)
    before, after = codec.encode(video), codec.encode(changed)
    torch.testing.assert_close(before[:, :, :blocks], after[:, :, :blocks])
    assert not torch.allclose(before[:, :, blocks:], after[:, :, blocks:])
    restored = codec.decode(torch.cat([before[:, :, :blocks], after[:, :, blocks:]], 2))
    torch.testing.assert_close(restored[:, :, :9], codec.decode(before)[:, :, :9], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "window", "chunks"),
    [
        ("AutoencoderKLCosmos", 9, [9, 18, 5]),
        ("AutoencoderKLWan", None, [1, 4, 8, 12]),
        ("AutoencoderKLCogVideoX", None, [9, 8, 16]),
    ],
)
def test_a_stream_equals_one_call(name: str, window: int | None, chunks: list[int], folder: Path) -> None:
    codec, video = load(name, folder, window), drifting(2, sum(chunks), 32)
    latents = codec.encode(video)
    stream, parts, frames = codec.stream(), [], []
    for chunk in video.split(chunks, 2):
        parts.append(stream.encode(chunk))
        frames.append(stream.decode(parts[-1]))
    torch.testing.assert_close(torch.cat(parts, 2), latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat(frames, 2), codec.decode(latents), atol=1e-5, rtol=1e-4)


def test_published_statistics_are_told_by_channel(folder: Path) -> None:
    statistics = load("AutoencoderKLWan", folder).statistics()
    assert statistics is not None
    assert statistics[0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    cog = load("AutoencoderKLCogVideoX", folder).statistics()
    assert cog is not None
    assert cog[1].tolist() == [2.0] * 4
    assert load("AutoencoderKLCosmos", folder).statistics() is None


def test_bad_clips_are_one_sentence(folder: Path) -> None:
    codec = load("AutoencoderKLCosmos", folder)
    with pytest.raises(ValueError, match=r"16 frames does not fit this codec; use 1, 5, 9, ... frames"):
        codec.encode(drifting(1, 16))
    with pytest.raises(ValueError, match=r"multiples of 8, got 30x32"):
        codec.encode(drifting(1, 17)[:, :, :, :30])
    with pytest.raises(ValueError, match=r"a video is \(B, 3, T, H, W\)"):
        codec.encode(drifting(1, 17)[:, :2])
    with pytest.raises(ValueError, match=r"latents \(B, 4, G, h, w\)"):
        codec.decode(torch.zeros(1, 3, 2, 4, 4))
    with pytest.raises(ValueError, match="1 more than a multiple of 4 frames, got 8"):
        load("AutoencoderKLCosmos", folder, window=8)


def test_codecs_that_cannot_stream_say_so(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"not causal.*cannot stream"):
        load("AutoencoderKLLTXVideo", folder).stream()
    with pytest.raises(ValueError, match=r"set codec\.codec_window to"):
        load("AutoencoderKLCosmos", folder).stream()
    stream = load("AutoencoderKLCosmos", folder, window=9).stream()
    stream.encode(drifting(1, 5))
    with pytest.raises(ValueError, match="has ended"):
        stream.encode(drifting(1, 9))
    with pytest.raises(ValueError, match=r"takes 1 \+ n \* 4 frames"):
        load("AutoencoderKLWan", folder).stream().encode(drifting(1, 4))


def test_a_chunk_that_cuts_a_norm_of_cogvideox_is_one_sentence(folder: Path) -> None:
    """One frame alone, then eight, is not what nine are: the norms of the first two see one frame and eight."""
    codec, video = load("AutoencoderKLCogVideoX", folder), drifting(1, 17)
    latents, stream = codec.encode(video), codec.stream()
    for frames in (1, 8, 10):
        with pytest.raises(ValueError, match=rf"takes 9, 17, 25, ... frames in this chunk of the stream, got {frames}"):
            stream.encode(video[:, :, :frames])
    for blocks in (1, 2, 4):
        with pytest.raises(ValueError, match=rf"decodes 3, 5, 7, ... latent frames in this chunk.*, got {blocks}"):
            stream.decode(latents[:, :, :blocks])
    stream.decode(latents[:, :, :3])
    with pytest.raises(ValueError, match=r"decodes 2, 4, 6, ... latent frames"):
        stream.decode(latents[:, :, 3:4])


def test_folders_without_a_codec_are_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(ValueError, match="no codec at"):
        DiffusersCodecConfig(str(tmp_path / "missing")).load()
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="holds a AutoencoderKL; genvid has codecs for"):
        DiffusersCodecConfig(str(tmp_path)).load()


class Average(nn.Module):
    """A causal codec of stride 4x8x8 without weights that matter: means of cells, and their repetition."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, video: torch.Tensor) -> tuple[torch.Tensor]:
        padded = torch.cat([video[:, :, :1].repeat(1, 1, 3, 1, 1), video], 2)
        return (self.scale * torch.nn.functional.avg_pool3d(padded, [4, 8, 8]),)


class Repeat(nn.Module):
    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        video = latents.repeat_interleave(4, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
        return video[:, :, 3:]


class Indices(nn.Module):
    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return video[:, 0, ::4, ::8, ::8].long()


def script(folder: Path, encoder: nn.Module, decoder: nn.Module) -> TorchScriptCodecConfig:
    torch.jit.script(encoder).save(str(folder / "encoder.jit"))
    torch.jit.script(decoder).save(str(folder / "decoder.jit"))
    return TorchScriptCodecConfig(str(folder), codec_window=9)


def test_torchscript_pairs_are_measured(tmp_path: Path) -> None:
    codec = script(tmp_path, Average(), Repeat()).load()
    assert (codec.geometry.channels, codec.geometry.temporal_stride, codec.geometry.spatial_stride) == (3, 4, 8)
    video = drifting(1, 18)
    latents = codec.encode(video)
    assert latents.shape == (1, 3, 6, 4, 4)
    torch.testing.assert_close(latents[:, :, 3:4], torch.nn.functional.avg_pool3d(video[:, :, 9:10], (1, 8, 8)))
    assert codec.decode(latents).shape == video.shape


@pytest.mark.parametrize("prepare", [lambda network: network, torch.jit.freeze])
def test_torchscript_pairs_with_other_weights_have_other_fingerprints(
    tmp_path: Path, prepare: Callable[[nn.Module], nn.Module]
) -> None:
    """A frozen network has no parameters: its weights are constants of its code."""
    prints = []
    for scale in (1.0, 2.0):
        encoder = Average()
        nn.init.constant_(encoder.scale, scale)
        config = script(tmp_path, prepare(torch.jit.script(encoder.eval())), Repeat())
        prints.append(config.load().fingerprint())
        assert config.load().fingerprint() == prints[-1]
    assert prints[0] != prints[1]


def test_torchscript_files_of_the_wrong_kind_are_one_sentence(tmp_path: Path) -> None:
    config = TorchScriptCodecConfig(str(tmp_path))
    with pytest.raises(ValueError, match=r"encoder.jit and decoder.jit"):
        config.load()
    (tmp_path / "encoder.jit").write_text("not a network")
    with pytest.raises(ValueError, match="is not a TorchScript file"):
        config.load()
    with pytest.raises(ValueError, match=r"not to continuous latents.*not a discrete"):
        script(tmp_path, Indices(), Repeat()).load()
    with pytest.raises(ValueError, match="is not a causal video tokenizer"):
        script(tmp_path, Average(), nn.Identity()).load()
    with pytest.raises(ValueError, match="cannot code a video"):
        script(tmp_path, nn.Conv2d(3, 3, 1), Repeat()).load()


def test_cosmos_gives_a_static_clip_static_latents(folder: Path) -> None:
    codec = cosmos(folder / "AutoencoderKLCosmos", window=9).load()
    still = drifting(1, 1).expand(-1, -1, 18, -1, -1)
    latents = codec.encode(still)
    torch.testing.assert_close(latents, latents[:, :, :1].expand_as(latents), atol=1e-5, rtol=1e-4)
