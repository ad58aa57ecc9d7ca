"""Frames in tiles: what a tile does not share is its own result, shared strips are blended, streams are refused."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from tiny_codecs import save_codec
from torch.nn.functional import avg_pool2d, interpolate

from genvid.tokenizer.lit.codecs.diffusers_codec import DiffusersCodecConfig
from genvid.tokenizer.lit.codecs.tiling import in_tiles


@pytest.mark.parametrize("size", [(16, 16), (28, 40), (33, 17)])
def test_a_function_of_single_cells_is_the_same_in_tiles(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 2, *(4 * side for side in size))

    def down(part: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(part.flatten(0, 1), 4).view(*part.shape[:3], part.shape[3] // 4, -1)

    def up(part: torch.Tensor) -> torch.Tensor:
        return interpolate(part.flatten(1, 2), scale_factor=4).view(*part.shape[:3], 4 * part.shape[3], -1)

    torch.testing.assert_close(in_tiles(down, x, 64, Fraction(1, 4)), down(x))
    torch.testing.assert_close(in_tiles(up, down(x), 16, Fraction(4)), up(down(x)))


def test_shared_strips_go_from_one_tile_to_the_next_and_the_rest_is_of_one_tile() -> None:
    calls: list[float] = []

    def number(part: torch.Tensor) -> torch.Tensor:
        calls.append(float(len(calls)))
        return torch.full_like(part, calls[-1])

    joined = in_tiles(number, torch.zeros(1, 1, 1, 8, 14), 8, Fraction(1))[0, 0, 0]
    assert calls == [0, 1]
    assert joined[:, :6].eq(0).all()
    assert joined[:, 8:].eq(1).all()
    assert joined[0, 6:8].tolist() == [0.25, 0.75]


@pytest.mark.parametrize("name", ["AutoencoderKLCosmos", "AutoencoderKLWan"])
def test_codecs_code_small_frames_whole_and_large_ones_in_tiles(name: str, tmp_path: Path) -> None:
    save_codec(name, tmp_path / "codec")
    whole, tiled = (DiffusersCodecConfig(str(tmp_path / "codec"), codec_tile=tile).load() for tile in (None, 64))
    small, large = (torch.rand(2, 3, 5, 64, side) * 2 - 1 for side in (64, 112))
    assert tiled.encode(small).equal(torch.cat([whole.encode(clip) for clip in small.split(1)]))
    latents = tiled.encode(large)
    assert latents.shape == whole.encode(large).shape
    own = 64 // tiled.geometry.spatial_stride * 3 // 4
    assert latents[..., :own].equal(torch.cat([whole.encode(c) for c in large[..., :64].split(1)])[..., :own])
    latents.requires_grad_()
    decoded = tiled.decode(latents)
    assert decoded.shape == large.shape
    decoded.sum().backward()
    assert latents.grad is not None
    with pytest.raises(ValueError, match=r"is not tiled: set codec\.codec_window"):
        tiled.stream()
    with pytest.raises(ValueError, match=r"a multiple of (16|32) pixels, got 60"):
        tiled.set_tile(60)


def test_tiles_are_as_complete_frames_as_far_as_the_receptive_field_allows(tmp_path: Path) -> None:
    """Wan without its attention over the frame is local: only near the end of a tile do complete frames differ."""
    save_codec("AutoencoderKLWan", tmp_path / "codec")
    codec = DiffusersCodecConfig(str(tmp_path / "codec")).load()
    for name, parameter in codec.named_parameters():
        if "attentions" in name and ".proj." in name:
            parameter.data.zero_()
    latents = torch.randn(1, 4, 1, 8, 84, requires_grad=True)
    whole = codec.decode(latents)
    whole[..., 4 * 42].sum().backward()
    assert latents.grad is not None
    columns = latents.grad.abs().sum((0, 1, 2, 3)).nonzero().flatten()
    reach = int((columns - 42).abs().max())
    codec.set_tile(4 * 48)
    tiled = codec.decode(latents.detach())  # latents 0 to 48 and 36 to 84
    assert 4 <= reach < 36
    first, second = 4 * min(36, 48 - reach), 4 * max(48, 36 + reach)
    torch.testing.assert_close(tiled[..., :first], whole[..., :first], atol=1e-5, rtol=0)
    torch.testing.assert_close(tiled[..., second:], whole[..., second:], atol=1e-5, rtol=0)
    assert not torch.allclose(tiled[..., 4 * 36 : 4 * 48], whole[..., 4 * 36 : 4 * 48], atol=1e-3)
