"""The protocols of InfoTok's files at 240p: pixels, the four numbers, frames of several sizes."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genvid.cli import main
from genvid.data import FolderConfig, write_video
from genvid.data.video import read_clip
from genvid.eval.metrics.fidelity import ClipUniformSSIM
from genvid.eval.pixels import as_scored, as_seen
from genvid.eval.protocols import protocol
from genvid.eval.reconstruction import PieceEncoder, Reconstruction, SizedReconstruction
from genvid.eval.report import Report
from genvid.eval.selection import protocol_clips
from genvid.tokenizer.adaptok.config import AdapTokConfig, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens import BlockTokens, TokenizerSpec

RECORD = protocol("davis-infotok-240p").adapted(features="")
SIZES = {"bear": (240, 320), "camel": (320, 240), "dog": (240, 426)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of DAVIS's names at 240p."""
    folder, draw = tmp_path_factory.mktemp("davis"), torch.Generator().manual_seed(0)
    for number, (name, size) in enumerate(SIZES.items()):
        coarse = torch.rand(1, 3, 9 + number, 8, 8, generator=draw)
        video = torch.nn.functional.interpolate(coarse, (9 + number, *size), mode="trilinear")[0]
        write_video(folder / f"{name}.mp4", (255 * video).byte(), 24)
    return folder


def test_clips_are_the_frames_of_the_files(files: Path) -> None:
    clips = protocol_clips(RECORD, FolderConfig(str(files)), features=None)
    assert clips.real.names() == ["bear.mp4#0", "camel.mp4#0", "dog.mp4#0"]
    for number, (name, size) in enumerate(SIZES.items()):
        video = clips.dataset[clips.real.items[number]]["video"][None]
        frames = read_clip(files / f"{name}.mp4", 0, 9 + number)
        assert frames.shape[1:3] == size
        scored = (as_scored(video, RECORD)[0].double() + 1) * 127.5
        assert np.abs(scored.permute(1, 2, 3, 0).numpy() - frames).max() < 1e-4


