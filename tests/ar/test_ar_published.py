"""Published autoregressive models: read strictly, and the same numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from genvid.ar.config import PRESETS, is_published
from genvid.ar.published import PublishedConfig, PublishedTransformer, convert
from genvid.checkpoint import CheckpointError, load_model
from genvid.generation.sampler import Sampler, SamplingConfig
from genvid.provenance import Origin
from genvid.tokens import BlockTokens
from genvid.tokens.rows import BlockLayout

PARITY = Path(__file__).resolve().parents[2].parent / "shared" / "parity"
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="no folder shared/parity beside the project")
GREEDY = SamplingConfig(temperature=0)


def opened(name: str, tmp_path: Path) -> tuple[PublishedTransformer, dict[str, torch.Tensor]]:
    convert(PARITY / name, tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert isinstance(model, PublishedTransformer)
    return model, {
        k: v.long() if not v.is_floating_point() else v
        for k, v in safetensors.torch.load_file(PARITY / name / "io.safetensors").items()
    }


def agree(model: PublishedTransformer, rows: torch.Tensor, prefix: int, wanted: torch.Tensor) -> bool:
    """Equal up to each row's last END: what the published sampler writes behind it belongs to no block."""
    rows = rows[:, prefix:]
    wanted = wanted[:, : rows.shape[1]]
    return torch.equal(rows, wanted.where(rows != model.layout.pad_id, model.layout.pad_id))


@needs_parity
def test_class_conditional_parity(tmp_path):
    model, io = opened("ar_class_tiny", tmp_path)
    labels, classes = io["class_labels"], model.layout.num_classes
    assert int(labels.max()) == classes  # the published number of the null class
    told, untold = model.layout.class_prefix(labels.clamp(max=classes - 1)), model.layout.null_prefix(len(labels))
    prefix = untold.where(labels[:, None] == classes, told)
    with torch.no_grad():
        logits = model(torch.cat([prefix, io["indices"]], 1))
    assert (logits - io["logits"]).abs().max() < 1e-4
    rows = Sampler(model)(prefix, torch.arange(3), GREEDY)
    assert agree(model, rows, 1, io["greedy_sequence"])
    assert torch.equal(model.layout.unpack(rows).lengths, io["greedy_lengths"])
    guided = Sampler(model)(
        prefix[:2], torch.arange(2), replace(GREEDY, guidance=1.5), null_prefix=model.layout.null_prefix(2)
    )
    assert agree(model, guided, 1, io["greedy_cfg1.5_sequence"])
    assert torch.equal(model.layout.unpack(guided).lengths, io["greedy_cfg1.5_lengths"])


@needs_parity
def test_frame_prediction_parity(tmp_path):
    model, io = opened("ar_frame_prediction_tiny", tmp_path)
    condition, layout = io["condition_indices"], model.layout
    codes = condition[:, :-1].view(len(condition), model.config.context_blocks, layout.block_capacity)
    prefix = model.context_prefix(BlockTokens(torch.ones_like(codes).bool(), codes))
    assert torch.equal(prefix, condition)
    with torch.no_grad():
        logits = model(torch.cat([prefix, io["indices"]], 1))[:, prefix.shape[1] - 1 :]
    assert (logits - io["logits"]).abs().max() < 1e-4
    rows = Sampler(model)(prefix, torch.arange(3), GREEDY)
    assert agree(model, rows, prefix.shape[1], io["greedy_sequence"])
    assert torch.equal(layout.unpack(rows, prefix.shape[1]).lengths, io["greedy_lengths"])


@needs_parity
@pytest.mark.parametrize("name", ["tokenizer_tiny", "tokenizer_small"])
def test_packed_rows_parity(name):
    io = safetensors.torch.load_file(PARITY / name / "io.safetensors")
    lengths = io["lengths"].long()
    codes = io["indices"].long().view(*lengths.shape, -1)
    codebook = json.loads((PARITY / name / "config.json").read_text())["bottleneck"]["args"]["regularizer"]["args"]
    layout = BlockLayout(codebook["codebook_size"], 0, lengths.shape[1], codes.shape[2], framing="end")
    keep = torch.arange(codes.shape[2]) < lengths[..., None]
    rows = layout.pack(BlockTokens(keep, codes), layout.null_prefix(len(codes))).tokens[:, 1:]
    rows = rows.masked_fill(rows == layout.pad_id, layout.codebook_size)
    assert torch.equal(rows, io["packed_indices_with_separators"].long())


def published_config(*, frame_prediction: bool) -> PublishedConfig:
    layout = BlockLayout(8192, 0 if frame_prediction else 101, 3 if frame_prediction else 4, 512, framing="end")
    positions = 2563 if frame_prediction else 2052
    transformer = replace(PRESETS["LP"], max_positions=positions, rope_theta=None)
    return PublishedConfig(layout, transformer, context_blocks=2 * frame_prediction, first_block=int(frame_prediction))


@pytest.mark.parametrize(("frame_prediction", "millions"), [(False, 633.294080), (True, 633.818880)])
def test_the_published_size_has_the_published_count_of_parameters(frame_prediction, millions):
    with torch.device("meta"):
        model = PublishedTransformer(published_config(frame_prediction=frame_prediction))
    assert sum(p.numel() for p in model.parameters()) == millions * 1e6


