"""The `genvid` command as a user runs it, on tiny models made here and on the published folders where they are."""

import argparse
import json
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from genvid.allocation import budget as budgets
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.draft import DraftConfig, DraftHeads
from genvid.ar.model import BlockTransformer
from genvid.ar.published import PublishedConfig, PublishedTransformer
from genvid.ar.row_model import RowModel
from genvid.checkpoint import SHIPPED, load_model
from genvid.cli import main, sampling
from genvid.cli.coding import EncodeOptions, encode
from genvid.cli.evaluation_options import EvaluateOptions
from genvid.cli.options import add_options, read_options
from genvid.cli.sampling import SampleOptions
from genvid.data.clips import ClipConfig
from genvid.data.images import jpeg
from genvid.data.video import probe, read_clip, write_video
from genvid.device import device
from genvid.generation.engine.scheduler import Engine
from genvid.generation.folder import SampleWriter
from genvid.provenance import Origin
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens.code_counts import CodeCounts
from genvid.tokens.entropy import UniformCodes
from genvid.tokens.file import read_token_file
from genvid.tokens.rows import BlockLayout

pytestmark = pytest.mark.gpu
PARITY = Path(__file__).resolve().parents[1].parent / "shared" / "parity"
NETWORK = StackConfig(16, 1, 2)
SIZES = (2, 4, 8)
AR = TransformerConfig(width=16, depth=1, heads=2, kv_heads=2, hidden=24, max_positions=80)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tokenizer of 3 blocks of 2 frames and 8 tokens, its scorer, and models of its rows, with random weights."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = AdapTokConfig(6, (16, 16), (2, 8, 8), 8, NETWORK, NETWORK, VQConfig(codebook_size=20, code_dim=4))
    tokenizer, other = AdapTok(config), AdapTok(config)
    torch.nn.init.normal_(tokenizer.output.weight, std=0.1)
    tokenizer.save(folder / "tokenizer")
    other.save(folder / "other")
    Scorer(ScorerConfig.for_tokenizer(config, NETWORK, sizes=SIZES, metric="x")).save(folder / "scorer")
    layout = BlockLayout(codebook_size=20, num_classes=3, num_blocks=3, block_capacity=8, sizes=SIZES)
    published = BlockLayout(codebook_size=20, num_classes=0, num_blocks=2, block_capacity=8, framing="end")
    learned = TransformerConfig(**{**vars(AR), "rope_theta": None})
    run = folder / "run"
    BlockTransformer(ARConfig(layout, AR)).save(run / "export")
    (run / "config.yaml").write_text("task: ar\ntrain: {steps: 40, batch_size: 8}\n")
    (run / "metrics.jsonl").write_text('{"step": 20, "loss": 1.25, "clips_per_second": 64.0}\n')
    (run / "checkpoints" / "step_00000020").mkdir(parents=True)
    BlockTransformer(ARConfig(layout, AR, context_blocks=1)).save(folder / "continues")
    continued = PublishedConfig(published, learned, context_blocks=2, first_block=1)
    PublishedTransformer(continued).save(folder / "published")
    return folder


@pytest.fixture
def video(tmp_path):
    """15 frames of 20 x 24: two whole clips and one of one block and a half."""
    generator = torch.Generator().manual_seed(1)
    still = torch.randint(0, 256, (3, 1, 5, 6), generator=generator, dtype=torch.uint8)
    frames = still.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat(1, 15, 1, 1)
    frames[0] += torch.arange(15, dtype=torch.uint8)[:, None, None]
    write_video(tmp_path / "video.mp4", frames, 12)
    return tmp_path / "video.mp4"


def run(*arguments):
    main([str(argument) for argument in arguments])


