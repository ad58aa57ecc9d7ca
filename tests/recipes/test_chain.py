"""From clips to scored samples, every stage reading what the one before it wrote."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tiny_recipes import BUDGETS, GROUP, SIZES, clips

import genvid
from genvid import config
from genvid.allocation import Calibration
from genvid.checkpoint import fingerprint, load_model
from genvid.data.images import read_image
from genvid.data.loader import load_batches, numbered_batches
from genvid.data.video import write_video
from genvid.eval import selection
from genvid.eval.gaps import gap_table, gaps
from genvid.eval.pages.pictures import HEIGHT, WIDTH, timeline
from genvid.eval.protocols import EvaluationProtocol
from genvid.eval.report import Number, Provenance, Report
from genvid.provenance import ProvenanceError
from genvid.recipes import calibrate, compare_allocators
from genvid.recipes.compare_allocators import ALLOCATORS
from genvid.recipes.generate import GenerationRun, generate
from genvid.recipes.package_model import CODE_COUNTS, PackageRun, package
from genvid.recipes.samples_page import Samples
from genvid.tokenizer.adaptok.loading import AllocatedTokenizer
from genvid.tokens.cache import TokenCache
from genvid.tokens.cache_info import CacheError

pytestmark = pytest.mark.gpu
CARD = Path(__file__).resolve().parents[2] / "recipes/configs/tiny/card.md"


@pytest.mark.parametrize(
    ("stage", "model_type"),
    [("tokenizer", "adaptok"), ("scorer", "adaptok_scorer"), ("ar", "llama"), ("classifier", "video_classifier")],
)
def test_trained_stages_export_models(stages, stage, model_type):
    model = load_model(stages.folder / stage / "export")
    assert model.model_type == model_type
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point())


def test_the_tokenizer_was_trained_with_its_discriminator_and_its_prior(stages):
    lines = [json.loads(line) for line in (stages.folder / "tokenizer/metrics.jsonl").read_text().splitlines()]
    for name in ("generator/prior", "generator/adversarial", "discriminator/loss"):
        assert all(torch.tensor(line[name]).isfinite() for line in lines)


def test_the_calibration_holds_what_was_asked(stages):
    calibration = Calibration.load(stages.folder / "calibration/calibration.json")
    assert list(calibration.budgets) == BUDGETS
    assert list(calibration.sizes) == SIZES
    assert calibration.blocks == 2
    for table, budget in zip(calibration.tables, BUDGETS, strict=True):
        assert sum(table) <= budget + 1e-6
    assert "oracle" in calibration.expected
    assert (stages.folder / "calibration/calibration.html").is_file()


def test_the_cache_holds_every_clip_within_the_budget(stages):
    cache = TokenCache.open(stages.folder / "cache", tokenizer=fingerprint(stages.folder / "tokenizer/export"))
    lengths = torch.stack([cache[i]["lengths"] for i in range(len(cache))])
    assert lengths.shape == (64, 2)
    assert set(lengths.flatten().tolist()) <= set(SIZES)
    assert all(group.sum() <= 10 * GROUP for group in lengths.split(GROUP))


def test_the_cache_of_another_tokenizer_is_refused(stages):
    with pytest.raises(CacheError, match="made with tokenizer"):
        TokenCache.open(stages.folder / "cache", tokenizer=fingerprint(stages.folder / "scorer/export"))


@pytest.mark.parametrize("kind", ["uniform", "table", "group", "joint", "online"])
def test_budgets_are_kept(stages, device, kind):
    tokens = stages.configs["generation"]["tokens"]
    group = {"group_size": GROUP} if kind in ("group", "joint") else {}
    allocator = {"type": kind, "tokens_per_video": 10, **group}
    allocated = config.decode(AllocatedTokenizer, {**tokens, "allocator": allocator})
    tokenizer, allocate, sizes = allocated.build(8, device)
    assert sizes == SIZES
    data = torch.stack([torch.rand(3, 8, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(GROUP)])
    lengths = allocate(tokenizer.encode(2 * data.to(device) - 1)).lengths.cpu()
    assert set(lengths.flatten().tolist()) <= set(SIZES)
    assert lengths.double().sum(1).mean() <= 10
    if kind not in ("group", "joint"):
        assert lengths.sum(1).max() <= 10


@pytest.fixture(scope="module")
def evaluation(stages):
    return stages.run("evaluation")


def test_every_allocator_is_scored_at_every_budget(evaluation):
    reports = {path.stem: Report.load(path) for path in evaluation.glob("*_*.json")}
    assert set(reports) == {f"{name}_{budget}" for name in ALLOCATORS for budget in BUDGETS}
    for key, report in reports.items():
        values = {number.name: number.value for number in report.numbers}
        assert values["PSNR"] > 0
        assert -1 <= values["SSIM"] <= 1
        if not key.startswith("threshold"):
            assert 2 * SIZES[0] <= values["tokens per clip"] <= int(key.rpartition("_")[2]) + 1e-6
    assert "<video" in (evaluation / "page.html").read_text()


def test_the_oracle_is_the_best_of_the_group_rules(evaluation):
    for budget in BUDGETS:
        values = {}
        for name in ("uniform", "oracle"):
            numbers = Report.load(evaluation / f"{name}_{budget}.json").numbers
            values[name] = next(n.value for n in numbers if n.name.startswith("20 mse"))
        assert values["oracle"] <= values["uniform"] + 1e-9


@pytest.fixture(scope="module")
def summarised(stages):
    changes = {"training": clips(), "training_clips": 16, "features": stages.path("classifier/export")}
    rules = ["uniform", "clip", "clip_oracle"]
    return stages.run("evaluation", "summarised", allocators=rules, precision="bf16", **changes)


def test_a_summary_holds_gaps_a_frechet_distance_and_training_clips(summarised):
    rules, folder = ["uniform", "clip", "clip_oracle"], summarised
    summary = json.loads((folder / "summary.json").read_text())
    rows = {(row["rule"], row["budget"]): row for row in summary["rows"]}
    assert set(rows) == {(rule, budget) for rule in rules for budget in BUDGETS}
    for (rule, budget), row in rows.items():
        report = Report.load(folder / f"{rule}_{budget:g}.json")
        assert row["numbers"] == {number.name: number.value for number in report.numbers}
        assert row["value"] == row["numbers"][summary["distortion"]]
        assert any(name.endswith("real against real") for name in row["numbers"])
        lengths = row["numbers"]["tokens per clip"]
        assert lengths == row["spent"] <= budget
    assert set(summary["training"]) == {f"uniform @ {budget}" for budget in BUDGETS}
    assert summary["clips"] == 32
    assert Report.load(folder / "training" / f"uniform_{BUDGETS[0]}.json").numbers[0].count == 16


def test_pictures_show_whole_videos_that_may_be_shown(stages, tmp_path):
    for name in ("a", "b", "c"):
        write_video(tmp_path / "videos" / "kind" / f"{name}.mp4", torch.randint(0, 256, (3, 24, 16, 16)).byte(), 8)
    pictures = {**clips(), "source": {"type": "folder", "path": str(tmp_path / "videos")}}
    settings = {"allocators": ["uniform", "joint"], "clips": 4, "shown": 2, "pictures": pictures}
    folder = stages.run("evaluation", "pictured", **settings)
    page = (folder / "page.html").read_text()
    assert sum(f"kind/{name}.mp4" in page for name in ("a", "b", "c")) == 2
    blocks, rows = 24 // 4, 2
    for budget in BUDGETS:
        image = read_image(folder / "pictures" / f"tokens_{budget}.jpg")
        assert image.shape == (rows * (WIDTH + HEIGHT) + 8, blocks * WIDTH, 3)
    assert (folder / "pictures" / "reconstructions.webp").stat().st_size > 0


def test_a_timeline_draws_a_bar_for_the_tokens_of_each_block():
    video = torch.zeros(3, 8, 16, 16, dtype=torch.uint8)
    video[:, 4:] = 80
    picture = timeline(video, [8, 2], 8, mean=4)
    assert picture.shape == (3, WIDTH + HEIGHT, 2 * WIDTH)
    assert picture[:, :WIDTH, :WIDTH].max() == 0
    assert bool((picture[:, :WIDTH, WIDTH:] == 80).all())
    bars = picture[0, WIDTH:, [WIDTH // 2, WIDTH + WIDTH // 2]] < 100
    assert bars.sum(0).tolist() == [HEIGHT - 1, HEIGHT // 4]


def test_a_packaged_model_is_loaded_by_its_name_and_its_card_holds_the_numbers(stages, summarised, monkeypatch):
    folder = stages.folder / "models" / "toy"
    run = PackageRun(
        output_dir=str(folder),
        tokenizer=stages.path("tokenizer/export"),
        scorer=stages.path("scorer/export"),
        evaluation=str(summarised / "summary.json"),
        card=str(CARD),
        rules=("uniform", "clip"),
    )
    package(run)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    models = {f"{part}{file}" for part in ("", "scorer/") for file in ("config.json", "model.safetensors")}
    assert files == {"README.md", *models}
    card = (folder / "README.md").read_text()
    assert not re.search(r"\{(size|results|protocol|made)\}", card)
    assert card.count("\n| uniform |") == card.count("\n| clip |") == len(BUDGETS)
    assert "| clip_oracle |" not in card
    monkeypatch.setattr("genvid.checkpoint.SHIPPED", folder.parent)
    tokenizer = genvid.load("toy", device="cpu")
    video = torch.rand(1, 3, 8, 16, 16)
    assert tokenizer.encode(video, tokens=10).lengths.sum() <= 10
    (folder / CODE_COUNTS).write_bytes(b"counts")  # of a model that is given by its name, too
    packaged = package(replace(run, output_dir=f"{folder}_again", tokenizer="toy"))
    assert (packaged / CODE_COUNTS).read_bytes() == b"counts"
    with pytest.raises(ValueError, match="exists already"):
        package(run)
    with pytest.raises(ValueError, match=r"no results of jiont: set rules to some of clip, .*uniform"):
        package(replace(run, output_dir=f"{folder}_jiont", rules=("uniform", "jiont")))
    stages.run("scorer", "another_scorer", seed=1)
    with pytest.raises(ProvenanceError, match=r"summary\.json"):
        package(replace(run, output_dir=str(folder) + "2", scorer=stages.path("another_scorer/export")))
    assert not Path(f"{folder}2").exists()


def test_an_evaluation_of_some_allocators_gives_the_same_numbers(stages, evaluation):
    some = stages.run("evaluation", "some_allocators", allocators=["joint", "uniform"], budgets=BUDGETS[:1], shown=0)
    assert {path.stem for path in some.glob("*_*.json")} == {f"joint_{BUDGETS[0]}", f"uniform_{BUDGETS[0]}"}
    for path in some.glob("*_*.json"):
        again, whole = Report.load(path), Report.load(evaluation / path.name)
        assert [n.value for n in again.numbers] == pytest.approx([n.value for n in whole.numbers], rel=1e-6)


def test_a_killed_evaluation_goes_on_and_groups_are_whole_in_two_processes(stages, evaluation, monkeypatch):
    expected = {path.name: Report.load(path).numbers for path in evaluation.glob("*_*.json")}
    run = config.load(compare_allocators.EvaluationRun, stages.write("evaluation", "evaluation_killed"))
    groups, original = [], compare_allocators.Allocated.__call__

    def measured(self, conditioning, seeds):
        if (self.name, self.budget, len(groups)) == ("oracle", BUDGETS[1], 1):
            raise KeyboardInterrupt
        if self.name == "uniform" and self.budget == BUDGETS[0]:
            groups.append(conditioning["position"].tolist())
        return original(self, conditioning, seeds)

    monkeypatch.setattr(compare_allocators.Allocated, "__call__", measured)
    with pytest.raises(KeyboardInterrupt):
        compare_allocators.evaluate(replace(run, shown=0))
    groups.append([])
    reports, _ = compare_allocators.evaluate(replace(run, shown=0))
    assert groups == [list(range(GROUP)), [], list(range(GROUP, 2 * GROUP))]
    about = {name: model.describe() for (name, _), model in compare_allocators.Comparison(run).models.items()}
    rounds = {name: described.get("rounds") for name, described in about.items()}
    assert rounds == dict.fromkeys(ALLOCATORS) | {"joint": 1, "clip": 1, "oracle": 3, "clip_oracle": 3}
    two = stages.launch("evaluation", "evaluation_killed_two", shown=0)
    for report in reports:
        file = f"{report.title.replace(' @ ', '_')}.json"
        for numbers in (report.numbers, Report.load(two / file).numbers):
            assert [n.value for n in numbers] == pytest.approx([n.value for n in expected[file]], rel=1e-6)


def test_samples_are_scored_and_depend_on_the_seed_alone(stages):
    folder = stages.run("generation")
    report = Report.load(folder / "report.json")
    values = {number.name: number.value for number in report.numbers}
    assert 0 <= values["class as asked"] <= 1
    assert 2 * SIZES[0] <= values["tokens per clip"] <= 16
    assert [n for n in report.numbers if n.better == "lower"]
    run = config.load(GenerationRun, stages.folder / "generation.yaml")

    def sample(name: str, **changes: int) -> Samples:
        return generate(replace(run, output_dir=stages.path(f"generation_{name}"), **changes))

    first, again, other = generate(run), sample("again", batch_size=5, slots=3), sample("other", seed=1)
    assert first.generated.videos.shape == (16, 3, 8, 16, 16)
    assert torch.equal(first.generated.tokens.lengths, again.generated.tokens.lengths)
    assert torch.allclose(first.generated.videos, again.generated.videos, atol=1e-5)
    assert not torch.equal(first.generated.tokens.codes, other.generated.tokens.codes)
    classified = load_model(stages.folder / "classifier/export")(first.generated.videos).argmax(-1)
    assert values["class as asked"] == float((classified == first.labels).double().mean())


@pytest.mark.parametrize("context_blocks", [0, 1])
@pytest.mark.parametrize("framing", ["length", "end"])
def test_both_framings_generate_and_predict(stages, framing, context_blocks):
    name = f"ar_{framing}_{context_blocks}"
    stages.run("ar", name, framing=framing, context_blocks=context_blocks)
    out = stages.run("generation", f"samples_{name}", model=stages.path(f"{name}/export"))
    report = Report.load(out / "report.json")
    assert report.title == ("frame prediction" if context_blocks else "class-conditional")
    assert all(torch.tensor(number.value).isfinite() for number in report.numbers)


def test_draft_heads_and_a_model_of_groups_are_trained_from_the_same_cache(stages, capsys):
    shared = {name: stages.configs["ar"][name] for name in ("cache", "train")}
    recipes = {
        "ar_draft": {"task": "ar_draft", "model": stages.path("ar/export"), "heads": 2, **shared},
        "ar_groups": {**stages.configs["ar"], "task": "ar_groups", "groups": [1, 2]},
    }
    for name, recipe in recipes.items():
        stages.configs[name] = recipe
        stages.run(name)
        assert (stages.folder / name / "export" / "model.safetensors").is_file()
    stages.run("generation", "samples_groups", model=stages.path("ar_groups/export"))


def test_a_model_of_another_tokenizer_is_refused(stages, capsys):
    model = {**stages.configs["tokenizer"]["model"], "quantizer": {"type": "fsq", "levels": [5, 3]}}
    stages.run("tokenizer", "other_tokenizer", model=model, discriminator=None, train=stages.configs["ar"]["train"])
    tokens = {
        "tokenizer": stages.path("other_tokenizer/export"),
        "allocator": {"type": "uniform", "tokens_per_video": 16},
    }
    with pytest.raises(SystemExit):
        stages.run("generation", "mixed", tokens=tokens)
    assert "belongs to another tokenizer" in capsys.readouterr().err


def test_the_run_folder_says_what_was_run(stages):
    kept = yaml.safe_load((stages.folder / "tokenizer/config.yaml").read_text())
    assert kept["task"] == "adaptok"
    assert kept["data"]["source"].items() >= clips()["source"].items()


def _report(title: str, value: float, tokens: float) -> Report:
    record = EvaluationProtocol("toy", "reconstruction", "clips", "val", 8, "first", 4, 16, features="")
    numbers = [Number("distance", value, record, 4), Number("tokens per clip", tokens, record, 4)]
    return Report(title, numbers, Provenance("0", "evaluate", "2026-01-01"))


def test_a_gap_is_closed_where_there_is_one_and_at_equal_cost():
    reports = [
        _report("uniform @ 10", 4.0, 10),
        _report("group @ 10", 3.5, 10),
        _report("threshold @ 10", 3.0, 15),
        _report("clip @ 10", 3.5, 10),
        _report("oracle @ 10", 2.0, 10),
        _report("clip_oracle @ 10", 3.0, 10),
        _report("uniform @ 20", 2.0, 20),
        _report("group @ 20", 2.0 - 1e-13, 20),
        _report("threshold @ 20", 1.5, 20.3),
        _report("oracle @ 20", 2.0 - 2e-13, 20),
    ]
    rows = gaps(reports, "distance")
    assert {(row.rule, row.budget): row.closed for row in rows} == {
        ("uniform", 10): 0.0,
        ("group", 10): 25.0,
        ("threshold", 10): 0.0,
        ("clip", 10): 50.0,
        ("oracle", 10): 100.0,
        ("clip_oracle", 10): 100.0,
        **{(name, 20): None for name in ("uniform", "group", "threshold", "oracle")},
    }
    assert {row.rule: row.uniform for row in rows if row.budget == 10} == {
        "uniform": 1.0,
        "group": 1.25,
        "threshold": 1.0,
        "clip": 1.25,
        "oracle": 2.0,
        "clip_oracle": 1.5,
    }
    header, cells = gap_table(rows, "distance")
    assert header[-2:] == ["gap closed, %", "uniform tokens for the same"]
    assert cells[1] == ["10", "group", 10, 3.5, 25.0, 1.25]
    header, _ = gap_table(gaps(reports[1:4], "distance"), "distance")
    assert header == ["mean budget", "allocator", "tokens spent", "distance"]


def _items_read(monkeypatch, module, reader) -> list[int]:
    """Items that a recipe reads, in their order."""
    read: list[int] = []

    def recorded(*args, **options):
        for batch in reader(*args, **options):
            read.extend(batch["index"].tolist())
            yield batch

    monkeypatch.setattr(module, reader.__name__, recorded)
    return read


def test_calibration_clips_are_drawn_over_all_sources(stages, monkeypatch):
    read = _items_read(monkeypatch, calibrate, numbered_batches)
    both = {"type": "joined", "sources": [{"type": "synthetic", "clips": 32, "seed": seed} for seed in (0, 1)]}
    data = {"source": both, "clip": stages.configs["calibration"]["data"]["clip"]}
    path = stages.run("calibration", "calibration_of_both", data=data, clips=16, precision="bf16")
    assert len(set(read)) == 16
    assert 4 <= sum(index < 32 for index in read) <= 12
    assert Calibration.load(path / "calibration.json").provenance.seed == 0
    first = set(read)
    read.clear()
    stages.run("calibration", "calibration_of_others", data=data, clips=16, seed=1)
    assert set(read) != first


def test_groups_of_an_evaluation_are_drawn_and_the_protocol_says_so(stages, monkeypatch):
    read = _items_read(monkeypatch, selection, load_batches)
    path = stages.run("evaluation", "drawn_groups", allocators=["joint"], budgets=BUDGETS[:1], shown=0)
    assert sorted(read) == list(range(32))
    assert read[:GROUP] != list(range(GROUP))
    report = Report.load(path / f"joint_{BUDGETS[0]}.json")
    assert "drawn over the data set" in report.numbers[0].protocol.note


def test_an_evaluation_of_some_clips_draws_them(stages, monkeypatch, capsys):
    read = _items_read(monkeypatch, selection, load_batches)
    path = stages.run("evaluation", "some_clips", allocators=["joint"], budgets=BUDGETS[:1], shown=0, clips=10)
    assert len(set(read)) == 10
    assert max(read) >= 10
    numbers = {number.name: number for number in Report.load(path / f"joint_{BUDGETS[0]}.json").numbers}
    assert {number.protocol.count for number in numbers.values()} == {10}
    assert "structure distance" in numbers  # the perceptual part of the distortion, given once
    assert f"joint @ {BUDGETS[0]}" in capsys.readouterr().err


def test_a_calibration_made_before_clips_were_drawn_loads(stages, tmp_path):
    data = json.loads((stages.folder / "calibration" / "calibration.json").read_text())
    del data["provenance"]["seed"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert Calibration.load(tmp_path / "old.json").provenance.seed is None