def test_other_videos_do_not_bear_the_name(files: Path, tmp_path: Path) -> None:
    for name in ("davis", "tokenbench"):
        (tmp_path / f"{name}.mp4").write_bytes((files / "bear.mp4").read_bytes())
        record = protocol(f"{name}-infotok-240p").adapted(features="")
        with pytest.raises(ValueError, match="names others instead of"):
            protocol_clips(record, FolderConfig(str(tmp_path)), features=None)
    write_video(tmp_path / "cows.mp4", torch.zeros(3, 9, 96, 128, dtype=torch.uint8), 24)
    with pytest.raises(ValueError, match=r"cannot be used: .*cows.mp4 has frames of 96x128, not 240p"):
        protocol_clips(record, FolderConfig(str(tmp_path)), features=None)
    (tmp_path / "cows.mp4").unlink()
    (tmp_path / "tokenbench.mp4").rename(tmp_path / "bdd_e5cd93c4-41251973.mp4")
    (tmp_path / "davis.mp4").rename(tmp_path / "panda70m_test_0000004_00000.mp4")
    assert len(protocol_clips(record, FolderConfig(str(tmp_path)), features=None).real) == 2


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (240, 427), (240, 240)])
def test_the_feature_network_reads_what_tokenbench_gives_it(size: tuple[int, int]) -> None:
    """`preprocess_single` of token_bench/fvd.py."""
    video = torch.rand(1, 3, 2, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scale = 224 / min(size)
    target = tuple(224 if side == min(size) else math.ceil(side * scale) for side in size)
    wanted = torch.nn.functional.interpolate((video[0].transpose(0, 1) + 1) / 2, target, mode="bilinear")
    top, left = ((side - 224) // 2 for side in target)
    wanted = (wanted[..., top : top + 224, left : left + 224] - 0.5) * 2
    torch.testing.assert_close(as_seen(video, RECORD)[0].transpose(0, 1), wanted, atol=1e-5, rtol=0)


def test_the_feature_network_reads_300_frames() -> None:
    video = torch.arange(302.0).view(1, 1, -1, 1, 1).expand(1, 3, 302, 4, 4)
    assert as_seen(video, RECORD.adapted(feature_resolution=None)).equal(video[:, :, :300])


def test_ssim_is_that_of_scikit_image() -> None:
    """Window by window, with numpy's own sample (co)variances."""
    draw = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 2, 9, 12, generator=draw), torch.rand(2, 3, 2, 9, 12, generator=draw)
    b = 0.7 * a + 0.3 * b
    for clip in range(2):
        values = []
        for channel, frame, top, left in np.ndindex(3, 2, 3, 6):
            x, y = (v[clip, channel, frame, top : top + 7, left : left + 7].double().numpy().ravel() for v in (a, b))
            (var_x, cov), (_, var_y) = np.cov(x, y)
            light = (2 * x.mean() * y.mean() + 1e-4) / (x.mean() ** 2 + y.mean() ** 2 + 1e-4)
            values.append(light * (2 * cov + 9e-4) / (var_x + var_y + 9e-4))
        found = ClipUniformSSIM().score(2 * a - 1, 2 * b - 1)[clip]
        assert float(found) == pytest.approx(np.mean(values), rel=1e-5)


class Inverted:
    """A tokenizer of one token a frame, whose output is the negative of its input."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.spec = TokenizerSpec(1, size, size[0] * size[1] // 256, 1, codebook_size=2)

    def encode(self, video: Tensor) -> BlockTokens:
        self.spec.check_video(video)
        self.video = video
        return BlockTokens(torch.ones(1, video.shape[2], self.spec.block_capacity, dtype=torch.bool))

    def decode(self, tokens: BlockTokens) -> Tensor:
        return -self.video


def test_videos_are_padded_with_black_and_cut_again() -> None:
    made: dict[tuple[int, int], Inverted] = {}

    def at(size: tuple[int, int]) -> Reconstruction:
        made[size] = Inverted(size)
        return Reconstruction(PieceEncoder(made[size]), None, {})

    model = SizedReconstruction(at, (240, 240))
    for height, width, columns in ((240, 427, 432), (240, 240, 240), (426, 240, 240)):
        video = torch.rand(1, 3, 2, height, width) * 2 - 1
        output = model({"video": video}, torch.zeros(1))
        assert output.video.equal(-video)
        assert output.spec is not None
        assert output.spec.resolution == (432 if height == 426 else 240, columns)
    before, after = (made[240, 432].video[..., part] for part in (slice(2), slice(-3, None)))
    assert before.eq(-1).all()
    assert after.eq(-1).all()


class Colours(nn.Module):
    """Mean colours of frames as the protocol gives them."""

    num_features = 3

    def forward(self, video: Tensor) -> Tensor:
        assert video.shape[3:] == (224, 224)
        return video.mean((2, 3, 4))


def test_the_command_measures_videos_of_several_sizes(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    torch.manual_seed(0)
    stack, geometry = StackConfig(12, 1, 2), RotaryGeometry(1, sides=(16, 432), aspect=(2, 1))
    config = AdapTokConfig(
        8, (16, 16), (4, 8, 8), 2, stack, stack, VQConfig(codebook_size=16, code_dim=4), True, geometry
    )
    AdapTok(config).save(tmp_path / "tokenizer")
    fixed = ["--data", str(files), "--workers", "0", "--output", str(tmp_path / "out")]
    command = ["evaluate", "davis-infotok-240p", *fixed, "--tokenizer", str(tmp_path / "tokenizer")]
    main([*command, "--features", f"{__name__}:Colours", "--partial"])
    report = Report.load(tmp_path / "out" / "report.json")
    assert [number.name for number in report.numbers[:2]] == ["PSNR", "SSIM (uniform window)"]
    assert {number.protocol.name for number in report.numbers[:-1]} == {"davis-infotok-240p"}
    assert {number.count for number in report.numbers} == {3}
    assert report.numbers[-1].name.startswith(f"Frechet distance ({__name__}:Colours")
    assert "features" in report.numbers[-1].protocol.name
    with (tmp_path / "out" / "clips.csv").open(newline="") as stream:
        tokens = [float(row["tokens per clip"]) for row in csv.DictReader(stream)]
    blocks, base = 3, 2 / (2 * 2)  # of 9 to 11 frames; tokens of a patch
    assert tokens == [blocks * base * rows * columns for rows, columns in ((30, 40), (40, 30), (30, 54))]
