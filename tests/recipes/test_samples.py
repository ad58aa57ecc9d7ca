"""Folders of samples: budgets, processes, kills."""

import json
import weakref
from dataclasses import replace

import pytest
import torch

from genvid import config
from genvid.data import one_pass
from genvid.data.loader import load_batches
from genvid.eval import selection
from genvid.eval.report import Report
from genvid.generation import folder
from genvid.generation.folder import SampleFolder, SampleFolderError
from genvid.generation.guidance import ByBlock
from genvid.recipes import compare_budgets, compare_guidance, comparison
from genvid.recipes import generate as recipe
from genvid.recipes.generate import GenerationRun, generate
from genvid.recipes.samples_page import Samples

pytestmark = pytest.mark.gpu
TOTAL = {"total": 160, "group_size": 4, "forecast_rows": 4}


def index(path):
    return [json.loads(line) for line in (path / "samples" / "index.jsonl").read_text().splitlines()]


def spent(path):
    return [sum(line["tokens"]) for line in index(path)]


@pytest.fixture(scope="module")
def run(stages) -> GenerationRun:
    stages.write("generation", "generation_samples")
    return config.load(GenerationRun, stages.folder / "generation_samples.yaml")


def test_samples_keep_their_budget(stages, run):
    settings = ("--budget.tokens_per_video=9", "--format=npz", "--features=tiny_recipes:MeanColour")
    apart = stages.run("generation", "samples_apart", *settings)
    names = [number.name for number in Report.load(apart / "report.json").numbers]
    assert sum(name.startswith("Frechet distance (tiny_recipes:MeanColour ") for name in names) == 2
    assert max(spent(apart)) <= 9
    assert [line["budget"] for line in index(apart)] == [9] * 16
    assert {line["file"] for line in index(apart)} == {f"{i:05d}.npz" for i in range(16)}
    together = stages.run("generation", "samples_together", budget=TOTAL, format="png")
    assert sum(spent(together)) <= 160
    assert len(list((together / "samples" / "00003").iterdir())) == 8
    said = {number.name: number.value for number in Report.load(together / "report.json").numbers}
    assert said["tokens per clip"] == sum(spent(together)) / 16


def test_classes_are_sampled_as_often_as_they_are_among_the_real_clips(stages, run, capsys):
    data = config.encode(run)["data"]
    data = {**data, "source": {**data["source"], "clips": 12}}  # classes 0 to 3 twice, 4 to 7 once
    uneven = stages.run("generation", "samples_uneven", data=data, balanced=False, count=24)
    labels = torch.tensor([line["label"] for line in index(uneven)])
    assert labels.bincount().tolist() == [4, 4, 4, 4, 2, 2, 2, 2]
    assert set(labels[:12].tolist()) != {0, 1, 2}  # drawn, not in the order of the classes
    with pytest.raises(SystemExit):
        stages.run("generation", "samples_uneven", data=data, count=24)
    assert "already holds other samples" in capsys.readouterr().err


def test_a_run_that_was_killed_goes_on_where_it_stopped(stages, run, monkeypatch):
    budget = config.decode(GenerationRun, {**config.encode(run), "budget": TOTAL}).budget
    run = replace(run, budget=budget, batch_size=4, slots=4)
    whole = generate(replace(run, output_dir=stages.path("samples_straight")))
    killed = replace(run, output_dir=stages.path("samples_killed"))
    original, written = folder.SampleWriter.write, []

    def write(self, path, number, video, tokens):
        if len(written) == 10:  # in the middle of a batch
            raise KeyboardInterrupt
        written.append(number)
        return original(self, path, number, video, tokens)

    monkeypatch.setattr(folder.SampleWriter, "write", write)
    with pytest.raises(KeyboardInterrupt):
        generate(killed)
    monkeypatch.setattr(folder.SampleWriter, "write", original)
    again = []
    monkeypatch.setattr(folder.SampleWriter, "write", lambda *a: (again.append(a[2]), original(*a))[1])
    made = generate(killed)
    assert isinstance(made, Samples)
    assert 0 < len(again) < 16
    assert torch.equal(made.generated.tokens.lengths, whole.generated.tokens.lengths)
    assert torch.equal(made.generated.videos, whole.generated.videos)
    assert index(stages.folder / "samples_killed") == index(stages.folder / "samples_straight")
    again.clear()
    generate(killed)
    assert not again