def refused(capsys, message, *arguments):
    """Exit status 2 and one sentence, which says `message`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert said.count("\n") == 1
    assert message in said


def pixels(file):
    return read_clip(file, 0, probe(file).frames).astype(int)


def index(folder):
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_options_are_made_from_their_dataclass():
    parser = argparse.ArgumentParser()
    add_options(parser, EvaluateOptions)
    words = ["ucf101-rfvd-first", "--data=d", "--output=o", "--tokenizer=t", "--tokens", "8", "32", "--tokens=64"]
    given = parser.parse_args([*words, "--scorer=s", "--lpips", "vgg", "--partial"])
    assert read_options(EvaluateOptions, given) == EvaluateOptions(
        "ucf101-rfvd-first",
        data=Path("d"),
        output=Path("o"),
        tokenizer="t",
        tokens=(8, 32, 64),
        scorer="s",
        lpips=("vgg",),
        partial=True,
    )
    text = " ".join(parser.format_help().split())
    assert "--workers N Processes that decode videos (default: 2)." in text
    assert "--guidance X" in text


def test_a_verb_is_called_from_python(models, video, tmp_path):
    tokenizer = str(models / "tokenizer")
    scorer = str(models / "scorer")
    run(
        *("encode", video, tmp_path / "a.tok", "--tokenizer", tokenizer),
        *("--scorer", scorer, "--tokens-per-second", 24),
    )
    encode(EncodeOptions(video, tmp_path / "b.tok", tokenizer=tokenizer, scorer=scorer, tokens_per_second=24))
    assert (tmp_path / "a.tok").read_bytes() == (tmp_path / "b.tok").read_bytes()
    with pytest.raises(ValueError, match="--class and --prompt exclude each other"):
        SampleOptions(model="m", tokenizer="t", output=tmp_path, class_="run", prompt=video)
    with pytest.raises(ValueError, match="--budget and --total exclude each other"):
        SampleOptions(model="m", tokenizer="t", output=tmp_path, budget=12, total=48)


def test_info(models, video, tmp_path, capsys):
    run("info", models / "tokenizer")
    count = sum(parameter.numel() for parameter in load_model(models / "tokenizer").parameters())
    assert f"{count:,} ({count / 1e6:.2f} M)" in capsys.readouterr().out
    run("info", models / "run")
    said = capsys.readouterr().out
    assert "20 of 40" in said
    assert "step_00000020" in said
    assert str(models / "run" / "export") in said
    assert "1.25" in said
    run("info", video)
    assert "15 frames at 12 a second, 1.25 s" in capsys.readouterr().out
    for number in range(3):
        (tmp_path / f"frame_{number}.jpg").write_bytes(jpeg(torch.zeros(3, 16, 24, dtype=torch.uint8)))
    run("info", tmp_path)
    assert "3 frames at 24 a second" in capsys.readouterr().out
    refused(capsys, "holds neither a model", "info", models)
    refused(capsys, "no model folder", "info", "./nothing")
    continued = ("sample", "--model", models / "run", "--tokenizer", models / "tokenizer", "--output", tmp_path / "out")
    refused(capsys, f"give that of the run, {models / 'run' / 'export'}", *continued, "--class", 1)
    (tmp_path / "unfinished.json").write_text("{}")
    refused(capsys, "not a finished token cache", "info", tmp_path)


def blocks_of(file, tokenizer):
    """Kept codes of each block of a token file, and the frames of each segment."""
    spec = load_model(tokenizer).spec
    with read_token_file(file) as opened:
        parts = list(opened.tokens(UniformCodes(spec)))
    kept = [codes[keep].tolist() for _, part in parts for codes, keep in zip(part.codes[0], part.keep[0], strict=True)]
    return kept, [segment.frames for segment, _ in parts]


def test_encode_and_decode_a_video_longer_than_a_clip(models, video, tmp_path, capsys):
    file = tmp_path / "new" / "folder" / "a.tok"
    run("encode", video, file, "--tokenizer", models / "tokenizer")
    said = capsys.readouterr().out
    assert "15 frames, 8 blocks, 64 tokens" in said  # 3 + 3 + 2 blocks of 8
    assert "the codes alone take 35 bytes packed, 128 as 16-bit numbers" in said
    run("info", file)
    assert "3 segments, 8 blocks, 64 tokens, 15 frames" in capsys.readouterr().out
    run("decode", file, tmp_path / "a.mp4", "--tokenizer", models / "tokenizer")
    run("reconstruct", video, tmp_path / "both.mp4", "--tokenizer", models / "tokenizer")
    decoded, both = pixels(tmp_path / "a.mp4"), pixels(tmp_path / "both.mp4")
    assert decoded.shape == (15, 16, 16, 3)
    assert both.shape == (15, 16, 32, 3)
    assert probe(tmp_path / "a.mp4").fps == 12
    assert np.abs(decoded - both[:, :, 16:]).mean() < 6  # but for compression, along the seam above all


@pytest.mark.parametrize("scored", [False, True])
def test_a_second_of_video_never_exceeds_its_tokens(models, video, tmp_path, capsys, scored):
    tokenizer = ("--tokenizer", models / "tokenizer", *(("--scorer", models / "scorer") if scored else ()))
    asked = ("encode", video, tmp_path / "a.tok", *tokenizer, "--tokens-per-second")
    run(*asked, 25)
    blocks, frames = blocks_of(tmp_path / "a.tok", models / "tokenizer")
    lengths = [len(block) for block in blocks]
    assert frames == [6, 6, 3]
    assert all(sum(lengths[first:end]) <= 12 for first, end in ((0, 3), (3, 6)))  # half a second
    assert sum(lengths[6:]) <= 8  # a third of a second: the last block is filled
    assert not scored or set(lengths) <= set(SIZES)
    (tmp_path / "a.tok").unlink()
    run(*asked, 1e30)
    assert len(blocks_of(tmp_path / "a.tok", models / "tokenizer")[0]) == len(blocks)
    (tmp_path / "a.tok").unlink()
    refused(capsys, "tokens are too few for a clip of 3 blocks, which", *asked, 5)
    refused(capsys, "--tokens-per-second is above 0", *asked, 0)
    assert not scored or refused(capsys, "--scorer shares out a budget", *asked[:-1]) is None
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_audio_is_copied_through(models, video, tmp_path, capsys):
    sounding = tmp_path / "sounding.mp4"
    with av.open(str(video)) as pictures, av.open(str(sounding), "w") as container:
        copied = container.add_stream_from_template(pictures.streams.video[0])
        audio = container.add_stream("aac", rate=16000, layout="mono")
        for packet in pictures.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                container.mux(packet)
        for number in range(20):
            noise = np.random.default_rng(number).normal(size=(1, 1024)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(noise / 8, format="fltp", layout="mono")
            frame.rate, frame.pts = 16000, 1024 * number
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    tokenizer = ("--tokenizer", models / "tokenizer")
    run("encode", sounding, tmp_path / "a.tok", *tokenizer)
    run("decode", tmp_path / "a.tok", tmp_path / "a.mp4", *tokenizer)
    packets = []
    for file in (sounding, tmp_path / "a.mp4"):
        with av.open(str(file)) as container:
            packets.append([bytes(packet) for packet in container.demux(audio=0) if packet.size])
    assert packets[0] == packets[1]
    assert len(packets[0]) >= 20


def test_codes_are_coded_by_a_model_of_them(models, video, tmp_path, capsys):
    tokenizer = ("--tokenizer", models / "tokenizer")
    for name, by in (("a", ()), ("b", ("--code-model", models / "run" / "export"))):
        run("encode", video, tmp_path / f"{name}.tok", *tokenizer, "--tokens-per-second", 24, *by)
        run("decode", tmp_path / f"{name}.tok", tmp_path / f"{name}.mp4", *tokenizer, *by)
    run("info", tmp_path / "b.tok")
    assert "autoregressive" in capsys.readouterr().out
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    asked, other = ("decode", tmp_path / "b.tok", tmp_path / "c.mp4", *tokenizer), models / "continues"
    refused(capsys, "was coded by an autoregressive model: give it as --code-model", *asked)
    refused(capsys, "was not made from this code model (code model.fingerprint is", *asked, "--code-model", other)
    asked = ("decode", tmp_path / "a.tok", tmp_path / "c.mp4", *tokenizer, "--code-model", models / "run" / "export")
    refused(capsys, "was coded without an autoregressive model: leave out --code-model", *asked)


@pytest.mark.parametrize(("changes", "said"), [({"num_blocks": 2}, "2 blocks"), ({"sizes": (2, 4)}, "4 tokens")])
def test_a_model_of_too_few_codes_is_refused_before_a_video_is_encoded(
    models, video, tmp_path, monkeypatch, capsys, changes, said
):
    layout = load_model(models / "run" / "export").layout
    BlockTransformer(ARConfig(replace(layout, **changes), AR)).save(tmp_path / "short")
    monkeypatch.setattr(AdapTok, "encode", None)
    asked = ("encode", video, tmp_path / "a.tok", "--tokenizer", models / "tokenizer")
    refused(capsys, f"--code-model codes at most {said}", *asked, "--code-model", tmp_path / "short")
    assert not (tmp_path / "a.tok.unfinished").exists()


def test_counts_in_the_folder_of_the_tokenizer_code_its_files(models, video, tmp_path, capsys):
    folder = tmp_path / "tokenizer"
    shutil.copytree(models / "tokenizer", folder)
    run("encode", video, tmp_path / "a.tok", "--tokenizer", folder)
    counts = CodeCounts.zeros(load_model(folder).spec)
    for block in blocks_of(tmp_path / "a.tok", folder)[0]:
        counts.add([np.array(block)])
    counts.save(folder)
    run("encode", video, tmp_path / "b.tok", "--tokenizer", folder)
    run("info", tmp_path / "b.tok")
    assert "static" in capsys.readouterr().out
    for name in "ab":  # the counts do not belong to the fingerprint
        run("decode", tmp_path / f"{name}.tok", tmp_path / f"{name}.mp4", "--tokenizer", folder)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    asked = ("decode", tmp_path / "b.tok", tmp_path / "c.mp4", "--tokenizer", models / "tokenizer")
    refused(capsys, "was not made from this code model (code model.type is static there, uniform here)", *asked)
    (folder / "code_counts.safetensors").write_bytes(b"cut")
    asked = ("encode", video, tmp_path / "d.tok", "--tokenizer", folder)
    refused(capsys, "code_counts.safetensors is damaged (Error while deserializing header", *asked)


def test_a_token_file_is_decoded_by_its_own_tokenizer_only(models, video, tmp_path, capsys):
    run("encode", video, tmp_path / "d.tok", "--tokenizer", models / "tokenizer")
    asked, other = ("decode", tmp_path / "d.tok", tmp_path / "d.mp4", "--tokenizer"), models / "other"
    refused(capsys, "was not made from this tokenizer (tokenizer is", *asked, other)
    refused(capsys, "not a token file", "decode", video, tmp_path / "e.mp4", *asked[3:], other)
    refused(capsys, "must be a .mp4 file", *asked[:2], tmp_path / "d", *asked[3:], other)
    refused(capsys, "must be a .tok file", "encode", video, tmp_path / "d.npz", *asked[3:], other)
    (tmp_path / "old.npz").write_bytes(b"PK\3\4....")
    refused(capsys, "of an earlier version (.npz)", "info", tmp_path / "old.npz")
    run(*asked, models / "tokenizer")
    refused(capsys, "exists already", *asked, models / "tokenizer")


def test_a_cut_file_gives_everything_before_the_cut(models, video, tmp_path, capsys):
    tokenizer = ("--tokenizer", models / "tokenizer")
    run("encode", video, tmp_path / "a.tok", *tokenizer)
    run("decode", tmp_path / "a.tok", tmp_path / "a.mp4", *tokenizer)
    data = (tmp_path / "a.tok").read_bytes()
    (tmp_path / "cut.tok").write_bytes(data[:-1])
    run("info", tmp_path / "cut.tok")
    assert "12 frames of 15: the file was cut" in capsys.readouterr().out
    run("decode", tmp_path / "cut.tok", tmp_path / "cut.mp4", *tokenizer)
    assert "was cut: it holds 12 of 15 frames" in capsys.readouterr().out
    assert np.abs(pixels(tmp_path / "cut.mp4") - pixels(tmp_path / "a.mp4")[:12]).mean() < 3  # but for compression
    (tmp_path / "cut.tok").write_bytes(data[:-60])
    asked = ("decode", tmp_path / "cut.tok", tmp_path / "b.mp4", *tokenizer)
    refused(capsys, "was cut before the end of its first", *asked)


def calls_of(monkeypatch, method, *arguments, stop_after=None):
    """Run a command; how often it called a method of AdapTok, where that did not interrupt it."""
    original, calls = getattr(AdapTok, method), []

    def counted(self, *arguments, **options):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(method)
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(AdapTok, method, counted)
        if stop_after is None:
            run(*arguments)
        else:
            with pytest.raises(SystemExit, match="130"):
                run(*arguments)
    return len(calls)


@pytest.mark.parametrize("budget", [(), ("--tokens-per-second", 24)])
def test_encoding_goes_on_after_an_interruption(models, video, tmp_path, monkeypatch, capsys, budget):
    scorer = ("--scorer", models / "scorer") if budget else ()
    asked = ("encode", video, tmp_path / "a.tok", "--tokenizer", models / "tokenizer", *scorer, *budget)
    run(*asked)
    whole, said = (tmp_path / "a.tok").read_bytes(), capsys.readouterr().out
    (tmp_path / "a.tok").unlink()
    calls_of(monkeypatch, "encode", *asked, stop_after=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tok.unfinished", "video.mp4"]
    run("info", tmp_path / "a.tok.unfinished")
    assert "12 frames of 15" in capsys.readouterr().out
    with (tmp_path / "a.tok.unfinished").open("ab") as stream:
        stream.write(b"\3\6")  # a segment that a kill cut short
    assert calls_of(monkeypatch, "encode", *asked) == 1  # of three clips
    assert (tmp_path / "a.tok").read_bytes() == whole
    assert capsys.readouterr().out == said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tok", "video.mp4"]


def test_other_files_among_the_pictures_of_a_video_are_no_part_of_it(models, tmp_path, monkeypatch):
    folder, output = tmp_path / "frames", tmp_path / "frames" / "a.tok"
    folder.mkdir()
    for frame in range(15):
        (folder / f"{frame}.jpg").write_bytes(jpeg(torch.full((3, 16, 16), 16 * frame, dtype=torch.uint8)))
    asked = ("encode", folder, output, "--tokenizer", models / "tokenizer")
    calls_of(monkeypatch, "encode", *asked, stop_after=2)
    assert [file.name for file in folder.glob("a.tok*")] == ["a.tok.unfinished"]
    assert calls_of(monkeypatch, "encode", *asked) == 1  # of three clips
    with read_token_file(output) as opened:
        assert opened.count().frames == 15


def test_unfinished_work_on_something_else_is_refused(models, video, tmp_path, monkeypatch, capsys):
    scorer = ("--tokenizer", models / "tokenizer", "--scorer", models / "scorer")
    asked = ("encode", video, tmp_path / "a.tok", *scorer, "--tokens-per-second")
    calls_of(monkeypatch, "encode", *asked, 24, stop_after=1)
    refused(capsys, "made_from.tokens per second is 24.0 there, 23.0 here", *asked, 23)
    video.write_bytes(video.read_bytes() + b"x")
    refused(capsys, "made_from.video is", *asked, 24)
    assert (tmp_path / "a.tok.unfinished").is_file()


def test_names_that_are_not_unicode_are_spelled_out(models, video, tmp_path, capsys):
    strange = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    video.rename(strange)
    run("encode", strange, tmp_path / "a.tok", "--tokenizer", models / "tokenizer")
    assert "caf\\xe9.mp4: 15 frames" in capsys.readouterr().out


def test_memory_does_not_grow_with_the_length_of_a_video(models, tmp_path, monkeypatch):
    """As many results of the tokenizer are alive at a time for 20 clips as a group has."""
    frames = torch.randint(0, 256, (3, 119, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(tmp_path / "long.mp4", frames, 12)
    monkeypatch.setattr(budgets, "GROUP_SIZE", 3)
    most = {}
    for method in ("encode", "decode"):
        watch(monkeypatch, method, most)
    tokenizer = ("--tokenizer", models / "tokenizer")
    run("encode", tmp_path / "long.mp4", tmp_path / "a.tok", *tokenizer, "--tokens-per-second", 24)
    assert most.pop("encode") <= 2
    run("decode", tmp_path / "a.tok", tmp_path / "a.mp4", *tokenizer)
    assert most.pop("decode") <= 2
    budget = ("--scorer", models / "scorer", "--tokens", 12)
    run("reconstruct", tmp_path / "long.mp4", tmp_path / "both.mp4", *tokenizer, *budget)
    assert (most["encode"] <= 4, most["decode"] <= 2) == (True, True)
    assert pixels(tmp_path / "both.mp4").shape == (119, 16, 32, 3)


def watch(monkeypatch, method, most):
    """Count how many results of a method of AdapTok are alive at most: features of clips, or their pixels."""
    original, alive = getattr(AdapTok, method), []

    def counted(self, *arguments, **options):
        result = original(self, *arguments, **options)
        big = result.features if method == "encode" else result
        alive[:] = [reference for reference in alive if reference() is not None] + [weakref.ref(big)]
        most[method] = max(most.get(method, 0), len(alive))
        return result

    monkeypatch.setattr(AdapTok, method, counted)


def test_token_files_name_their_tokenizer_by_its_run(models, video, tmp_path, capsys):
    export = tmp_path / "mine" / "export"
    shutil.copytree(models / "tokenizer", export)
    run("encode", video, tmp_path / "a.tok", "--tokenizer", export)
    sampled = ("sample", "--model", models / "run" / "export", "--tokenizer", export, "--class", 1)
    run(*sampled, "--output", tmp_path / "out")
    for file in (tmp_path / "a.tok", tmp_path / "out" / "tokens" / "00000.tok"):
        decode = ("decode", file, tmp_path / "b.mp4", "--tokenizer", models / "other")
        refused(capsys, "decode with 'mine', the tokenizer that it was encoded with", *decode)


def test_a_budget_without_a_scorer_is_refused_with_that_of_the_tokenizer(video, tmp_path, capsys):
    asked = ("reconstruct", video, tmp_path / "a.mp4", "--tokenizer", "genvid-tiny", "--tokens", 256)
    refused(capsys, f"needs both --scorer (that of this tokenizer is {SHIPPED / 'genvid-tiny' / 'scorer'})", *asked)


def test_info_describes_a_folder_of_samples(models, tmp_path, capsys):
    sampled = ("sample", "--model", models / "run" / "export", "--tokenizer", models / "tokenizer", "--class", 1)
    run(*sampled, "--count", 2, "--output", tmp_path / "out")
    capsys.readouterr()
    run("info", tmp_path / "out")
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["samples"], lines["videos"], lines["condition.class"]) == (str(tmp_path / "out"), "2", "1")


def test_sampled_classes_do_not_depend_on_the_batch(models, tmp_path, capsys):
    asked = ("sample", "--model", models / "run" / "export", "--tokenizer", models / "tokenizer", "--class", 2)
    run(*asked, "--count", 3, "--guidance", 1.5, "--output", tmp_path / "whole")
    several = (*asked, "--count", 3, "--guidance", 1.5, "--format", "npz")
    run(*several, "--output", tmp_path / "exact")
    run(*several, "--output", tmp_path / "parts", "--batch-size", 2)
    assert index(tmp_path / "exact") == index(tmp_path / "parts")
    for i in range(3):  # before compression, which spreads a grey level that rounds the other way
        frames = [np.load(tmp_path / name / f"{i:05d}.npz")["frames"].astype(int) for name in ("exact", "parts")]
        assert np.abs(frames[0] - frames[1]).max() <= 1
    whole = index(tmp_path / "whole")
    assert [line["file"] for line in whole] == ["00000.mp4", "00001.mp4", "00002.mp4"]
    assert len({line["seed"] for line in whole}) == 3
    for line in whole:
        assert line["class"] == 2
        assert len(line["tokens"]) == 3
        assert set(line["tokens"]) <= set(SIZES)
    assert pixels(tmp_path / "whole" / "00000.mp4").shape == (6, 16, 16, 3)
    assert pixels(tmp_path / "whole" / "contact_sheet.png").shape == (1, 3 * 18, 6 * 18, 3)
    assert (tmp_path / "whole" / "page.html").read_text().count("<video") == 3
    DraftHeads(DraftConfig(load_model(models / "run" / "export", BlockTransformer).config.transformer.width)).save(
        tmp_path / "heads"
    )
    greedy = (*several, "--temperature", 0)
    run(*greedy, "--output", tmp_path / "plain")
    capsys.readouterr()
    run(*greedy, "--draft", tmp_path / "heads", "--output", tmp_path / "verified")
    assert " tokens a step" in capsys.readouterr().out
    assert index(tmp_path / "plain") == index(tmp_path / "verified")
    run(*several[:-1], "png", "--stream", "--output", tmp_path / "stream")
    assert "first frames after 0." in capsys.readouterr().out
    drop = {"file": None}
    assert [line | drop for line in index(tmp_path / "stream")] == [line | drop for line in whole]
    frames = np.stack([pixels(path)[0] for path in sorted((tmp_path / "stream/00001").iterdir())]).astype(int)
    assert np.abs(frames - np.load(tmp_path / "exact/00001.npz")["frames"]).max() <= 1
    run("decode", tmp_path / "whole/tokens/00001.tok", tmp_path / "again.mp4", "--tokenizer", models / "tokenizer")
    assert pixels(tmp_path / "again.mp4").shape == pixels(tmp_path / "whole" / "00001.mp4").shape


def test_sampled_videos_keep_their_budget(models, tmp_path, capsys):
    asked = ("sample", "--model", models / "run" / "export", "--tokenizer", models / "tokenizer", "--class", 2)
    few, most = 3 * SIZES[0], 3 * SIZES[1]
    run(*asked, "--count", 4, "--budget", most, "--format", "npz", "--output", tmp_path / "each")
    assert all(sum(line["tokens"]) <= most == line["budget"] for line in index(tmp_path / "each"))
    assert np.load(tmp_path / "each" / "00000.npz")["frames"].shape == (6, 16, 16, 3)
    run(*asked, "--count", 4, "--total", 4 * most, "--output", tmp_path / "all")
    assert sum(sum(line["tokens"]) for line in index(tmp_path / "all")) <= 4 * most
    lengths = [SIZES[0], SIZES[-1], SIZES[1]]
    run(*asked, "--lengths", *lengths, "--output", tmp_path / "exact")
    assert index(tmp_path / "exact")[0]["tokens"] == lengths
    output = ("--output", tmp_path / "none")
    refused(capsys, f"{few - 1} tokens cannot pay for", *asked, *output, "--budget", few - 1)
    refused(capsys, "none of the sizes", *asked, *output, "--lengths", *lengths[:2], 999)


def codes_of(folder, count, tokenizer):
    return [blocks_of(folder / "tokens" / f"{i:05d}.tok", tokenizer)[0] for i in range(count)]


@pytest.mark.parametrize("budget", [("--total", 40), ("--budget", 12), ()], ids=str)
def test_the_batch_size_is_memory_not_results(models, tmp_path, budget):
    asked = ("sample", "--model", models / "run" / "export", "--tokenizer", models / "tokenizer", "--class", 2)
    for size in (1, 3, 6):
        output = ("--output", tmp_path / str(size), "--batch-size", size, "--format", "npz")
        run(*asked, "--count", 6, "--top-p", 0.9, *budget, *output)
    lines = index(tmp_path / "1")
    assert lines == index(tmp_path / "3") == index(tmp_path / "6")
    assert (
        codes_of(tmp_path / "1", 6, models / "tokenizer")
        == codes_of(tmp_path / "3", 6, models / "tokenizer")
        == codes_of(tmp_path / "6", 6, models / "tokenizer")
    )
    if budget:
        assert sum(sum(line["tokens"]) for line in lines) <= budget[1] * (6 if budget[0] == "--budget" else 1)


def test_how_a_prompt_is_cut_does_not_depend_on_the_count(models, video, tmp_path):
    """5 tokens to a context of the sizes 2, 4 and 8: three of them together could pay for 8 + 4 + 2."""
    asked = ("sample", "--model", models / "continues", "--tokenizer", models / "tokenizer", "--prompt", video)
    cut = ("--scorer", models / "scorer", "--tokens", 15)
    run(*asked, *cut, "--output", tmp_path / "one")
    run(*asked, *cut, "--count", 3, "--output", tmp_path / "three")
    assert index(tmp_path / "three")[0] == index(tmp_path / "one")[0]
    assert len({line["tokens"][0] for line in index(tmp_path / "three")}) == 1


@pytest.mark.parametrize("options", [(), ("--total", 60), ("--frames", 3)], ids=str)
def test_an_interrupted_sample_goes_on_where_it_stopped(models, video, tmp_path, monkeypatch, capsys, options):
    condition = ("--prompt", video) if "--frames" in options else ("--class", 1)
    model = models / ("continues" if "--frames" in options else "run/export")
    asked = ("sample", "--model", model, "--tokenizer", models / "tokenizer", *condition, *options)
    asked += ("--count", 5, "--batch-size", 2, "--format", "png")
    run(*asked, "--output", tmp_path / "straight")
    original, written = SampleWriter.write_video, []

    def write(self, folder, number, video, before=()):
        if len(written) == 3:  # in the middle of the second batch
            raise KeyboardInterrupt
        written.append(number)
        return original(self, folder, number, video, before)

    monkeypatch.setattr(SampleWriter, "write_video", write)
    with pytest.raises(SystemExit, match="130"):
        run(*asked, "--output", tmp_path / "killed")
    again = []
    monkeypatch.setattr(SampleWriter, "write_video", lambda *a: (again.append(a[2]), original(*a))[1])
    run(*asked, "--output", tmp_path / "killed")
    done = set() if "--total" in options else set(written[:2])  # what shares a budget is sampled together
    assert sorted(again) == sorted(set(range(5)) - done)
    assert index(tmp_path / "killed") == index(tmp_path / "straight")
    names = sorted(path.name for path in (tmp_path / "straight").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir())
    shown = (tmp_path / "straight" / "contact_sheet.png").read_bytes()
    assert (tmp_path / "killed" / "contact_sheet.png").read_bytes() == shown
    again.clear()
    run(*asked, "--output", tmp_path / "killed")
    assert not again
    output = ("--output", tmp_path / "killed")
    refused(capsys, "(count is 5 there, 6 here)", *asked, *output, "--count", 6)
    refused(capsys, "(precision is fp32 there, bf16 here)", *asked, *output, "--precision", "bf16")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    refused(capsys, "exists already", *asked, "--output", tmp_path / "mine")


def test_the_precision_is_one_by_default_and_is_said(models, tmp_path, monkeypatch, capsys):
    """Engines are made in float32 on any device, and in bfloat16 where it is asked for."""
    made = []

    class WatchedEngine(Engine):
        def __init__(self, model, config, **settings):
            made.append(settings["dtype"])
            super().__init__(model, config, **settings)

    monkeypatch.setattr(sampling, "Engine", WatchedEngine)
    asked = ("sample", "--model", models / "run" / "export", "--tokenizer", models / "tokenizer", "--class", 2)
    run(*asked, "--output", tmp_path / "a")
    assert f"sampled in fp32 on {device().type}" in capsys.readouterr().out
    run(*asked, "--output", tmp_path / "b", "--precision", "bf16")
    assert f"sampled in bf16 on {device().type}" in capsys.readouterr().out
    assert made == [torch.float32, torch.bfloat16]
    assert json.loads((tmp_path / "a" / "about.json").read_text())["precision"] == "fp32"
    assert f"fp32 on {device().type}" in (tmp_path / "a" / "page.html").read_text()


def test_a_frame_rate_that_is_asked_for_is_that_of_the_file(models, video, tmp_path):
    asked = ("sample", "--model", models / "continues", "--tokenizer", models / "tokenizer", "--prompt", video)
    run(*asked, "--fps", 5, "--output", tmp_path / "out")
    assert probe(tmp_path / "out" / "00000.mp4").fps == 5


def test_nothing_that_is_asked_for_is_ignored(models, video, tmp_path, capsys):
    common = ("sample", "--tokenizer", models / "tokenizer", "--output", tmp_path / "out", "--model")
    classes = (*common, models / "run" / "export", "--class", 1)
    prompts = (*common, models / "continues", "--prompt", video)
    for budget in ("--budget", "--total"):
        for number in (0, 10, 24):
            exact = ("--lengths", 8, 8, 8, budget, number)
            refused(capsys, "--lengths are exact: leave out --budget and --total", *classes, *exact)
        refused(capsys, "leave out --budget", *prompts, "--frames", 3, budget, 0)
        refused(capsys, "0 tokens cannot pay for", *classes, budget, 0)
    refused(capsys, "cut a --prompt", *classes, "--tokens", 0)
    refused(capsys, "guidance other than 1", *prompts, "--guidance", 2)
    refused(capsys, "--stream writes frames one by one", *classes, "--stream")
    refused(capsys, "leave out --guidance", *prompts, "--guidance", "by_tokens", "--frames", 3)
    refused(capsys, "both --scorer and --tokens", *prompts, "--published")
    refused(capsys, "3 blocks need as many planned lengths, got 2", *classes, "--lengths", 8, 8)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("huge", [2**70, -(2**63) - 1])
def test_numbers_out_of_range_end_in_one_sentence(models, video, tmp_path, capsys, huge):
    common = ("sample", "--tokenizer", models / "tokenizer", "--output", tmp_path / "out", "--model")
    classes = (*common, models / "run" / "export", "--class", 1)
    prompts = (*common, models / "continues", "--prompt", video)
    refused(capsys, f"a seed is a whole number from -2**63 to 2**63 - 1, got {huge}", *classes, "--seed", huge)
    refused(capsys, "from -2**63 to 2**63 - 1", *prompts, "--frames", 3, "--seed", huge)
    refused(capsys, f"{huge} tokens is none of the sizes", *classes, "--lengths", 8, 8, huge)
    refused(capsys, "--count and --batch-size", *classes, "--count", huge)
    refused(capsys, "--count and --batch-size", *classes, "--batch-size", huge)
    refused(capsys, "--frames is at least 1", *prompts, "--frames", huge)
    refused(capsys, "no class", *common, models / "run" / "export", f"--class={huge}")
    for fps in ("nan", "inf", -1):
        refused(capsys, "--fps is above 0", *classes, "--fps", fps)
    for temperature in ("1e-50", "1e300", "inf"):
        refused(capsys, "temperature", *classes, "--temperature", temperature)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--budget", "--total", "--top-k"])
def test_limits_beyond_all_sizes_are_no_limits(models, tmp_path, option):
    asked = ("sample", "--model", models / "run" / "export", "--tokenizer", models / "tokenizer", "--class", 2)
    run(*asked, option, 2**70, "--count", 2, "--output", tmp_path / "out")
    assert len(index(tmp_path / "out")) == 2


def test_a_model_carries_the_names_of_its_classes(models, tmp_path, capsys):
    model = load_model(models / "run" / "export")
    model.origin = Origin(classes=["run", "sit", "walk"])
    model.save(tmp_path / "named")
    asked = ("sample", "--model", tmp_path / "named", "--tokenizer", models / "tokenizer")
    run(*asked, "--class", "walk", "--output", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "index.jsonl").read_text())["class"] == 2
    refused(capsys, "or one of run, sit, walk", *asked, "--class", "fly", "--output", tmp_path / "none")


def test_bad_requests_to_sample_leave_nothing(models, video, tmp_path, capsys):
    output = ("--output", tmp_path / "out")
    asked = ("sample", *output, "--tokenizer", models / "tokenizer", "--model")
    refused(capsys, "no class 'dog'; a class is a number from 0", *asked, models / "run" / "export", "--class", "dog")
    refused(capsys, "no class '3'", *asked, models / "run" / "export", "--class", 3)
    refused(capsys, "give a class (or a prompt", *asked, models / "run" / "export")
    refused(capsys, "--class in place of --prompt", *asked, models / "run" / "export", "--prompt", video)
    refused(capsys, "give a prompt", *asked, models / "continues", "--class", 1)
    refused(capsys, "a model of type adaptok, not a RowModel", *asked, models / "tokenizer", "--class", 1)
    refused(capsys, "--count and --batch-size", *asked, models / "continues", "--prompt", video, "--count", 0)
    refused(capsys, "no.mp4", *asked, models / "continues", "--prompt", tmp_path / "no.mp4")
    refused(capsys, "--frames is at least 1", *asked, models / "continues", "--prompt", video, "--frames", 0)
    a_class = (*asked, models / "run" / "export", "--class", 1)
    refused(capsys, "--budget or --total", *a_class, "--scorer", models / "scorer", "--tokens", 12)
    refused(capsys, "--fps is above 0", *a_class, "--fps", 0)
    refused(capsys, "temperature, top_k and guidance are at least 0", *a_class, "--temperature", "nan")
    refused(capsys, "is not a folder that can be written to", *a_class, "--output", video / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("model", "kept"), [("continues", 1), ("published", 1)])
def test_predicted_frames_follow_the_prompt(models, video, tmp_path, model, kept):
    asked = ("sample", "--model", models / model, "--tokenizer", models / "tokenizer", "--prompt", video)
    run(*asked, "--count", 2, "--output", tmp_path / "out")
    first, second = index(tmp_path / "out")
    assert first["prompt"] == str(video)
    assert first["seed"] != second["seed"]
    assert first["tokens"][:kept] == second["tokens"][:kept] == [8] * kept
    assert len(first["tokens"]) == 3
    assert probe(tmp_path / "out" / "00000.mp4").fps == 12
    assert pixels(tmp_path / "out" / "00000.mp4").shape == (6, 16, 16, 3)


def test_a_whole_prompt_goes_on_by_as_many_frames_as_asked(models, video, tmp_path, capsys):
    asked = ("sample", "--model", models / "continues", "--tokenizer", models / "tokenizer")
    given = probe(video).frames
    run(*asked, "--prompt", video, "--frames", 7, "--format", "npz", "--output", tmp_path / "longer")
    frames = np.load(tmp_path / "longer" / "00000.npz")["frames"]
    assert len(frames) == given + 7
    assert len(index(tmp_path / "longer")[0]["tokens"]) == 4  # blocks of two frames
    assert (tmp_path / "longer" / "page.html").read_text().count("<video") == 1
    output = ("--output", tmp_path / "none", "--frames", 7)
    refused(capsys, "give --prompt", *asked, *output, "--class", 1)
    refused(capsys, "leave out --budget", *asked, *output, "--prompt", video, "--budget", 20)
    assert not (tmp_path / "none").exists()


def test_a_prompt_of_any_length_is_continued_in_the_same_memory(models, tmp_path, monkeypatch):
    """What follows depends on the last frames alone, and no more frames than the model reads are held."""
    frames = torch.randint(0, 256, (3, 90, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(tmp_path / "long.mp4", frames, 12)
    given, fit, alive, most = pixels(tmp_path / "long.mp4"), ClipConfig.fit, [], []

    def counted(self, video, seed):
        frame = fit(self, video, seed)
        alive[:] = [reference for reference in alive if reference() is not None] + [weakref.ref(frame)]
        most.append(len(alive))
        return frame

    monkeypatch.setattr(ClipConfig, "fit", counted)
    asked = ("sample", "--model", models / "continues", "--tokenizer", models / "tokenizer", "--frames", 4, "--prompt")
    run(*asked, tmp_path / "long.mp4", "--output", tmp_path / "mp4")
    assert max(most) <= 4  # a block of two frames and what is in hand
    assert pixels(tmp_path / "mp4" / "00000.mp4").shape == (94, 16, 16, 3)
    monkeypatch.undo()
    run(*asked, tmp_path / "long.mp4", "--format", "npz", "--output", tmp_path / "npz")
    made = np.load(tmp_path / "npz" / "00000.npz")["frames"]
    assert np.array_equal(made[:90], given)


def test_transformers_samples_the_same_rows(models, tmp_path, capsys):
    asked = ("sample", "--model", models / "run" / "export", "--tokenizer", models / "tokenizer", "--class", 2)
    for guidance in (1, 2):
        folders = [tmp_path / f"{whose}_{guidance}" for whose in ("ours", "theirs")]
        for folder, engine in zip(folders, ((), ("--engine", "transformers")), strict=True):
            run(*asked, "--count", 3, "--guidance", guidance, *engine, "--output", folder)
        assert index(folders[0]) == index(folders[1])
        ours, theirs = (codes_of(folder, 3, models / "tokenizer") for folder in folders)
        assert ours == theirs
    output = ("--output", tmp_path / "none", "--engine", "transformers")
    refused(capsys, "transformers cannot plan a budget", *asked, *output, "--budget", 100)


def test_prompts_are_cut_to_the_budget(models, video, tmp_path):
    run(
        *("sample", "--model", models / "continues", "--tokenizer", models / "tokenizer", "--prompt", video),
        *("--scorer", models / "scorer", "--tokens", 12, "--output", tmp_path / "out"),
    )
    assert index(tmp_path / "out")[0]["tokens"][0] <= 4


@pytest.mark.parametrize("more", [(), ("--frames", 3)])
def test_prompts_are_cut_as_in_training(models, video, tmp_path, capsys, more):
    """Evenly by themselves; where a scorer cut the rows it must be given."""
    model = load_model(models / "continues")
    for rule in ("uniform", "joint"):
        model.origin = Origin({"cache": {"allocator": {"type": rule, "tokens_per_video": 12}}})
        model.save(tmp_path / rule)
    read, continuation = [], RowModel.continuation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowModel, "continuation", lambda model, given: read.append(given) or continuation(model, given))
        asked = ("sample", "--tokenizer", models / "tokenizer", "--prompt", video, *more, "--output", tmp_path / "out")
        run(*asked, "--model", tmp_path / "uniform")
    assert [given.lengths.tolist() for given in read] == [[[4]]]
    asked = (*asked[:-1], tmp_path / "none", "--model", tmp_path / "joint")
    refused(capsys, "was trained on clips of at most 12 tokens: give --scorer and --tokens", *asked)
    run(*asked, "--scorer", models / "scorer", "--tokens", 12)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tokenizer_tiny", "scorer: "),
        ("ar_class_tiny", "101 classes"),
        ("ar_frame_prediction_tiny", "frame prediction from 2 blocks"),
    ],
)
def test_convert(name, said, tmp_path, capsys):
    if not PARITY.is_dir():
        pytest.skip(f"no published folders in {PARITY}")
    run("convert", PARITY / name, tmp_path / "model")
    assert said in capsys.readouterr().out
    assert load_model(tmp_path / "model")
    refused(capsys, "exists already", "convert", PARITY / name, tmp_path / "model")
    refused(capsys, "already", "convert", tmp_path / "model", tmp_path / "again")


def test_what_is_no_published_model_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    refused(capsys, "no published model that genvid converts", "convert", tmp_path, tmp_path / "model")
    larp = {"bottleneck": {}, "bottleneck_token_num": 1024}
    (tmp_path / "config.json").write_text(json.dumps(larp))
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    refused(capsys, "LARP", "convert", tmp_path, tmp_path / "model")
