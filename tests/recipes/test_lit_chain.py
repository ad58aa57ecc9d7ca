"""The LIT recipes one after the other: a codec, its inpainter, and the table of keep rates."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_recipes import launch_all, launch_two, records

from genvid.cli import main as genvid
from genvid.config import ConfigError, encode, load
from genvid.data.video import probe, write_video
from genvid.eval.report import Report
from genvid.recipes import compare_lit, train
from genvid.recipes.compare_lit import METHODS, LITEvaluationRun
from genvid.tokens import frame_blocks
from genvid.train.start import start_from

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "lit_tiny"
CLIPS = {"data.source.clips": 8, "data.clip.frames": 9}


def overrides(**changes: object) -> list[str]:
    """Text as it is, other values as YAML."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers", reason="codecs of diffusers need the extra genvid[lit]")
    folder = tmp_path_factory.mktemp("lit_chain")
    training = {**CLIPS, "train.steps": 2, "train.batch_size": 2}
    codec, lit = str(folder / "codec"), str(folder / "lit")
    train.main([str(CONFIGS / "autoencoder.yaml"), *overrides(**training, output_dir=codec)])
    source = {"model.codec.source": f"{codec}/export", "output_dir": lit}
    train.main([str(CONFIGS / "inpainter.yaml"), *overrides(**training, **source)])
    return folder