def test_two_processes_make_the_samples_that_one_does(stages, run):
    one = stages.run("generation", "samples_one", budget=TOTAL)
    two = stages.launch("generation", "samples_two", budget=TOTAL)
    assert index(one) == index(two)
    assert not list((two / "samples").glob("index.*.jsonl"))
    numbers = [Report.load(path / "report.json").numbers for path in (one, two)]
    assert [n.value for n in numbers[0]] == pytest.approx([n.value for n in numbers[1]], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": {"tokens_per_video": 1}}, "1 tokens cannot pay for 1 videos of 2 blocks, which need at least 2"),
        ({"budget": {"tokens_per_video": 9, "total": 9}}, "either tokens_per_video or total"),
        ({"format": "gif"}, "written as mp4, npz, png, not 'gif'"),
        ({"slots": 0}, "slots must be at least 1"),
        ({"seed": 2**70}, "seed must be an integer of 64 bits"),
        ({"fps": 0}, "a frame rate is 0.0001 to 1000000 frames per second, got 0"),
        ({"precision": "auto"}, "precision must be one of fp32, bf16, got 'auto'"),
    ],
)
def test_bad_requests_are_said_in_words(stages, capsys, changes, words):
    with pytest.raises(SystemExit):
        stages.run("generation", f"samples_bad_{len(words)}", **changes)
    assert words in capsys.readouterr().err


def test_budgets_are_compared_over_the_same_requests(stages, run, monkeypatch, capsys):
    monkeypatch.setattr(compare_budgets, "SHARES", (0.5,))
    path = stages.path("samples_budgets")
    compare_budgets.main([str(stages.folder / "generation_samples.yaml"), f"--output_dir={path}", "--count=8"])
    printed = capsys.readouterr().out
    reports = [Report.load(file) for file in (stages.folder / "samples_budgets" / "budgets").glob("*.json")]
    cost = {report.title: report.value(compare_budgets.COST) for report in reports}
    budget = int(cost["free"] / 2)
    ways = ["planned together", "planned each", "cut"]
    assert set(cost) == {"free", *(f"{way} @ {budget}" for way in ways)}
    assert all(cost[f"{way} @ {budget}"] <= budget for way in ways)
    assert all(way in printed for way in ways)
    with pytest.raises(SystemExit):
        compare_budgets.main([str(stages.folder / "generation_samples.yaml"), "--budget.total=100"])
    assert "sets the budgets itself" in capsys.readouterr().err


def test_models_that_cannot_be_compared_are_refused_before_anything_is_sampled(stages, run, monkeypatch):
    monkeypatch.setattr(comparison, "generate", lambda run: pytest.fail("sampled"))
    predictor = stages.run("ar", "ar_unguided", context_blocks=1) / "export"
    ends = stages.run("ar", "ar_ends", framing="end") / "export"
    for compare, model, words in (
        (compare_budgets.compare_budgets, predictor, "predicts frames"),
        (compare_budgets.compare_budgets, ends, "cannot be planned"),
        (compare_guidance.compare_guidance, predictor, "no condition to guide by"),
    ):
        with pytest.raises(ValueError, match=words):
            compare(comparison.Comparison(replace(run, model=str(model)), "compared"))


def test_predictions_of_few_clips_share_the_budget_of_these(stages, run, monkeypatch, capsys):
    monkeypatch.setattr(compare_guidance, "SHARES", (0.5,))
    monkeypatch.setattr(compare_guidance, "GUIDANCE", {"2": 2.0})
    model = stages.run("ar", "ar_guided", context_blocks=1, objective={"context_dropout": 0.5}) / "export"
    path, source = stages.path("samples_few"), replace(run.data.source, clips=8)
    few = replace(run, output_dir=path, model=str(model), count=100, data=replace(run.data, source=source))
    [report] = compare_guidance.compare_guidance(comparison.Comparison(few, "guidance"))
    assert "8 clips can be continued, so there are as many samples, not 100" in capsys.readouterr().out
    free, lines = (
        index(stages.folder / "samples_few" / "guidance" / title.replace(" ", "_")) for title in ("free", report.title)
    )
    generated = [sum(sum(line["tokens"][1:]) for line in part) / 8 for part in (free, lines)]
    assert report.title == f"2 @ {int(generated[0] / 2)}"
    assert report.value("generated tokens per clip") == generated[1]
    assert sum(sum(line["tokens"][1:]) for line in lines) <= 8 * int(report.title.removeprefix("2 @ "))


def test_guidance_is_compared_at_the_same_budgets(stages, run, monkeypatch, capsys):
    monkeypatch.setattr(compare_guidance, "SHARES", (0.5,))
    monkeypatch.setattr(compare_guidance, "GUIDANCE", {"2": 2.0, "by block": ByBlock((3.0, 1.0))})
    path = stages.path("samples_guidance")
    compare_guidance.main([str(stages.folder / "generation_samples.yaml"), f"--output_dir={path}", "--count=8"])
    printed = capsys.readouterr().out
    folder = stages.folder / "samples_guidance" / "guidance"
    reports = {report.title: report for report in map(Report.load, folder.glob("*.json"))}
    budget = int(printed.split("by block @ ")[1].split()[0])
    assert set(reports) == {f"2 @ {budget}", f"by block @ {budget}"}
    assert all(report.value("tokens per clip") <= budget for report in reports.values())
    with pytest.raises(SystemExit):
        compare_guidance.main([str(stages.folder / "generation_samples.yaml"), "--budget.total=100"])
    assert "sets the budgets itself" in capsys.readouterr().err


