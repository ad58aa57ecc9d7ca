"""The commands and arrays on a tokenizer with a single first frame."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_cli_streams import CONFIG, SIZES, coded, make_video, pixels, run, saved

import genvid
from genvid.allocation.config import UniformConfig
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.checkpoint import load_model
from genvid.cli import sampling
from genvid.data import SyntheticConfig
from genvid.data.clips import ClipConfig, to_float
from genvid.data.dataset import VideoData
from genvid.data.images import png
from genvid.recipes.cache_tokens import CacheRun, cache_tokens
from genvid.recipes.runs import ARRun
from genvid.recipes.train import train
from genvid.tokenizer import segments
from genvid.tokenizer.adaptok.loading import AllocatedTokenizer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.stream import StreamDecoder
from genvid.tokens import BlockTokens, frame_blocks
from genvid.tokens.cache import TokenCache
from genvid.tokens.entropy import UniformCodes
from genvid.tokens.file import read_token_file
from genvid.tokens.rows import BlockLayout
from genvid.train.config import TrainConfig

__all__ = ["make_video"]
SINGLE = replace(CONFIG, frames=17, geometry=replace(CONFIG.geometry, single_first_frame=True))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return saved(SINGLE, tmp_path_factory.mktemp("models") / "single")


def tensor(file):
    """(1, 3, T, H, W), the last frame repeated to fill its block."""
    video = to_float(torch.from_numpy(pixels(file)).permute(3, 0, 1, 2))[None]
    return torch.cat([video, video[:, :, -1:].expand(-1, -1, (1 - video.shape[2]) % 4, -1, -1)], 2)


@pytest.mark.parametrize("frames", [1, 2, 21, 50])
def test_a_file_holds_every_frame_of_a_video(tokenizer, make_video, tmp_path, monkeypatch, frames):
    monkeypatch.setattr(segments, "STREAM_BLOCKS", 4)
    video, model, named = make_video(frames), load_model(tokenizer, AdapTok), ("--tokenizer", tokenizer)
    run("encode", video, tmp_path / "a.tok", *named)
    codes, lengths, _ = coded(tmp_path / "a.tok", model)
    once, blocks = model.encode(tensor(video)), -(-(frames - 1) // 4) + 1
    assert codes.equal(once.codes)
    assert lengths.tolist() == [[8] * blocks]
    with read_token_file(tmp_path / "a.tok") as file:
        decoder = StreamDecoder(model)
        for segment, tokens in file.tokens(UniformCodes(model.spec)):
            missing = decoder(tokens).shape[2] - segment.frames
            assert missing == 0 or segment.start + segment.frames == frames
        assert file.count().frames == frames
    run("decode", tmp_path / "a.tok", tmp_path / "a.mp4", *named)
    assert pixels(tmp_path / "a.mp4").shape == (frames, 16, 16, 3)
    budget = ("--scorer", tokenizer / "scorer", "--tokens", 20)
    monkeypatch.setattr(frame_blocks, "LONGEST_CLIP", 3)
    run("reconstruct", video, tmp_path / "both.mp4", *named, *budget)
    assert pixels(tmp_path / "both.mp4").shape == (frames, 16, 32, 3)


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize(("fps", "blocks"), [(24, 7), (25, 7), (30, 9), (3, 2)])
def test_no_second_exceeds_its_tokens(tokenizer, make_video, tmp_path, capsys, fps, blocks, scored):
    folder, model = tokenizer, load_model(tokenizer, AdapTok)
    if not scored:
        model.save(folder := tmp_path / "alone")
    video, rate = make_video(119, fps=fps), 3 * blocks + 1
    run("encode", video, tmp_path / "a.tok", "--tokenizer", folder, "--tokens-per-second", rate)
    lengths = coded(tmp_path / "a.tok", model)[1][0].double()
    each = torch.tensor(model.spec.block_frames(len(lengths)))
    seconds = (lengths / each).repeat_interleave(each).unfold(0, fps, 1).sum(-1)
    assert float(seconds.max()) <= rate + 1e-9
    if scored:
        assert len(lengths.unique()) > 1
        (tmp_path / "a.tok").unlink()
        with pytest.raises(SystemExit):
            run("encode", video, tmp_path / "a.tok", "--tokenizer", folder, "--tokens-per-second", blocks - 1)
        assert f"allow {blocks} or more" in capsys.readouterr().err


def test_an_image_is_a_video_of_one_frame(tokenizer, monkeypatch):
    loaded, model = genvid.load(tokenizer, device="cpu"), load_model(tokenizer, AdapTok)
    generator = np.random.default_rng(0)
    video = generator.integers(0, 256, (45, 16, 16, 3), dtype=np.uint8)
    image, whole = loaded.encode(video[0]), loaded.encode(video)
    assert image.clips[0].codes.equal(whole.clips[0].codes[:, :1])
    assert loaded.decode(image).shape == (16, 16, 3)
    np.testing.assert_array_equal(loaded.decode(image), loaded.decode(whole)[0])
    monkeypatch.setattr(frame_blocks, "LONGEST_CLIP", 3)
    parts = loaded.encode(video)
    assert [clip.keep.shape[1] for clip in parts.clips] == [3, 3, 3, 3]
    np.testing.assert_array_equal(loaded.decode(parts), loaded.decode(whole))
    budget = loaded.encode(video, tokens=15).lengths
    each = torch.tensor(model.spec.block_frames(12))
    assert float((budget[0] / each).repeat_interleave(each).unfold(0, 17, 1).sum(-1).max()) <= 15 + 1e-4


@pytest.mark.parametrize("frames", [23, 9])
def test_frames_follow_a_prompt(tokenizer, make_video, tmp_path, monkeypatch, frames):
    layout = BlockLayout(codebook_size=64, num_classes=0, num_blocks=4, block_capacity=8, sizes=SIZES)
    sizes = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=80)
    torch.manual_seed(0)
    BlockTransformer(ARConfig(layout, sizes, context_blocks=2, sink_blocks=1)).save(tmp_path / "ar")
    monkeypatch.setattr(sampling, "LONGEST_CLIP", 5)
    original, pushed = AdapTok.encode_next, list[int]()

    def counted(self, video, *arguments):
        pushed.append(video.shape[2])
        return original(self, video, *arguments)

    monkeypatch.setattr(AdapTok, "encode_next", counted)
    asked = ("sample", "--model", tmp_path / "ar", "--tokenizer", tokenizer, "--prompt", make_video(frames))
    run(*asked, "--frames", 9, "--format", "npz", "--output", tmp_path / "on")
    with np.load(tmp_path / "on" / "00000.npz") as made:
        assert made["frames"].shape == (frames + 9, 16, 16, 3)
    assert pushed == [1] + [4] * ((frames - 1) // 4)
    run(*asked, "--format", "npz", "--output", tmp_path / "one")
    with np.load(tmp_path / "one" / "00000.npz") as made:
        assert made["frames"].shape == (13, 16, 16, 3)
    png = ("--stream", "--format", "png")
    run(*asked, *png, "--output", tmp_path / "live")
    assert len([*(tmp_path / "live" / "00000").iterdir()]) == 13


def test_a_picture_is_coded_cached_and_animated(tokenizer, tmp_path):
    model, picture = load_model(tokenizer, AdapTok), tmp_path / "picture.png"
    frame = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture.write_bytes(png(frame))
    run("encode", picture, tmp_path / "a.tok", "--tokenizer", tokenizer)
    codes, _, _ = coded(tmp_path / "a.tok", model)
    assert codes.equal(model.encode(to_float(frame)[None, :, None]).codes)
    rule = ClipConfig(frames=17, resolution=(16, 16))
    tokens = AllocatedTokenizer(str(tokenizer), UniformConfig(tokens_per_video=40))
    data = VideoData(SyntheticConfig(clips=3), rule)
    cache_tokens(CacheRun(output_dir=str(tmp_path / "cache"), data=data, tokens=tokens, batch_size=2, workers=0))
    assert TokenCache.open(tmp_path / "cache").info.num_blocks == 5
    sizes = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=80)
    training = TrainConfig(steps=1, batch_size=2, workers=0)
    run_ = ARRun(
        task="ar",
        output_dir=str(tmp_path / "ar"),
        cache=str(tmp_path / "cache"),
        model=sizes,
        context_blocks=1,
        train=training,
    )
    asked = ("sample", "--model", train(run_), "--tokenizer", tokenizer, "--prompt", picture, "--format", "npz")
    run(*asked, "--output", tmp_path / "animated")
    with np.load(tmp_path / "animated" / "00000.npz") as made:
        assert made["frames"].shape == (17, 16, 16, 3)


def test_the_page_cuts_a_video_into_clips_of_such_blocks(tokenizer, make_video):
    from genvid.studio.video import CodedVideo

    video = CodedVideo(genvid.load(tokenizer, device="cpu"), make_video(30, fps=10))
    assert [clip.shape[1] for clip in video.clips] == [13, 13, 5]
    assert [block.shape[1] for block in video.original()] == [1, 4, 4, 4, 1, 4, 4, 4, 1, 3]
    least, most = video.rates
    assert sum(clip.num_frames for clip in video.at(least)) >= 30
    assert all(isinstance(clip, BlockTokens) for clip in video._tokens.values())
    assert most >= 8 * 10 / 4
