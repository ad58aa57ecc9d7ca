"""The commands and `genvid.load` on a tokenizer with rotary geometry: a video is one stream."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

import genvid
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.checkpoint import load_model
from genvid.cli import main, sampling
from genvid.data.arrays import read_array
from genvid.data.clips import to_float
from genvid.data.video import probe, read_clip, write_video
from genvid.tokenizer import segments
from genvid.tokenizer.adaptok.config import AdapTokConfig, RotaryGeometry
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens import frame_blocks
from genvid.tokens.entropy import UniformCodes
from genvid.tokens.file import read_token_file
from genvid.tokens.rows import BlockLayout

STACK = StackConfig(16, 1, 2)
CONFIG = AdapTokConfig(
    frames=16,
    resolution=(16, 16),
    patch=(4, 8, 8),
    block_capacity=8,
    encoder=STACK,
    decoder=STACK,
    quantizer=VQConfig(codebook_size=64, code_dim=4),
    pooled_queries=True,
    geometry=RotaryGeometry(window=2, sides=(16, 32), aspect=(2, 1)),
)
SIZES = (1, 2, 4, 8)


def saved(config, folder):
    """The folder, with a tokenizer and its scorer inside."""
    torch.manual_seed(0)
    model, scorer = AdapTok(config), Scorer(ScorerConfig.for_tokenizer(config, STACK, sizes=SIZES, metric="x"))
    with torch.no_grad():
        for parameter in [*model.parameters(), *scorer.parameters()]:
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save(folder)
    scorer.save(folder / "scorer")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return saved(CONFIG, tmp_path_factory.mktemp("models") / "rotary")


@pytest.fixture(scope="module")
def make_video(tmp_path_factory):
    def make(frames, height=16, width=16, fps=24):
        path = tmp_path_factory.mktemp("videos") / f"{frames}.mp4"
        generator = torch.Generator().manual_seed(frames)
        coarse = torch.randint(0, 256, (3, frames, height // 4, width // 4), generator=generator, dtype=torch.uint8)
        write_video(path, coarse.repeat_interleave(4, 2).repeat_interleave(4, 3), fps)
        return path

    return make


def run(*arguments):
    main([str(argument) for argument in arguments])


def pixels(file):
    return read_clip(file, 0, probe(file).frames)


def tensor(file):
    """(1, 3, T, H, W), the last frame repeated to fill its block."""
    video = to_float(torch.from_numpy(pixels(file)).permute(3, 0, 1, 2))[None]
    return torch.cat([video, video[:, :, -1:].expand(-1, -1, -video.shape[2] % 4, -1, -1)], 2)


def coded(file, model):
    """Codes and lengths of all blocks of a token file."""
    with read_token_file(file) as opened:
        parts = [tokens for _, tokens in opened.tokens(UniformCodes(model.spec))]
    return torch.cat([part.codes for part in parts], 1), torch.cat([part.lengths for part in parts], 1), len(parts)


def test_a_video_of_300_frames_is_one_call(tokenizer, make_video, tmp_path, capsys):
    """Pushes of `STREAM_BLOCKS` blocks leave no seam: tokens and frames are those of the whole video at once."""
    video, model = make_video(301), load_model(tokenizer, AdapTok)
    run("encode", video, tmp_path / "a.tok", "--tokenizer", tokenizer)
    once = model.encode(tensor(video))
    codes, lengths, parts = coded(tmp_path / "a.tok", model)
    assert parts == 5
    assert codes.equal(once.codes)
    assert lengths.tolist() == [[8] * 76]
    run("decode", tmp_path / "a.tok", tmp_path / "a.mp4", "--tokenizer", tokenizer)
    expected = ((model.decode(once)[0, :, :301].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 3, 0).numpy()
    write_video(tmp_path / "b.mp4", torch.from_numpy(expected.round().astype(np.uint8)).permute(3, 0, 1, 2), 24)
    difference = np.abs(pixels(tmp_path / "a.mp4").astype(int) - pixels(tmp_path / "b.mp4"))
    assert difference.shape == (301, 16, 16, 3)
    assert difference.mean() < 1
    run("reconstruct", video, tmp_path / "both.mp4", "--tokenizer", tokenizer)
    assert "each by itself" not in capsys.readouterr().out
    assert pixels(tmp_path / "both.mp4").shape == (301, 16, 32, 3)


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize(("fps", "least"), [(24, 6), (25, 7), (10, 3)])
def test_no_second_exceeds_its_tokens(tokenizer, make_video, tmp_path, capsys, fps, least, scored):
    folder = tokenizer
    if not scored:
        folder = tmp_path / "alone"
        load_model(tokenizer, AdapTok).save(folder)
    video, rate = make_video(119, fps=fps), 4 * least + 1
    asked = ("encode", video, tmp_path / "a.tok", "--tokenizer", folder, "--tokens-per-second")
    run(*asked, rate)
    lengths = coded(tmp_path / "a.tok", load_model(tokenizer, AdapTok))[1][0]
    by_frame = lengths.double().repeat_interleave(4) / 4
    assert float(by_frame.unfold(0, fps, 1).sum(-1).max()) <= rate
    assert not scored or len(set(lengths.tolist())) > 1
    (tmp_path / "a.tok").unlink()
    with pytest.raises(SystemExit):
        run(*asked, least - 1)
    assert f"{least - 1} tokens" in capsys.readouterr().err
    run(*asked, 1e30)
    assert scored or coded(tmp_path / "a.tok", load_model(tokenizer, AdapTok))[1].eq(8).all()


def test_refined_codes_are_as_many_and_nearer(tokenizer, make_video, tmp_path):
    video, files = make_video(32), [tmp_path / "plain", tmp_path / "refined"]
    for file, steps in zip(files, (0, 5), strict=True):
        limit = ("--tokens-per-second", 30, "--tokenizer", tokenizer)
        run("encode", video, file.with_suffix(".tok"), *limit, "--refine", steps)
        run("decode", file.with_suffix(".tok"), file.with_suffix(".mp4"), "--tokenizer", tokenizer)
    model, errors = load_model(tokenizer, AdapTok), []
    for file in files:
        codes, lengths, _ = coded(file.with_suffix(".tok"), model)
        tokens = replace(model.encode(tensor(video)), codes=codes).tail_drop(lengths)
        errors.append(float((model.decode(tokens).clamp(-1, 1) - tensor(video)).square().mean()))
        assert int(lengths.unfold(1, 6, 1).sum(-1).max()) <= 30
    assert errors[1] < errors[0]
    with read_token_file(files[1].with_suffix(".tok")) as opened:
        assert opened.header.made_from["refine"] == 5


def test_products_in_bf16_give_nearly_the_same_file_and_frames(tokenizer, make_video, tmp_path):
    video, frames = make_video(32), {}
    for precision in ("fp32", "bf16"):
        file = tmp_path / f"{precision}.tok"
        run("encode", video, file, "--tokenizer", tokenizer, "--precision", precision)
        with read_token_file(file) as opened:
            assert opened.header.made_from.get("precision") == (None if precision == "fp32" else "bf16")
        run("decode", tmp_path / "fp32.tok", tmp_path / "a.mp4", "--tokenizer", tokenizer, "--precision", precision)
        frames[precision] = pixels(tmp_path / "a.mp4").astype(int)
        (tmp_path / "a.mp4").unlink()
    plain, half = (coded(tmp_path / f"{name}.tok", load_model(tokenizer, AdapTok))[0] for name in frames)
    assert float((plain == half).double().mean()) > 0.5
    assert 0 < np.abs(frames["fp32"] - frames["bf16"]).mean() < 8  # of noise with all of the contrast


def test_encoding_goes_on_after_an_interruption(tokenizer, make_video, tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "STREAM_BLOCKS", 4)
    video, asked = make_video(50), ("--tokenizer", tokenizer, "--tokens-per-second", 25)
    run("encode", video, tmp_path / "whole.tok", *asked)
    original, calls = AdapTok.encode_next, []

    def interrupted(self, *arguments):
        calls.append(None)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(AdapTok, "encode_next", interrupted)
        with pytest.raises(SystemExit, match="130"):
            run("encode", video, tmp_path / "a.tok", *asked)
    assert (tmp_path / "a.tok.unfinished").is_file()
    run("encode", video, tmp_path / "a.tok", *asked)
    assert (tmp_path / "a.tok").read_bytes() == (tmp_path / "whole.tok").read_bytes()


@pytest.mark.parametrize(
    ("frames", "size", "kept"),
    [(9, (24, 32), (24, 32)), (1, (32, 16), (32, 16)), (6, (16, 16), (16, 16)), (5, (40, 60), (16, 16))],
)
def test_sizes_within_the_bounds_are_taken_as_they_are(tokenizer, make_video, tmp_path, frames, size, kept):
    video, named = make_video(frames, *size), ("--tokenizer", tokenizer)
    run("encode", video, tmp_path / "a.tok", *named, "--tokens-per-second", 48)
    run("decode", tmp_path / "a.tok", tmp_path / "a.mp4", *named)
    assert pixels(tmp_path / "a.mp4").shape == (frames, *kept, 3)
    model = load_model(tokenizer, AdapTok).at(kept)
    codes, lengths, _ = coded(tmp_path / "a.tok", model)
    if size == kept:
        keep = torch.arange(codes.shape[2]) < lengths[..., None]
        assert codes[keep].equal(model.encode(tensor(video)).codes[keep])
    run("reconstruct", video, tmp_path / "b.mp4", *named, "--scorer", tokenizer / "scorer", "--tokens", 16)
    assert pixels(tmp_path / "b.mp4").shape == (frames, kept[0], 2 * kept[1], 3)


def test_a_reconstruction_keeps_its_budget_in_any_stretch(tokenizer, make_video, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(frame_blocks, "LONGEST_CLIP", 3)
    budget = ("--scorer", tokenizer / "scorer", "--tokens", 12)
    run("reconstruct", make_video(80), tmp_path / "both.mp4", "--tokenizer", tokenizer, *budget)
    said = capsys.readouterr().out
    lengths = [int(n) for line in said.splitlines() if "blocks of" in line for n in line.split("[")[1][:-1].split(",")]
    assert len(lengths) == 20
    assert max(sum(lengths[start : start + 4]) for start in range(17)) <= 12


def test_memory_does_not_grow_with_the_length_of_a_video(tokenizer, make_video, tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "STREAM_BLOCKS", 3)
    original, alive, most = AdapTok.encode_next, [], []

    def counted(self, *arguments):
        result = original(self, *arguments)
        alive[:] = [reference for reference in alive if reference() is not None] + [weakref.ref(result.features)]
        most.append(len(alive))
        return result

    monkeypatch.setattr(AdapTok, "encode_next", counted)
    run("encode", make_video(120), tmp_path / "a.tok", "--tokenizer", tokenizer, "--tokens-per-second", 24)
    assert len(most) == 30
    assert max(most) <= 4


def test_arrays_of_any_length_and_size(tokenizer, monkeypatch):
    loaded, model = genvid.load(tokenizer, device="cpu"), load_model(tokenizer, AdapTok)
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    tokens = loaded.encode(image, tokens=48)
    assert tokens.lengths.shape == (1, 1)
    assert loaded.decode(tokens).shape == image.shape
    video = generator.integers(0, 256, (2, 45, 16, 24, 3), dtype=np.uint8)
    whole = loaded.encode(video)
    monkeypatch.setattr(frame_blocks, "LONGEST_CLIP", 3)
    parts = loaded.encode(video)
    assert [len(tokens.clips) for tokens in (whole, parts)] == [1, 4]
    assert torch.cat([clip.codes for clip in parts.clips], 1).equal(whole.clips[0].codes)
    np.testing.assert_array_equal(loaded.decode(parts), loaded.decode(whole))
    filled = read_array(video[:, [*range(45), 44, 44, 44]])[0]
    assert whole.clips[0].codes.equal(model.at((16, 24)).encode(filled).codes)
    budget = loaded.encode(video, tokens=12).lengths
    assert int(budget.unfold(1, 4, 1).sum(-1).max()) <= 12
    with pytest.raises(ValueError, match="16 to 32 pixels a side up to 2:1, in multiples of 8x8, got 40x16: resize"):
        loaded.encode(np.zeros((4, 40, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="whole numbers, got nan"):
        loaded.encode(video, tokens=float("nan"))


@pytest.mark.parametrize(("frames", "sinks"), [(26, 0), (24, 1)])
def test_a_video_goes_on_without_being_encoded_again(tokenizer, make_video, tmp_path, monkeypatch, frames, sinks):
    layout = BlockLayout(codebook_size=64, num_classes=0, num_blocks=4, block_capacity=8, sizes=SIZES)
    sizes = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=80)
    torch.manual_seed(0)
    BlockTransformer(ARConfig(layout, sizes, context_blocks=2, sink_blocks=sinks)).save(tmp_path / "ar")
    monkeypatch.setattr(sampling, "LONGEST_CLIP", 5)  # of 6 blocks
    original, calls = AdapTok.encode_next, []

    def counted(self, *arguments):
        calls.append(None)
        return original(self, *arguments)

    monkeypatch.setattr(AdapTok, "encode_next", counted)
    asked = ("sample", "--model", tmp_path / "ar", "--tokenizer", tokenizer, "--prompt", make_video(frames))
    budget = ("--scorer", tokenizer / "scorer", "--tokens", 8)
    run(*asked, *budget, "--frames", 65, "--count", 2, "--format", "npz", "--output", tmp_path / "out")
    assert len(calls) == 6
    with np.load(tmp_path / "out" / "00001.npz") as made:
        assert made["frames"].shape == (frames + 65, 16, 16, 3)