def test_samples_of_another_seed_are_not_mixed_in(stages, capsys):
    stages.run("generation", "samples_seed")
    with pytest.raises(SystemExit):
        stages.run("generation", "samples_seed", seed=3)
    assert "already holds other samples (seed is 0 there, 3 here)" in capsys.readouterr().err


def test_a_folder_in_which_nothing_was_sampled_is_free(tmp_path):
    SampleFolder(tmp_path / "samples", {"seed": 0})
    samples = SampleFolder(tmp_path / "samples", {"seed": 3})
    samples.add([{"number": 0}])
    with pytest.raises(SampleFolderError, match=r"already holds other samples \(seed is 3 there, 4 here\)"):
        SampleFolder(tmp_path / "samples", {"seed": 4})


def test_a_line_that_was_cut_short_is_sampled_again(tmp_path):
    about, path = {"seed": 0}, tmp_path / "samples"
    SampleFolder(path, about).add([{"number": 0}, {"number": 1}])
    whole = (path / "index.0.jsonl").read_bytes()
    for length in range(len(whole) // 2, len(whole)):
        (path / "index.0.jsonl").write_bytes(whole[:length])
        samples = SampleFolder(path, about)
        assert list(samples.samples()) == [0]
        samples.add([{"number": 1}])
        assert (path / "index.0.jsonl").read_bytes() == whole
    other = SampleFolder(path, about, part=1)
    other.add([{"number": 2}])
    (path / "index.0.jsonl").write_bytes(whole[:-3])  # of a process that did not come back
    other.finish()
    assert [json.loads(line)["number"] for line in (path / "index.jsonl").read_text().splitlines()] == [0, 2]
    (path / "index.jsonl").write_bytes(b"{\n" + whole)
    with pytest.raises(SampleFolderError, match=r"index.jsonl is damaged"):
        SampleFolder(path, about).samples()


def test_the_last_line_of_a_video_that_was_sampled_again_counts(tmp_path):
    samples = SampleFolder(tmp_path / "samples", {"seed": 0})
    samples.add([{"number": 1, "tokens": [2]}, {"number": 0, "tokens": [4]}])
    samples.add([{"number": 1, "tokens": [1]}])  # a group that was interrupted, whose rounding is another on a GPU
    assert samples.samples() == {0: {"number": 0, "tokens": [4]}, 1: {"number": 1, "tokens": [1]}}


def test_the_index_grows_by_its_new_lines_alone(tmp_path, monkeypatch):
    samples = SampleFolder(tmp_path / "samples", {"seed": 0})
    samples.begin()
    monkeypatch.setattr(folder, "write_atomically", lambda path: pytest.fail(f"{path} is written anew"))
    for number in range(40):
        samples.add([{"number": number}])
    assert list(samples.samples()) == list(range(40))


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(SampleFolderError, match="is not a folder of samples; choose another"):
        SampleFolder(tmp_path, {"seed": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.mp4"]
    SampleFolder(tmp_path / "new", {"seed": 0})
    assert not (tmp_path / "new").exists()


def _data(stages, clips):
    return {**stages.configs["generation"]["data"], "source": {"type": "synthetic", "clips": clips, "seed": 1}}


@pytest.mark.parametrize("clips", [4, 9])
def test_few_real_clips_are_halved_exactly(stages, clips):
    folder = stages.run("generation", f"samples_of_{clips}", data=_data(stages, clips), count=4)
    numbers = Report.load(folder / "report.json").numbers
    floor = next(number for number in numbers if "real against real" in number.name)
    assert floor.count == floor.protocol.count == clips // 2
    assert floor.value > 0


def test_too_few_clips_are_refused_before_sampling(stages, capsys):
    for clips, count, said in ((3, 4, "got 3 and 4"), (8, 1, "got 8 and 1")):
        name = f"samples_refused_{clips}"
        with pytest.raises(SystemExit):
            stages.run("generation", name, data=_data(stages, clips), count=count)
        assert said in capsys.readouterr().err
        assert not (stages.folder / name).exists()


def test_real_clips_are_never_all_in_memory(stages, run, monkeypatch, tmp_path):
    alive: list[weakref.ref] = []

    def watched(*args, **options):
        for batch in load_batches(*args, **options):
            alive.append(weakref.ref(batch["video"]))
            assert sum(video() is not None for video in alive) <= 2
            yield batch

    monkeypatch.setattr(selection, "load_batches", watched)
    monkeypatch.setattr(recipe, "SCORED", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the features of real clips are computed again
    generate(replace(run, output_dir=stages.path("samples_streamed"), batch_size=2))
    assert len(alive) == 16


def test_frames_that_are_continued_are_drawn_among_all_clips(stages, run, monkeypatch):
    stages.run("ar", "ar_of_prompts", context_blocks=1)
    read = []
    monkeypatch.setattr(recipe, "one_pass", lambda *a, **o: (read.append(list(o["items"])), one_pass(*a, **o))[1])
    made = generate(replace(run, model=stages.path("ar_of_prompts/export"), output_dir=stages.path("drawn"), count=8))
    assert len(read[0]) == len(made.real) == 8
    assert read[0] != list(range(8))
