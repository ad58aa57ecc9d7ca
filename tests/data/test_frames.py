"""Frames and pictures are as a player shows them: upright, square, in their colours and over black."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_video import make_video
from PIL import Image

from genvid.data import ClipConfig, video
from genvid.data.images import list_images, natural_order, read_image
from genvid.data.sources.prepared import Preparation, prepare_video
from genvid.data.video import VideoError, iterate_frames, probe, read_clip

LOSSLESS = {"crf": "0"}


def corners(number: int, size: tuple[int, int]) -> np.ndarray:
    """Every quarter of the picture has a brightness of its own."""
    quarters = np.array([[20, 90], [160, 230]], np.uint8)
    grey = quarters.repeat(size[0] // 2, 0).repeat(size[1] // 2, 1)
    return np.repeat(grey[..., None], 3, 2)


def shown(picture: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """The pixel at (x, y) goes to (a x + c y, b x + d y)."""
    places = {(a * x + c * y, b * x + d * y): picture[y, x] for y, x in np.ndindex(picture.shape[:2])}
    left, top = min(x for x, _ in places), min(y for _, y in places)
    width, height = 1 + max(x for x, _ in places) - left, 1 + max(y for _, y in places) - top
    result = np.empty((height, width, 3), np.uint8)
    for (x, y), pixel in places.items():
        result[y - top, x - left] = pixel
    return result


MATRICES = [(x, 0, 0, y) for x in (1, -1) for y in (1, -1)] + [(0, x, y, 0) for x in (1, -1) for y in (1, -1)]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_turned_and_mirrored_videos_are_read_upright(tmp_path: Path, matrix: tuple[int, ...], suffix: str) -> None:
    a, b, c, d = matrix

    def setup(stream: Any) -> None:
        stream.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])

    file = make_video(tmp_path / f"a{suffix}", 20, options=LOSSLESS, setup=setup, draw=corners)
    info = probe(file)
    expected = shown(corners(0, (32, 64)), *matrix).astype(int)
    assert (info.frames, info.height, info.width) == (20, *expected.shape[:2])
    for frame in (*read_clip(file, 5, 3, info=info), next(iterate_frames(file, info))):
        assert np.abs(frame - expected).max() <= 3
    # The prepared video is upright in its pixels.
    clip = ClipConfig(frames=4, resolution=(info.height, info.width))
    copy = prepare_video(file, info, tmp_path / "copy.mp4", Preparation(clip, quality=0)).video.info
    assert (copy.height, copy.width) == (info.height, info.width)
    assert np.abs(read_clip(tmp_path / "copy.mp4", 5, 1, info=copy)[0] - expected).max() <= 6


def test_other_angles_are_refused(tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.mp4", setup=lambda stream: stream.set_display_rotation(30))
    with pytest.raises(VideoError, match=r"a\.mp4 is shown turned by .*only quarter turns"):
        probe(file)


@pytest.mark.parametrize(
    ("aspect", "size"), [((2, 1), (32, 128)), ((1, 2), (64, 64)), ((16, 11), (32, 93)), ((1280, 1279), (32, 64))]
)
def test_pixels_that_are_not_square(tmp_path: Path, aspect: tuple[int, int], size: tuple[int, int]) -> None:
    def setup(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)

    file = make_video(tmp_path / "a.mp4", setup=setup, draw=corners)
    info = probe(file)
    assert (info.height, info.width) == size
    frame = read_clip(file, 20, 1, info=info)[0]
    inside = frame[size[0] // 4 :: size[0] // 2, size[1] // 4 :: size[1] // 2, 0][:2, :2]
    assert np.abs(inside.astype(int) - [[20, 90], [160, 230]]).max() <= 6


@pytest.mark.parametrize(("matrix", "red", "blue"), [(1, 0.2126, 0.0722), (6, 0.299, 0.114), (9, 0.2627, 0.0593)])
@pytest.mark.parametrize("full", [False, True])
def test_colours_follow_their_tags(tmp_path: Path, matrix: int, red: float, blue: float, full: bool) -> None:
    y, u, v = (120, 128, 128) if matrix == 6 else (120, 90, 170)
    file = plain_yuv(tmp_path / "a.mkv", (64, 48), (y, u, v), matrix=matrix, full=full)
    luma, chroma = (y / 255, 255) if full else ((y - 16) / 219, 224)
    r, b = luma + 2 * (1 - red) * (v - 128) / chroma, luma + 2 * (1 - blue) * (u - 128) / chroma
    g = (luma - red * r - blue * b) / (1 - red - blue)
    assert np.abs(read_clip(file, 0, 1)[0, 20, 20] - 255 * np.array([r, g, b])).max() <= 3


def test_large_video_without_tags_is_bt709(tmp_path: Path) -> None:
    yuv = (120, 90, 170)
    tagged = plain_yuv(tmp_path / "a.mkv", (1280, 720), yuv, matrix=1)
    untagged = plain_yuv(tmp_path / "b.mkv", (1280, 720), yuv, matrix=2)
    small = plain_yuv(tmp_path / "c.mkv", (64, 48), yuv, matrix=2)
    assert np.array_equal(read_clip(tagged, 0, 1), read_clip(untagged, 0, 1))
    assert not np.array_equal(read_clip(small, 0, 1)[0, 0, 0], read_clip(untagged, 0, 1)[0, 0, 0])


def plain_yuv(path: Path, size: tuple[int, int], yuv: tuple[int, ...], *, matrix: int, full: bool = False) -> Path:
    """One frame of one colour, without loss. `matrix` is an AVColorSpace: 2 is none."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        frame = av.VideoFrame(*size, "yuv420p")
        for plane, value in zip(frame.planes, yuv, strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_transparent_video_is_over_black(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream: Any = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgba"
        pixels = np.full((16, 16, 4), 200, np.uint8)
        pixels[:8, :, 3], pixels[8:, :, 3] = 0, 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode())
    frame = read_clip(tmp_path / "a.mov", 0, 1)[0]
    assert (frame[:8] == 0).all()
    assert (frame[8:] == 200).all()


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda p: p),
        (2, np.fliplr),
        (3, lambda p: np.rot90(p, 2)),
        (4, np.flipud),
        (5, lambda p: p.swapaxes(0, 1)),
        (6, lambda p: np.rot90(p, -1)),
        (7, lambda p: np.rot90(p, 2).swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pictures_are_read_upright(tmp_path: Path, orientation: int, upright: Any, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(corners(0, (32, 64))).save(tmp_path / f"1{suffix}", exif=exif)
    info, expected = probe(tmp_path), upright(corners(0, (32, 64)))
    assert (info.height, info.width) == expected.shape[:2]
    assert np.abs(read_clip(tmp_path, 0, 1)[0].astype(int) - expected).max() <= 8


def test_pictures_of_every_depth(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    alpha = np.full_like(ramp, 128)
    kinds = {
        "grey": Image.fromarray(ramp),
        "grey16": Image.fromarray(ramp.astype(np.uint16) * 257),
        "palette": Image.fromarray(ramp).convert("P"),
        "opaque": Image.fromarray(np.stack([ramp, ramp, ramp, np.full_like(ramp, 255)], 2)),
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / f"{name}.png")
        pixels = read_image(tmp_path / f"{name}.png")
        assert np.array_equal(pixels, np.stack([ramp] * 3, 2)), name
        assert pixels.flags.writeable, f"{name}: PyTorch warns of arrays that are not"
    Image.fromarray(np.stack([ramp, ramp, ramp, alpha], 2)).save(tmp_path / "half.png")
    assert np.abs(read_image(tmp_path / "half.png")[..., 0] - ramp * (128 / 255)).max() <= 0.5


def test_pictures_are_in_natural_order_and_hidden_ones_are_none(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10, 11, 100):
        Image.fromarray(corners(0, (16, 16))).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "._frame_1.png").write_bytes(b"\0")
    names = [path.name for path in list_images(tmp_path)]
    assert names == [f"frame_{number}.png" for number in (1, 2, 9, 10, 11, 100)]
    wide = "\uff13"  # a digit that is not ASCII's
    assert sorted([f"{wide}1.png", "a1.png", "1.png"], key=natural_order) == ["1.png", "a1.png", f"{wide}1.png"]


def test_a_folder_of_pictures_is_listed_once_however_long_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        Image.fromarray(corners(0, (16, 16))).save(tmp_path / f"{number}.png")
    info, listed = probe(tmp_path), []

    def counted(folder: Path) -> list[Path]:
        listed.append(folder)
        return list_images(folder)

    monkeypatch.setattr(video, "list_images", counted)
    assert len(list(iterate_frames(tmp_path, info))) == 12
    assert listed == [tmp_path]
    Image.fromarray(corners(0, (16, 32))).save(tmp_path / "7.png")
    with pytest.raises(VideoError, match="changes its size from 16 x 16 to 32 x 16 at frame 7"):
        list(iterate_frames(tmp_path, info))


def test_a_picture_beyond_the_limit_of_pillow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(corners(0, (16, 16))).save(tmp_path / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(VideoError, match=r"0\.png cannot be decoded \(Image size \(256 pixels\)"):
        probe(tmp_path)


def test_a_picture_that_is_cut_short_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    for suffix in (".jpg", ".png"):
        file = tmp_path / suffix[1:] / f"1{suffix}"
        file.parent.mkdir()
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(VideoError, match=rf"1\{suffix} cannot be decoded"):
            probe(file.parent)


def test_names_of_pictures_are_no_patterns(tmp_path: Path) -> None:
    Image.fromarray(corners(0, (16, 16))).save(tmp_path / "a%03d:1.png")
    assert probe(tmp_path).frames == 1
