"""Schedules of guidance: their scales, the engine beside the plain sampler, and prompts that are guided."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_engine import END, LENGTH, TINY, _lively, class_requests, plain_rows, prompt_requests, rotary, rows_of

from genvid import config as configuration
from genvid.ar.config import ARConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.rows import PackedRows, RowConfig
from genvid.checkpoint import load_model
from genvid.config import ConfigError
from genvid.generation.engine.scheduler import Engine
from genvid.generation.grammar import BlockGrammar
from genvid.generation.guidance import ByBlock, ByTokens, Constant, Guidance, PowerCosine, Progress, by_name
from genvid.generation.sampler import SamplingConfig

SCHEDULES = [Constant(2.0), ByTokens((4.0, 2.0, 0.5), (1, 3)), ByBlock((3.0, 1.0, 2.0)), PowerCosine(5.0, 2.0)]


def predictor(**changes: bool) -> BlockTransformer:
    return _lively(BlockTransformer(ARConfig(LENGTH, TINY, context_blocks=1, **changes)))


def test_scales_follow_the_place_of_the_token():
    place = Progress(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 3, 4, 32]), torch.tensor([0.0, 0.25, 0.5, 1.0]))
    assert ByTokens().scale(place).tolist() == [3, 3, 2, 1]
    assert ByTokens((2.0,), ()).scale(place).tolist() == [2] * 4
    assert ByBlock((3.0, 1.5)).scale(place).tolist() == [3, 3, 1.5, 1.5]
    assert Constant(2.5).scale(place).tolist() == [2.5] * 4
    wanted = [1 + 3 * (1 - math.cos(math.pi * share**2)) / 2 for share in (0, 0.25, 0.5, 1)]
    torch.testing.assert_close(PowerCosine(4.0, 2.0).scale(place), torch.tensor(wanted))


@pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
def test_progress_counts_blocks_and_their_codes(layout):
    grammar, seen = BlockGrammar(layout, 1, 2, planned=torch.tensor([[3, 1]])), []
    size = layout.codebook_size
    tokens = [size + 1, 0, 0, 0, size, 0] if layout is LENGTH else [0, 0, 0, size, 0, size]
    for token in tokens:
        seen.append([round(float(part), 3) for part in grammar.progress()])
        grammar.advance(torch.tensor([token]), torch.tensor([True]))
    if layout is LENGTH:
        assert seen == [[0, 0, 0], [0, 0, 0], [0, 1, 0.167], [0, 2, 0.333], [1, 0, 0.5], [1, 0, 0.5]]
    else:
        assert seen == [[0, 0, 0], [0, 1, 0.083], [0, 2, 0.167], [0, 3, 0.25], [1, 0, 0.5], [1, 1, 0.583]]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_rows_are_those_of_the_plain_sampler(schedule):
    model, requests, config = rotary(), class_requests(LENGTH, 7), SamplingConfig(guidance=schedule)
    rows = rows_of(Engine(model, config, slots=3), requests)
    assert rows == plain_rows(model, requests, config)
    assert rows != rows_of(Engine(model, SamplingConfig(), slots=3), requests)


def test_a_number_is_the_constant_schedule():
    model, requests = rotary(), class_requests(LENGTH, 5)
    two = [rows_of(Engine(model, SamplingConfig(guidance=w), slots=2), requests) for w in (2.0, Constant(2.0))]
    assert two[0] == two[1]
    assert not SamplingConfig(guidance=Constant(1.0)).guided


@pytest.mark.parametrize("slots", [1, 4])
def test_a_prompt_is_guided_away_from_no_context(slots):
    """The null rows, a start id and the blocks after it, are shorter than the prompts, each by another number."""
    model, config = predictor(null_context=True), SamplingConfig(guidance=2.0)
    null = tuple(LENGTH.context_free_prefix(1)[0].tolist())
    requests = [replace(request, null_prefix=null) for request in prompt_requests(LENGTH, 6)]
    rows = rows_of(Engine(model, config, slots=slots), requests)
    assert rows == plain_rows(model, requests, config)
    unguided = rows_of(Engine(model, replace(config, guidance=0.0), slots=slots), requests)
    alone = [replace(request, prefix=null, null_prefix=None) for request in requests]
    alone = rows_of(Engine(model, SamplingConfig(temperature=0), slots=slots), alone)
    greedy = rows_of(Engine(model, SamplingConfig(temperature=0, guidance=0.0), slots=slots), requests)
    assert [row[len(r.prefix) :] for row, r in zip(greedy, requests, strict=True)] == [row[1:] for row in alone]
    assert unguided != rows


def test_contexts_are_dropped_from_a_share_of_the_training_rows(tmp_path):
    keep = torch.ones(400, 3, dtype=torch.long)
    batch = {"lengths": keep, "codes": torch.zeros(400, 3, 6).long(), "seed": torch.arange(400)}
    cache = SimpleNamespace(lengths=keep)
    model = predictor(null_context=True)
    rows = PackedRows(cache, model.config, RowConfig(context_dropout=0.25)).framed(batch)
    lengths = LENGTH.prefix_lengths(rows.tokens)
    assert set(lengths.tolist()) == {1 + 4, 1 + 2 + 4}
    assert 0.2 < float((lengths == 5).double().mean()) < 0.3
    assert rows.is_target.sum(1).tolist() == [4] * 400  # the predicted blocks are targets all the same
    whole = PackedRows(cache, predictor().config, RowConfig()).framed(batch)
    assert torch.equal(whole.tokens[lengths == 7], rows.tokens[lengths == 7])
    with pytest.raises(ValueError, match="null_context of the model is False, but context_dropout"):
        PackedRows(cache, predictor().config, RowConfig(context_dropout=0.5))
    model.save(tmp_path)
    assert load_model(tmp_path).config.null_context


def test_guidance_is_a_number_a_name_or_a_section():
    def read(text: str) -> object:
        return configuration.read_value(float | Guidance, text, "guidance")

    assert read("2") == 2.0
    assert read("power_cosine") == PowerCosine() == by_name("power_cosine")
    assert read("{type: by_tokens, scales: [3, 1], ends: [8]}") == ByTokens((3.0, 1.0), (8,))
    for data in ({"guidance": 1.5}, {"guidance": {"type": "by_block", "scales": [2.0, 1.0]}}):
        assert configuration.encode(configuration.decode(SamplingConfig, data))["guidance"] == data["guidance"]
    with pytest.raises(ConfigError, match="guidance must be a float or one of constant, by_tokens, by_block"):
        read("strong")
    with pytest.raises(ValueError, match="got 'strong'"):
        by_name("strong")
    for wrong in ({"type": "by_tokens", "ends": [1]}, {"type": "constant", "value": -1}, {"type": "by_block", "w": 2}):
        with pytest.raises(ConfigError, match="guidance"):
            configuration.decode(SamplingConfig, {"guidance": wrong})