def test_the_codec_is_a_folder_of_diffusers_with_its_statistics(models: Path) -> None:
    config = json.loads((models / "codec" / "export" / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLCosmos"
    assert len(config["latents_std"]) == config["latent_channels"] == 8
    assert min(config["latents_std"]) > 0


@pytest.mark.parametrize(("stage", "name"), [("autoencoder", "codec"), ("inpainter", "lit")])
def test_both_stages_start_from_their_exports(models: Path, stage: str, name: str) -> None:
    source = {"model.codec.source": f"{models}/codec/export"} if stage == "inpainter" else {}
    task, _ = train.read_run([str(CONFIGS / f"{stage}.yaml"), *overrides(**CLIPS, **source)]).build()
    start_from(task, f"{models}/{name}/export")
    model = task.exportable()
    assert model.origin.made_from["initial weights"]
    torch.testing.assert_close(model.state_dict(), type(model).open(models / name / "export").state_dict())


STAGES = ("autoencoder", "inpainter")


@pytest.fixture(scope="module")
def trained(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages as {stage}_one and {stage}_two, by one and by two processes with the same global batch."""
    folder, twice = tmp_path_factory.mktemp("lit_processes"), []
    for stage in STAGES:
        recipe = yaml.safe_load((CONFIGS / f"{stage}.yaml").read_text())
        recipe["data"]["source"]["clips"], recipe["data"]["clip"]["frames"] = 8, 9
        recipe["train"] |= {"steps": 3, "batch_size": 4, "log_every": 1}
        if stage == "inpainter":
            recipe["model"]["codec"]["source"] = f"{models}/codec/export"
        files = [folder / f"{stage}_{count}.yaml" for count in ("one", "two")]
        for file in files:
            file.write_text(yaml.safe_dump(recipe | {"output_dir": str(file.with_suffix(""))}))
        train.main([str(files[0])])
        twice.append(("ddp", files[1]))
    launch_all(folder / "runs.json", twice)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_as_one_does(stage: str, trained: Path) -> None:
    one, two = (records(trained / f"{stage}_{count}") for count in ("one", "two"))
    assert [record["step"] for record in one] == [1, 2, 3]
    # Muon gives all directions of an update one size, also those that are rounding: 2e-4 of the norm after two steps.
    tolerances = {"loss": 1e-4, "grad_norm": 1e-3, "psnr": 1e-4}
    for name, tolerance in tolerances.items():
        assert [record[name] for record in two] == pytest.approx([record[name] for record in one], rel=tolerance)


def test_the_codec_of_two_processes_tells_the_statistics_of_all_clips(trained: Path) -> None:
    one, two = (
        json.loads((trained / f"autoencoder_{count}" / "export" / "config.json").read_text())
        for count in ("one", "two")
    )
    assert one["latents_std"] == pytest.approx(two["latents_std"], rel=1e-3)
    means = (torch.tensor(config["latents_mean"]) for config in (one, two))
    torch.testing.assert_close(*means, rtol=0, atol=1e-3 * min(one["latents_std"]))


def test_the_table_has_every_method_at_every_rate(models: Path) -> None:
    settings = {"model": f"{models}/lit/export", "output_dir": f"{models}/rates", "rates": [0.5, 1.0]}
    changes = {**CLIPS, "batch_size": 4, "targets": 2, "shown": 1, "shown_rate": 0.5}
    compare_lit.main([str(CONFIGS / "keep_rates.yaml"), *overrides(**settings, **changes)])
    reports = {}
    for file in (models / "rates").glob("*.json"):
        report = Report.load(file)
        reports[report.title] = {number.name: number.value for number in report.numbers}
    assert set(reports) == {f"{method} @ {rate}" for method in METHODS for rate in ("0.5", "1")}
    for title, values in reports.items():
        if not title.startswith("ElasticTok"):
            assert values["budget met, %"] == 100 or "one price" in title
            assert values["keep rate"] == pytest.approx(float(title.rpartition(" ")[2]), abs=0.02)
    # With all kept, every method is the codec.
    assert len({round(values["PSNR"], 4) for title, values in reports.items() if title.endswith("@ 1")}) == 1
    full, half = reports["LIT @ 1"], reports["LIT @ 0.5"]
    assert half["bits per 16 pixels"] < full["bits per 16 pixels"]
    assert full["mask bits per clip"] < half["mask bits per clip"]
    assert "LIT @ 0.5" in (models / "rates" / "table.md").read_text()
    assert (models / "rates" / "side_by_side.mp4").stat().st_size > 0
    assert (models / "rates" / "side_by_side.webp").stat().st_size > 0
    assert "kept by LIT" in (models / "rates" / "page.html").read_text()


def test_refined_latents_are_nearer_under_every_filler(models: Path) -> None:
    settings = {"model": f"{models}/lit/export", "rates": [0.5], "methods": ["LIT", "means copied"]}
    psnr = {}
    for steps in (0, 3):
        changes = {**CLIPS, "batch_size": 4, "shown": 0, "refine": steps, "output_dir": f"{models}/refined_{steps}"}
        compare_lit.main([str(CONFIGS / "keep_rates.yaml"), *overrides(**settings, **changes)])
        reports = [Report.load(models / f"refined_{steps}" / f"{name}_0.5.json") for name in ("LIT", "means_copied")]
        psnr[steps] = [report.value("PSNR") for report in reports]
        assert reports[0].value("budget met, %") == 100
        assert ("refined by 3 steps" in reports[0].numbers[0].protocol.note) == (steps == 3)
    assert all(refined > plain for refined, plain in zip(psnr[3], psnr[0], strict=True))


def test_a_table_of_two_processes_after_a_kill_is_that_of_one(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {**CLIPS, "model": f"{models}/lit/export", "rates": [0.5], "batch_size": 2, "targets": 2, "shown": 0}
    methods = ["LIT", "copy-forward, one price"]
    recipe = [str(CONFIGS / "keep_rates.yaml"), *overrides(**changes, methods=methods)]
    compare_lit.main([*recipe, f"--output_dir={models}/rates_one"])
    original, calls = compare_lit.Method.__call__, []

    def stopped(self: compare_lit.Method, *arguments: Any) -> Any:
        if len(calls) == 3:  # between the two methods of the second batch
            raise KeyboardInterrupt
        calls.append(self.name)
        return original(self, *arguments)

    monkeypatch.setattr(compare_lit.Method, "__call__", stopped)
    run = load(LITEvaluationRun, recipe[0], [*recipe[1:], f"--output_dir={models}/rates_two"])
    with pytest.raises(KeyboardInterrupt):
        compare_lit.evaluate(run)
    (models / "rates_two.yaml").write_text(yaml.safe_dump(encode(run)))
    launch_two(CONFIGS.parents[1] / "compare_lit.py", models / "rates_two.yaml")
    for method in ("LIT", "copy-forward_one_price"):
        one, two = (Report.load(models / f"rates_{count}" / f"{method}_0.5.json").numbers for count in ("one", "two"))
        assert [n.name for n in one] == [n.name for n in two]
        assert [n.value for n in two] == pytest.approx([n.value for n in one], rel=1e-6)


def test_a_video_is_reconstructed_at_a_budget(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "video.mp4", torch.randint(0, 256, (3, 17, 64, 64), dtype=torch.uint8), 8)
    command = ["reconstruct", str(tmp_path / "video.mp4"), str(tmp_path / "both.mp4")]
    genvid([*command, "--tokenizer", f"{models}/lit/export", "--tokens", "40"])
    assert "clip 0: 40 tokens in blocks of [16, " in capsys.readouterr().out
    assert probe(tmp_path / "both.mp4").frames == 17


def test_a_long_video_is_reconstructed_in_clips_within_one_budget(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frame_blocks, "LONGEST_CLIP", 3)
    write_video(tmp_path / "video.mp4", torch.randint(0, 256, (3, 21, 64, 64), dtype=torch.uint8), 8)
    command = ["reconstruct", str(tmp_path / "video.mp4"), str(tmp_path / "both.mp4")]
    command += ["--tokenizer", f"{models}/lit/export", "--tokens"]
    with pytest.raises(SystemExit):
        genvid([*command, "47"])
    assert "47 tokens is below the floor of 48" in capsys.readouterr().err
    genvid([*command, "70"])
    said = capsys.readouterr().out
    assert "8 blocks, coded in 3 clips of at most 3" in said
    # Frames 0 to 8, 9 to 17, 18 to 20: 22 tokens beside the first blocks, in proportion to 2, 2 and 1 others.
    assert [line.partition(" in")[0] for line in said.splitlines() if line.startswith("clip")] == [
        "clip 0: 24 tokens",
        "clip 1: 25 tokens",
        "clip 2: 21 tokens",
    ]
    assert probe(tmp_path / "both.mp4").frames == 21


def test_a_protocol_counts_the_coded_mask(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """16 frames become 17: five blocks of 256 positions. Of 300 tokens, 44 are scattered over the last four."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "clips.yaml").write_text("{type: synthetic, clips: 4}")
    command = ["evaluate", "ucf101-rfvd-first", "--source", str(tmp_path / "clips.yaml"), "--partial"]
    command += ["--features", "none", "--workers", "0", "--count", "4", "--tokenizer", f"{models}/lit/export"]
    genvid([*command, "--output", str(tmp_path / "full")])
    genvid([*command, "--output", str(tmp_path / "cut"), "--tokens", "300"])
    full, cut = (
        {number.name: number.value for number in Report.load(tmp_path / file).numbers}
        for file in ("full/report.json", "cut/tokens300/report.json")
    )
    assert (full["tokens per clip"], cut["tokens per clip"]) == (1280, 300)
    assert full["bits per clip"] == pytest.approx(1280 * 8 * 16 + 5 * math.log2(3))
    mask = cut["bits per clip"] - 300 * 8 * 16
    assert 44 < mask < 4 * 256 / 2
    with pytest.raises(SystemExit):
        genvid([*command, "--tokens", "300", "--scorer", "x", "--output", str(tmp_path / "other")])
    assert "is LIT, which needs no scorer" in capsys.readouterr().err


def test_bad_input_is_one_sentence(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(main: object, name: str, **changes: object) -> str:
        with pytest.raises(SystemExit):
            main([str(CONFIGS / name), *overrides(**changes)])  # type: ignore[operator]
        return capsys.readouterr().err.strip().splitlines()[-1]

    evaluation = {"model": f"{models}/lit/export", "output_dir": f"{models}/bad", **CLIPS}
    assert "does not fit this codec; use 1, 5, 9" in fails(
        compare_lit.main, "keep_rates.yaml", **{**evaluation, "data.clip.frames": 10}
    )
    assert "below the floor" in fails(compare_lit.main, "keep_rates.yaml", **evaluation, rates=[0.1])
    assert "targets is at least 2, shown and refine are at least 0, got 1, " in fails(
        compare_lit.main, "keep_rates.yaml", **evaluation, targets=1
    )
    assert "keep rates in (0, 1]" in fails(compare_lit.main, "keep_rates.yaml", **evaluation, rates=[1.5])
    assert "no codec at" in fails(
        train.main, "inpainter.yaml", **{"model.codec.source": f"{models}/none", "output_dir": f"{models}/x"}
    )
    with pytest.raises(ConfigError, match="need 3 encoder_widths"):
        train.read_run([str(CONFIGS / "autoencoder.yaml"), "--model.encoder_widths=[8, 8]"])


def test_the_shipped_sizes_are_as_their_recipes_say() -> None:
    from genvid.tokenizer.layers import StackConfig
    from genvid.tokenizer.lit.inpainter import Inpainter, InpainterConfig

    for name, millions in (("inpainter", 6), ("inpainter_base", 29)):
        recipe = yaml.safe_load((CONFIGS.parent / "lit" / f"{name}.yaml").read_text())["model"]["inpainter"]
        config = InpainterConfig(StackConfig(**recipe["transformer"]), recipe["context"], recipe["tile"])
        count = sum(parameter.numel() for parameter in Inpainter(16, config).parameters())
        assert count == pytest.approx(millions * 1e6, rel=0.1)


def test_components_are_those_of_the_clips_whether_or_not_these_are_rounded() -> None:
    small = {
        "data.source": '{"type": "procedural", "clips": 4}',
        "data.clip": '{"frames": 9, "resolution": [32, 32]}',
        "model": '{"channels": 4, "width": 16, "encoder_depth": 1, "decoder_depth": 1}',
    }
    weights = []
    for rounded in (True, False):
        run = train.read_run(
            [str(CONFIGS.parent / "lit/cells.yaml"), *overrides(**small, **{"data.clip.rounded": rounded})]
        )
        torch.manual_seed(0)
        weights.append(run.build()[0].state_dict())
    torch.testing.assert_close(weights[0], weights[1])
