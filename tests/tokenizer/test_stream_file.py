"""A stream of AdapTok through a token file: no seams between segments, a hard budget of any run of blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_stream import CONFIG, STACK, disturbed, random_video

from genvid.allocation.config import UniformConfig
from genvid.ar.config import TransformerConfig
from genvid.ar.rows import RowConfig
from genvid.checkpoint import load_model
from genvid.cli import main
from genvid.data import SyntheticConfig
from genvid.data.clips import ClipConfig, read_clips, to_float, to_uint8
from genvid.data.dataset import VideoData
from genvid.data.video import probe, write_video
from genvid.recipes.cache_tokens import CacheRun, cache_tokens
from genvid.recipes.runs import ARRun
from genvid.tokenizer import segments
from genvid.tokenizer.adaptok.loading import AllocatedTokenizer
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.stream import StreamEncoder
from genvid.tokens import BlockTokens
from genvid.tokens.cache import TokenCache
from genvid.tokens.entropy import UniformCodes
from genvid.tokens.file import read_token_file
from genvid.train.config import TrainConfig


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    disturbed(AdapTok(CONFIG)).save(folder / "tokenizer")
    config = ScorerConfig.for_tokenizer(CONFIG, STACK, sizes=(1, 2, 4, 8), metric="mse", gains=True)
    disturbed(Scorer(config)).save(folder / "tokenizer" / "scorer")
    write_video(folder / "video.mp4", to_uint8(random_video(38, videos=1, size=(16, 16))[0]), 12)
    return folder


def run(*words: object) -> None:
    main([str(word) for word in words])


def tokens_of(file: Path, model: AdapTok) -> tuple[BlockTokens, list[int]]:
    with read_token_file(file) as opened:
        parts = list(opened.tokens(UniformCodes(model.spec)))
    return BlockTokens.join_blocks([tokens for _, tokens in parts]), [segment.frames for segment, _ in parts]


def test_segments_have_no_seams(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "STREAM_BLOCKS", 3)
    model, video = load_model(models / "tokenizer", AdapTok), models / "video.mp4"
    run("encode", video, tmp_path / "a.tok", "--tokenizer", models / "tokenizer")
    tokens, frames = tokens_of(tmp_path / "a.tok", model)
    assert frames == [12, 12, 12, 2]
    (clip,) = read_clips(video, probe(video), model.spec)
    whole = model.encode(clip[None])
    assert torch.equal(tokens.codes, whole.codes)
    run("decode", tmp_path / "a.tok", tmp_path / "a.mp4", "--tokenizer", models / "tokenizer")
    write_video(tmp_path / "b.mp4", to_uint8(model.decode(whole)[0])[:, :38], 12)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_any_second_keeps_its_budget_and_resuming_changes_nothing(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "STREAM_BLOCKS", 3)
    asked = ("encode", models / "video.mp4", tmp_path / "a.tok", "--tokenizer", models / "tokenizer")
    run(*asked, "--tokens-per-second", 10)
    lengths = tokens_of(tmp_path / "a.tok", load_model(models / "tokenizer", AdapTok))[0].lengths[0]
    assert int(lengths.unfold(0, 3, 1).sum(1).max()) <= 10  # of three blocks, which last a second
    assert int(lengths.sum()) > 20
    whole = (tmp_path / "a.tok").read_bytes()
    (tmp_path / "a.tok").unlink()
    (tmp_path / "a.tok.unfinished").write_bytes(whole[:-30])
    run(*asked, "--tokens-per-second", 10)
    assert (tmp_path / "a.tok").read_bytes() == whole
    for few in (2, 0.5):
        with pytest.raises(SystemExit):
            run(*asked[:2], tmp_path / "b.tok", *asked[3:], "--tokens-per-second", few)


def test_without_a_scorer_each_block_has_its_share(models: Path, tmp_path: Path) -> None:
    model = load_model(models / "tokenizer", AdapTok)
    model.save(tmp_path / "alone")
    asked = ("encode", models / "video.mp4", tmp_path / "a.tok", "--tokenizer", tmp_path / "alone")
    run(*asked, "--tokens-per-second", 11)
    assert tokens_of(tmp_path / "a.tok", model)[0].lengths.unique().tolist() == [3]
    with pytest.raises(SystemExit):
        run(*asked[:2], tmp_path / "b.tok", *asked[3:], "--tokens-per-second", 2.9)


def test_rows_are_windows_of_cached_streams(models: Path, tmp_path: Path) -> None:
    model = load_model(models / "tokenizer", AdapTok)
    data = VideoData(SyntheticConfig(clips=3), ClipConfig(frames=40, resolution=(16, 16)))
    tokens = AllocatedTokenizer(str(models / "tokenizer"), UniformConfig(tokens_per_video=40))
    cache_tokens(CacheRun(output_dir=str(tmp_path / "cache"), data=data, tokens=tokens, batch_size=2, workers=0))
    cached = TokenCache.open(tmp_path / "cache")
    video = to_float(data.open()[1]["video"])[None]
    stream = StreamEncoder(model)(video).tail_drop(torch.full((1, 10), 4))
    assert torch.equal(cached[1, 0]["codes"][:, :4].long(), stream.codes[0, :, :4])
    sizes = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=80)
    run = ARRun(
        task="ar",
        output_dir=str(tmp_path / "ar"),
        train=TrainConfig(steps=1, batch_size=2, workers=0),
        cache=str(tmp_path / "cache"),
        model=sizes,
        objective=RowConfig(token_multiple=1),
        context_blocks=2,
        num_blocks=4,
    )
    task, rows = run.build()
    (packed,) = rows.__getitems__([(1, 5)])
    assert task.model.layout.num_blocks == 4
    assert (packed["targets"] >= 0).sum() == 2 * 5  # two blocks of a length and four codes