def test_models_of_ucf101_number_its_classes_as_published(tmp_path):
    layout = BlockLayout(codebook_size=8, num_classes=101, num_blocks=2, block_capacity=4, framing="end")
    sizes = replace(PRESETS["S"], width=8, depth=1, heads=2, kv_heads=2, hidden=8, max_positions=16, rope_theta=None)
    model = PublishedTransformer(PublishedConfig(layout, sizes))
    model.save(tmp_path / "now")
    model.origin = Origin()
    model.save(tmp_path / "before")
    for name in ("now", "before"):  # folders of older versions have no names
        classes = load_model(tmp_path / name).origin.classes
        assert len(set(classes)) == 101
        assert classes.index("HammerThrow") < classes.index("Hammering") < classes.index("HandstandPushups")
        assert classes.index("JumpRope") < classes.index("JumpingJack")


def published_folder(folder: Path, *, classes: int = 5, width: int = 24, depth: int = 1, hidden: int = 20) -> Path:
    """A class-conditional folder of other sizes: 3 blocks of 6, 10 codes."""
    folder.mkdir()
    shapes = {
        "abs_pe": (1, 1 + 18 + 3 - 1, width),
        "cls_embedding.embedding_table.weight": (classes + 1, width),
        "tok_embeddings.weight": (11, width),
        "output.weight": (11, width),
        "norm.weight": (width,),
    }
    for layer in range(depth):
        shapes |= {
            f"layers.{layer}.attention.wqkv.weight": (3 * width, width),
            f"layers.{layer}.attention.wo.weight": (width, width),
            f"layers.{layer}.attention_norm.weight": (width,),
            f"layers.{layer}.feed_forward.w1.weight": (hidden, width),
            f"layers.{layer}.feed_forward.w2.weight": (width, hidden),
            f"layers.{layer}.feed_forward.w3.weight": (hidden, width),
            f"layers.{layer}.ffn_norm.weight": (width,),
        }
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    config = {"dim": width, "n_layer": depth, "n_head": 3, "vocab_size": 10, "max_seq_len": 18, "num_classes": classes}
    config |= {"with_block_sep": True, "tot_blocks": 3, "multiple_of": 4, "cls_token_num": 1, "mode": "train_adap_ar"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def reference_logits(weights: dict[str, torch.Tensor], label: int, indices: torch.Tensor, heads: int) -> torch.Tensor:
    """The published network, written out for one layer and one row."""
    w = {name.removeprefix("layers.0."): value.double() for name, value in weights.items()}

    def normed(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight

    x = torch.cat([w["cls_embedding.embedding_table.weight"][label][None], w["tok_embeddings.weight"][indices]])
    x = x + w["abs_pe"][0, : len(x)]
    query, key, value = (normed(x, w["attention_norm.weight"]) @ w["attention.wqkv.weight"].T).chunk(3, -1)
    mixed = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        scores = q @ k.T / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
        mixed.append(scores.softmax(-1) @ v)
    x = x + torch.cat(mixed, -1) @ w["attention.wo.weight"].T
    y = normed(x, w["ffn_norm.weight"])
    gate = torch.nn.functional.silu(y @ w["feed_forward.w1.weight"].T)
    x = x + (gate * (y @ w["feed_forward.w3.weight"].T)) @ w["feed_forward.w2.weight"].T
    return normed(x, w["norm.weight"]) @ w["output.weight"].T


def test_a_folder_of_other_sizes_computes_what_the_published_network_does(tmp_path):
    source = published_folder(tmp_path / "source")
    assert is_published(json.loads((source / "config.json").read_text()))
    convert(source, tmp_path / "model")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(source, tmp_path / "model")
    model = load_model(tmp_path / "model")
    indices = torch.tensor([3, 1, 10, 4, 10, 9, 0])
    row = torch.cat([model.layout.class_prefix(torch.tensor([4]))[0], indices])
    weights = safetensors.torch.load_file(source / "model.safetensors")
    with torch.no_grad():
        logits = model(row[None])[0]
    torch.testing.assert_close(logits.double(), reference_logits(weights, 4, indices, 3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layers.0.ffn_norm.weight"), "missing layers.0.ffn_norm.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda w: w.update({"norm.weight": torch.zeros(5)}), r"norm.weight is \(5,\) but should be \(24,\)"),
        (lambda w: w.pop("abs_pe"), "lacks abs_pe"),
    ],
)
def test_a_folder_that_does_not_fit_is_an_error_that_names_the_entry(tmp_path, change, message):
    source = published_folder(tmp_path / "source")
    weights = safetensors.torch.load_file(source / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_lost_layers_are_missing_not_a_shallower_model(tmp_path):
    source = published_folder(tmp_path / "source", depth=2)
    weights = safetensors.torch.load_file(source / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("layers.1.")}
    safetensors.torch.save_file(kept, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing layers\.1\.attention\.wqkv\.weight"):
        convert(source, tmp_path / "model")


@pytest.mark.parametrize(("key", "value"), [("n_layer", 0), ("n_head", "3"), ("tot_blocks", 0)])
def test_a_count_that_is_none_is_one_sentence(tmp_path, key, value):
    source = published_folder(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=f"{key} must be a positive integer, got {value!r}"):
        convert(source, tmp_path / "model")
