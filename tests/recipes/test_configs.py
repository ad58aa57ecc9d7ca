"""Every recipe that is shipped can be read."""

from pathlib import Path

import pytest
import torch
import yaml

from genvid import config
from genvid.ar.config import ARConfig
from genvid.ar.model import BlockTransformer
from genvid.eval.protocols import data_protocol
from genvid.perceptual import StructureDistance
from genvid.recipes.cache_tokens import CacheRun
from genvid.recipes.calibrate import CalibrationRun
from genvid.recipes.compare_allocators import EvaluationRun
from genvid.recipes.compare_lit import LITEvaluationRun
from genvid.recipes.generate import GenerationRun
from genvid.recipes.package_model import PackageRun
from genvid.recipes.prepare_videos import PreparationRun
from genvid.recipes.runs import RUNS
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.adaptok.tasks import AdapTokTask
from genvid.tokenizer.losses import Distortion, DistortionConfig
from genvid.tokens.rows import BlockLayout

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
LAUNCH = sorted((CONFIGS / "accelerate").glob("*.yaml"))
RECIPES = sorted(set(CONFIGS.rglob("*.yaml")) - set(LAUNCH))
BY_NAME = {
    "calibration": CalibrationRun,
    "cache": CacheRun,
    "held_out_cache": CacheRun,
    "evaluation": EvaluationRun,
    "keep_rates": LITEvaluationRun,
    "generation": GenerationRun,
    "prediction": GenerationRun,
    "package": PackageRun,
    "prepare": PreparationRun,
}


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipes_are_read_into_their_runs(path):
    task = yaml.safe_load(path.read_text()).get("task")
    run = config.load(RUNS[task] if task else BY_NAME[path.stem], path)
    assert config.decode(type(run), config.encode(run)) == run


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_training_recipes_have_an_optimizer_for_each_phase(path):
    recipe = yaml.safe_load(path.read_text())
    if "train" in recipe:
        phases = ["generator", "discriminator"] if recipe.get("discriminator") else ["model"]
        assert list(recipe["train"]["optimizers"]) == phases


@pytest.mark.parametrize("path", LAUNCH, ids=name)
def test_launch_files_say_how_many_processes(path):
    launch = yaml.safe_load(path.read_text())
    assert launch["num_processes"] >= 1
    assert launch["distributed_type"] in ("NO", "MULTI_GPU", "FSDP", "DEEPSPEED")
    assert (launch["num_processes"] > 1) == (launch["distributed_type"] != "NO")


@pytest.mark.parametrize("path", LAUNCH, ids=name)
def test_launch_files_leave_to_the_recipe_what_is_the_recipes(path):
    launch = yaml.safe_load(path.read_text())
    settings = {*launch, *launch.get("deepspeed_config", {}), *launch.get("fsdp_config", {})}
    assert not settings & {"mixed_precision", "gradient_clipping", "gradient_accumulation_steps", "dynamo_config"}


PUBLISHED = {"tokenizer": 195.06, "ar": 633.3, "scorer": 88.96}
"""Millions of parameters (arXiv 2505.17011); of the tokenizer with its prior, without its discriminator."""


@pytest.mark.parametrize("folder", ["ucf101", "k600"])
def test_recipes_of_the_publication_have_its_sizes(folder):
    tokenizer = config.load(RUNS["adaptok"], CONFIGS / folder / "tokenizer.yaml")
    scorer = config.load(RUNS["scorer"], CONFIGS / folder / "scorer.yaml")
    ar = config.load(RUNS["ar"], CONFIGS / folder / "ar.yaml")
    layout = BlockLayout(8192, 101, 4, 512, sizes=scorer.sizes, framing=ar.framing)
    with torch.device("meta"):
        task = AdapTokTask(tokenizer.model, tokenizer.objective, Distortion(DistortionConfig(), StructureDistance()))
        models = {
            "tokenizer": task,
            "ar": BlockTransformer(ARConfig(layout, ar.model, context_blocks=ar.context_blocks)),
            "scorer": Scorer(
                ScorerConfig.for_tokenizer(
                    tokenizer.model, scorer.model, sizes=scorer.sizes, metric="lpips", gains=scorer.gains
                )
            ),
        }
    for part, model in models.items():
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        # Positions are rotary where the published model learned 2,052 of them: 2.6 M.
        assert millions == pytest.approx(PUBLISHED[part], abs=3.0), part


def test_the_tiny_tokenizer_and_its_scorer_are_15_megabytes():
    tokenizer = config.load(RUNS["adaptok"], CONFIGS / "tiny" / "tokenizer.yaml")
    scorer = config.load(RUNS["scorer"], CONFIGS / "tiny" / "scorer.yaml")
    with torch.device("meta"):
        shape = ScorerConfig.for_tokenizer(
            tokenizer.model, scorer.model, sizes=scorer.sizes, metric="x", gains=scorer.gains
        )
        models = AdapTok(tokenizer.model), Scorer(shape)
    assert tokenizer.train.export_precision == scorer.train.export_precision == "bf16"
    assert 2 * sum(parameter.numel() for model in models for parameter in model.parameters()) < 15e6


def test_recipes_of_fine_tuning_have_the_config_of_their_source():
    recipes = ("finetune/tiny", "finetune/adaptok", "tiny/tokenizer")
    runs = {name: config.load(RUNS["adaptok"], CONFIGS / f"{name}.yaml") for name in recipes}
    assert runs["finetune/tiny"].model == runs["tiny/tokenizer"].model
    assert runs["finetune/adaptok"].model == AdapTokConfig()


