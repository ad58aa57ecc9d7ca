"""The autoregressive model: cache, rows of a batch, folders."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from genvid.ar.config import PRESETS, ARConfig, TransformerConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.published import PublishedConfig, PublishedTransformer
from genvid.ar.row_model import RowModel
from genvid.checkpoint import CheckpointError, load_model
from genvid.tokens.rows import BlockLayout

LAYOUT = BlockLayout(codebook_size=13, num_classes=3, num_blocks=2, block_capacity=6, sizes=(1, 3, 6))
TINY = TransformerConfig(width=32, depth=2, heads=4, kv_heads=2, hidden=48, max_positions=24, dropout=0.2)


def rotary() -> BlockTransformer:
    return enlivened(BlockTransformer(ARConfig(LAYOUT, TINY, context_blocks=1)))


def learned() -> PublishedTransformer:
    layout = replace(LAYOUT, sizes=(), framing="end")
    return enlivened(PublishedTransformer(PublishedConfig(layout, replace(TINY, rope_theta=None))))


def enlivened(model: RowModel) -> RowModel:
    """Weights large enough for every part to show in the output."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


MODELS = pytest.mark.parametrize("build", [rotary, learned])


@MODELS
@torch.no_grad()
def test_cached_logits_equal_uncached_ones(build):
    model = build()
    rows = torch.randint(13, (3, 12))
    cache = model.new_cache()
    steps = [rows[:, :5], *rows[:, 5:].split(1, 1)]
    cached = torch.cat([model.logits(model.states(step, cache)) for step in steps], 1)
    torch.testing.assert_close(cached, model(rows), atol=1e-5, rtol=1e-5)


@MODELS
@torch.no_grad()
def test_logits_depend_on_earlier_tokens_of_the_same_row_only(build):
    model = build()
    rows = torch.randint(13, (4, 10))
    logits = model(rows)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(rows[order]), logits[order], atol=1e-5, rtol=1e-5)
    changed = rows.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 13
    torch.testing.assert_close(model(changed)[:, :6], logits[:, :6], atol=1e-5, rtol=1e-5)
    assert ((model(changed)[:, 6:] - logits[:, 6:]).abs().amax((0, 2)) > 1e-3).all()


@MODELS
def test_the_order_of_tokens_matters(build):
    """Both kinds know positions: without them the last state would not see the order of what came before."""
    model = build()
    rows = torch.tensor([[1, 2, 3, 4], [3, 2, 1, 4]])
    with torch.no_grad():
        states = model.states(rows)[:, -1]
    assert (states[0] - states[1]).abs().max() > 1e-3


@MODELS
def test_folders_round_trip(build, tmp_path):
    model = build()
    model.save(tmp_path / "model")
    back = load_model(tmp_path / "model")
    assert type(back) is type(model)
    assert back.config == model.config
    rows = torch.randint(13, (2, 7))
    with torch.no_grad():
        assert torch.equal(back(rows), model(rows))


def test_transformers_reads_the_folder_and_we_read_what_it_writes(tmp_path):
    model = rotary()
    model.save(tmp_path / "model")
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    rows = torch.randint(LAYOUT.vocab_size - 1, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(rows).logits[..., : LAYOUT.num_outputs], model(rows))
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs")
    assert back.config == model.config
    with torch.no_grad():
        assert torch.equal(back(rows), model(rows))


def test_dropout_acts_in_training_only():
    model = rotary()
    rows = torch.randint(13, (2, 7))
    with torch.no_grad():
        assert torch.equal(model(rows), model(rows))
        model.train()
        assert not torch.equal(model(rows), model(rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("genvid"), "no key 'genvid'"),
        (lambda c: c.pop("hidden_size"), "lacks hidden_size"),
        (lambda c: c.update(attention_bias=True), "attention_bias True"),
        (lambda c: c.update(vocab_size=99), "vocab_size 99"),
        (lambda c: c["genvid"]["layout"].update(colour=1), "colour"),
    ],
)
def test_a_config_of_another_network_is_refused(tmp_path, change, message):
    rotary().save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    change(config)
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    rotary().save(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    del weights["model.norm.weight"]
    safetensors.torch.save_file(weights, file)
    with pytest.raises(CheckpointError, match=r"missing model\.norm\.weight"):
        load_model(tmp_path / "model")


def test_positions_must_hold_a_row():
    with pytest.raises(ValueError, match="up to 14 inputs, but max_positions is 13"):
        ARConfig(LAYOUT, replace(TINY, max_positions=13))


@pytest.mark.parametrize(("preset", "millions"), [("S", 28.4), ("B", 99), ("L", 327), ("LP", 633.3), ("XL", 755)])
def test_presets_have_the_sizes_of_the_paper(preset, millions):
    layout = BlockLayout(8192, 101, 4, 512, framing="end")
    with torch.device("meta"):
        published = PublishedConfig(layout, replace(PRESETS[preset], max_positions=2052, rope_theta=None))
        count = sum(p.numel() for p in PublishedTransformer(published).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.6)
