"""Model folders: what is written is read back, and whatever does not fit is said in one sentence."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from genvid import checkpoint
from genvid.checkpoint import CheckpointError, Model, fingerprint, load_model, read_weights, resolve
from genvid.provenance import Origin


@dataclass(frozen=True)
class LayerConfig:
    width: int = 4
    bias: bool = True


@dataclass(frozen=True)
class ToyConfig:
    layer: LayerConfig = field(default_factory=LayerConfig)
    name: str = "toy"


class Toy(Model):
    model_type = "toy"
    config_type = ToyConfig
    config: ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.layer = nn.Linear(config.layer.width, 2, bias=config.layer.bias)
        self.register_buffer("mean", torch.zeros(3))


class Failing(Toy):
    def _write(self, folder):
        super()._write(folder)
        raise OSError("disk full")


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(checkpoint.MODELS, "toy", f"{__name__}:Toy")
    torch.manual_seed(0)
    return Toy(ToyConfig(LayerConfig(width=5)))


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, change):
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe{"])
def test_a_config_that_is_no_json_is_refused(folder, text):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        load_model(folder)


def edit_weights(folder, change):
    weights = read_weights(folder)
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def test_a_saved_model_is_read_back_whole(model, folder):
    loaded = load_model(str(folder))
    assert isinstance(loaded, Toy)
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_saving_writes_its_two_files_and_touches_nothing_else(model, folder):
    model.save(folder / "scorer")
    (folder / "README.md").write_text("what it is")
    other = Toy(replace(model.config, name="other"))
    other.save(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors", "scorer"]
    assert Toy.load(folder).config.name == "other"
    assert Toy.load(folder / "scorer").config.name == "toy"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_whoever_may_read_the_config_may_read_the_weights(model, folder):
    model.save(folder)
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_a_link_is_a_folder_to_save_into(model, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "new").symlink_to(tmp_path / "far")
    for name in ("link", "new"):
        Toy(replace(model.config, name=name)).save(tmp_path / name)
        assert (tmp_path / name).is_symlink()
    assert Toy.load(folder).config.name == "link"
    assert Toy.load(tmp_path / "far").config.name == "new"
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        model.save(tmp_path / "file")


def test_a_model_is_saved_with_its_origin(model, folder):
    assert load_model(folder).origin == Origin()
    model.origin = Origin({"tokenizer": "abc", "data": {"clips": 3}}, ["run", "walk"])
    model.save(folder)
    assert load_model(folder).origin == model.origin


def test_a_failed_save_leaves_the_old_model(model, folder):
    before = fingerprint(folder)
    with pytest.raises(OSError, match="disk full"):
        Failing(replace(model.config, name="other")).save(folder)
    with pytest.raises(OSError, match="disk full"):
        Failing(model.config).save(folder.parent / "new")
    assert fingerprint(folder) == before
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


WEIGHTS = {
    "missing layer.weight": lambda w: w.pop("layer.weight"),
    "unexpected extra": lambda w: w.update(extra=torch.zeros(1)),
    r"layer.bias is \(7,\) but should be \(2,\)": lambda w: w.update({"layer.bias": torch.zeros(7)}),
    r"missing layer.weight; .*unexpected b.* and 2 more": lambda w: (
        w.pop("layer.weight"),
        w.update({name: torch.zeros(1) for name in "abcde"}),
    ),
}


@pytest.mark.parametrize("words", WEIGHTS)
def test_weights_that_do_not_fit_are_named(folder, words):
    edit_weights(folder, WEIGHTS[words])
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


CONFIGS = {
    "names model type 'other'; genvid reads adaptok, ": lambda c: c.update(model_type="other"),
    "names model type None": lambda c: c.pop("model_type"),
    r"names model type \['toy'\]": lambda c: c.update(model_type=["toy"]),
    "lacks name": lambda c: c.pop("name"),
    "lacks layer.bias": lambda c: c["layer"].pop("bias"),
    "'widht'.*did you mean 'width'": lambda c: c["layer"].update(widht=3),
    "layer.width.*'wide'": lambda c: c["layer"].update(width="wide"),
}


@pytest.mark.parametrize("words", CONFIGS)
def test_configs_that_do_not_fit_are_explained(folder, words):
    edit_config(folder, CONFIGS[words])
    with pytest.raises(ValueError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("held", ["[1, 2]", "3", "null", '"toy"'])
def test_a_config_that_holds_no_keys_is_refused(folder, held):
    (folder / "config.json").write_text(held)
    with pytest.raises(CheckpointError, match=r"config\.json must hold keys and values, not a (list|int|NoneType|str)"):
        load_model(folder)


def test_a_class_reads_its_own_model_type_only(folder):
    edit_config(folder, lambda c: c.update(model_type="adaptok"))
    with pytest.raises(CheckpointError, match="does not hold a toy model"):
        Toy.load(folder)


def test_damaged_and_absent_files(folder):
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(60)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_model(folder)
    with pytest.raises(CheckpointError, match="is not a model folder"):
        fingerprint(folder)


def test_the_fingerprint_is_of_configuration_and_weights(model, folder, tmp_path):
    first = fingerprint(folder)
    model.save(tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == first
    model.save(folder / "scorer")
    (folder / "README.md").write_text("what it is")
    assert fingerprint(str(folder)) == first
    edit_weights(folder, lambda w: w["layer.bias"].add_(1e-3))
    changed = fingerprint(folder)
    assert changed != first
    edit_config(folder, lambda c: c.update(name="renamed"))
    assert fingerprint(folder) not in (first, changed)


@pytest.mark.parametrize("source", ["/no/such/folder", "./model", "a/b/c", "model", "~/model"])
def test_what_cannot_be_a_hub_id_is_a_missing_folder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no model folder"):
        resolve(source)


def test_a_model_that_is_installed_is_found_by_name_after_a_folder_of_that_name(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("genvid.checkpoint.SHIPPED", tmp_path / "installed")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(CheckpointError, match=r"no model folder tiny .* installed with genvid: none\)"):
        resolve("tiny")
    model.save(tmp_path / "installed" / "tiny")
    model.save(tmp_path / "installed" / "tiny" / "scorer")
    assert resolve("tiny") == tmp_path / "installed" / "tiny"
    assert resolve("tiny/scorer") == tmp_path / "installed" / "tiny" / "scorer"
    with pytest.raises(CheckpointError, match=r"no model folder tinny .* installed with genvid: tiny\)"):
        resolve("tinny")
    (tmp_path / "tiny").mkdir()
    assert resolve("tiny") == Path("tiny")


def test_a_path_with_a_typing_error_never_asks_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(CheckpointError, match="there is a folder runs, but it holds no tokenzier"):
        resolve("runs/tokenzier")


def test_without_a_network_a_hub_id_fails_in_one_sentence(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no network\nand more lines")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"no local folder someone/model.*\(no network\)$"):
        resolve("someone/model")
