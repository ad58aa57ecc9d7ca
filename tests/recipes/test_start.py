"""Every stage starts from weights: strictly, apart from the parts that may differ; the origin names the source."""

import json
import shutil

import pytest
import torch
import yaml
from tiny_recipes import NETWORK, training

from genvid.checkpoint import CheckpointError, fingerprint, load_model, read_weights
from genvid.provenance import ProvenanceError
from genvid.recipes.train import main, read_run
from genvid.train.start import TRAINING, start_from


def started(stages, stage, source, may_differ=(), **changes):
    """The task of a stage, with other keys of its recipe, after its start from `source`."""
    torch.manual_seed(1)
    task, _ = read_run([str(stages.write(stage, "started", **changes))]).build()
    start_from(task, str(source), may_differ)
    return task


def changed(stages, **model):
    return {**stages.configs["tokenizer"]["model"], **model}


@pytest.mark.parametrize("stage", ["tokenizer", "scorer", "ar", "classifier"])
def test_every_stage_starts_from_its_export(stages, stage):
    export = stages.folder / stage / "export"
    model = started(stages, stage, export).exportable()
    weights = load_model(export).state_dict()
    assert model.origin.made_from["initial weights"] == fingerprint(export)
    assert model.state_dict().keys() == weights.keys()
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


def test_an_autoencoder_starts_from_its_export(tmp_path):
    pytest.importorskip("diffusers", reason="codecs of diffusers need the extra genvid[lit]")
    from genvid.tokenizer.lit.codecs.autoencoder import AutoencoderConfig, VideoAutoencoder

    trained = VideoAutoencoder(AutoencoderConfig(4, (16, 16, 16), (16, 16, 16), layers=1))
    trained.moments = torch.stack([torch.full((4,), 0.5), torch.full((4,), 1.0)])
    trained.save(tmp_path / "export")
    opened = VideoAutoencoder.open(tmp_path / "export")
    assert opened.config == trained.config
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(opened.state_dict()[name], value)
    assert opened.fingerprint is not None


@pytest.mark.parametrize(
    ("model", "may_differ", "words"),
    [
        ({"resolution": [24, 16]}, (), r"resolution is \[16, 16\] there and \[24, 16\] here; .* add resolution to"),
        ({"decoder": {**NETWORK, "heads": 4}}, (), "decoder.heads is 2 there and 4 here"),
        ({"block_capacity": 4}, ("block_capacity",), "encoder_positions.queries is .* list in may_differ"),
        ({"decoder": {**NETWORK, "depth": 2}}, ("decoder.depth",), "missing decoder.1"),
        ({"pooled_queries": True}, ("pooled_querys",), "no weight; did you mean pooled_queries"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(stages, model, may_differ, words):
    drop = {"tail_drop": {"mean": 2, "std": 1, "minimum": 1, "maximum": 4}, "prior": None}
    data = {
        **stages.configs["tokenizer"]["data"],
        "clip": {"frames": 8, "resolution": model.get("resolution", [16, 16])},
    }
    with pytest.raises(ValueError, match=words):
        started(
            stages,
            "tokenizer",
            stages.folder / "tokenizer/export",
            may_differ,
            model=changed(stages, **model),
            objective=drop,
            data=data,
        )


def test_models_of_another_type_are_refused(stages):
    with pytest.raises(CheckpointError, match="holds a model of type video_classifier, not a AdapTok"):
        started(stages, "tokenizer", stages.folder / "classifier/export")


def test_parts_that_may_differ_start_anew_where_they_do_not_fit(stages, caplog):
    source = stages.folder / "tokenizer/export"
    model = changed(stages, resolution=[24, 16], quantizer={"type": "vq", "codebook_size": 32, "code_dim": 2})
    data = {**stages.configs["tokenizer"]["data"], "clip": {"frames": 8, "resolution": [24, 16]}}
    task = started(stages, "tokenizer", source, ("resolution", "quantizer"), model=model, data=data)
    weights, state = read_weights(source), task.exportable().state_dict()
    assert set(state) - set(weights) == {"quantizer.embedding"}
    assert all(state[name].equal(value) for name, value in weights.items())
    assert "new weights of quantizer, prior, discriminator" in caplog.text


def test_a_run_keeps_its_discriminator_beside_the_export_and_starts_from_it(stages, tmp_path):
    plain, kept = stages.folder / "tokenizer", tmp_path / "kept"
    settings = {**training("generator", "discriminator"), "export_training": True}
    shutil.copytree(plain, kept)
    main([str(stages.write("tokenizer", "kept", output_dir=str(kept), train=settings))])
    assert fingerprint(kept / "export") == fingerprint(plain / "export")
    assert not (plain / "export" / TRAINING).exists()
    task = started(stages, "tokenizer", kept / "export")
    trained = read_weights_of_run(kept)
    assert all(
        value.equal(trained[f"task.{name}"]) for name, value in task.discriminator.named_parameters("discriminator")
    )
    assert task.lecam.real_mean.equal(trained["task.lecam.real_mean"])
    assert task.prior.read.weight.equal(trained["task.prior.read.weight"])
    load_model(plain / "export").save(other := tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    shutil.copy(kept / "export" / TRAINING, other)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        started(stages, "tokenizer", other)


def read_weights_of_run(folder):
    from safetensors.torch import load_file

    return load_file(folder / "checkpoints/step_00000002/state.safetensors")


def test_the_command_records_its_source_and_goes_on_from_the_same_one(stages, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(stages.folder / "classifier/export", source)
    settings = training(steps=1)
    main([str(stages.write("classifier", "tuned", init_from=str(source), train=settings))])
    origin = json.loads((stages.folder / "tuned/origin.json").read_text())
    assert origin["made_from"]["initial weights"] == fingerprint(source)
    config = stages.folder / "tuned.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "train": {**settings, "steps": 2}}))
    (source / "config.json").write_text((source / "config.json").read_text() + "\n")
    with pytest.raises(ProvenanceError, match="not made from this initial weights"):
        main.__wrapped__([str(config)])