SEMANTIC = "{teacher: {type: module, source: a:b}, decoder: {weight: -1}}"


@pytest.mark.parametrize(
    ("recipe", "override", "words"),
    [
        ("tokenizer", "--model.encoder.heads=0", "width, depth and heads are at least 1, got 384, 4 and 0"),
        ("tokenizer", "--model.encoder.depth=0", "width, depth and heads are at least 1, got 384, 0 and"),
        ("tokenizer", "--data.clip.resolution=32", r"data\.clip\.resolution must be a list \[a, b\], got '32'"),
        ("tokenizer", "--data.clip.frames=12", "12 frames leave the last blocks of a tokenizer of 16 frames untrained"),
        ("tokenizer", f"--seed={2**70}", "seed must be an integer of 64 bits"),
        ("ar", "--model.kv_heads=0", "model.kv_heads must be at least 1, got 0"),
        ("ar", "--model.depth=0", "model.depth must be at least 1, got 0"),
        ("ar", "--train.optimizers.model.warmup_steps=-1", "warmup_steps"),
        ("ar", "--train.optimizers.model.final_lr=-1", "final_lr"),
        ("ar", "--train.optimizers.model.weight_decay=-1", "weight_decay"),
        ("tokenizer", "--model.quantizer={type: vq, temperature: 0}", "temperature of a quantizer is above 0"),
        ("tokenizer", "--model.quantizer={type: vq, code_dim: 0}", "quantizer.code_dim must be at least 1, got 0"),
        ("tokenizer", "--objective.prior={temperature: 0}", "temperature of a prior is above 0"),
        ("tokenizer", "--objective.quantizer_weight=-1", "objective.quantizer_weight is at least 0, got -1"),
        ("tokenizer", f"--objective.semantic={SEMANTIC}", "semantic.decoder.weight is at least 0, got -1"),
        ("tokenizer", "--discriminator={every: 0}", "discriminator.every must be at least 1, got 0"),
        ("tokenizer", "--objective.tail_drop={mean: 400, std: 1, minimum: 8, maximum: 64}", "tail_drop draws nothing"),
        ("cache", "--passes=0", "passes must be at least 1, got 0"),
        ("calibration", "--clips=-1", "clips must be at least 1, got -1"),
        ("calibration", "--budgets=[]", "budgets are one or more numbers of tokens"),
        ("calibration", "--budgets=[512, 512]", "budgets are one or more numbers of tokens, all different"),
        ("evaluation", "--batch_size=0", "batch_size must be at least 1, got 0"),
        ("evaluation", "--shown=-1", "shown is at least 0, got -1"),
        ("generation", "--slots=0", "slots must be at least 1, got 0"),
        ("cache", "--tokens.allocator.group_size=0", "group_size must be at least 1, got 0"),
    ],
)
def test_impossible_values_of_recipes_are_one_sentence(recipe, override, words):
    path = CONFIGS / "folder64" / f"{recipe}.yaml"
    task = yaml.safe_load(path.read_text()).get("task")
    with pytest.raises(config.ConfigError, match=words):
        config.load(RUNS[task] if task else BY_NAME[recipe], path, [override])


def test_shorter_clips_train_a_tokenizer_whose_last_blocks_come_from_another():
    run = config.load(
        RUNS["adaptok"], CONFIGS / "folder64" / "tokenizer.yaml", ["--data.clip.frames=12", "--init_from=a"]
    )
    assert (run.data.clip.frames, run.model.frames) == (12, 16)


FOLDERS = [path for path in RECIPES if "type: folder" in path.read_text()]


@pytest.mark.parametrize("path", FOLDERS, ids=name)
def test_recipes_for_folders_train_and_evaluate_on_other_videos(path):
    recipe = yaml.safe_load(path.read_text())
    evaluates = path.stem in ("evaluation", "generation", "prediction", "keep_rates", "held_out_cache")
    source = recipe["data"]["source"]
    source = source["source"] if source["type"] == "balanced" else source
    folders = [part for part in source.get("sources", [source]) if part["type"] == "folder"]
    if "davis" not in path.parts and "tokenbench" not in path.parts:
        assert [folder["held_out"] for folder in folders] == [evaluates]


def test_the_split_of_a_number_is_that_of_its_clips():
    path = CONFIGS / "folder64" / "evaluation.yaml"
    run = config.load(EvaluationRun, path)
    assert data_protocol(run.data, run.protocol, "reconstruction", 4).split == "held out"
    training = config.load(EvaluationRun, path, ["--data.source.held_out", "false", "--protocol", "clips"])
    assert data_protocol(training.data, training.protocol, "reconstruction", 4).split == "training"


@pytest.mark.parametrize("held_out", ["false", "null"])
@pytest.mark.parametrize(
    "recipe", ["folder64/evaluation", "folder128/evaluation", "folder64/generation", "lit/keep_rates"]
)
def test_training_clips_are_never_called_held_out(recipe, held_out):
    path = CONFIGS / f"{recipe}.yaml"
    cls = BY_NAME[path.stem]
    with pytest.raises(config.ConfigError, match="says held out, but the split of its clips is"):
        config.load(cls, path, ["--data.source.held_out", held_out])
    splits = ["--data.source.manifest", "m.tsv", "--data.source.held_out", "null", "--data.source.split"]
    config.load(cls, path, [*splits, "val"])
    with pytest.raises(config.ConfigError, match="says held out, but the split of its clips is 'train'"):
        config.load(cls, path, [*splits, "train"])


def test_there_are_recipes():
    assert len(RECIPES) >= 10
    assert len(LAUNCH) >= 2
