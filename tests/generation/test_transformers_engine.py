"""transformers' continuous batching samples the rows of our engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_engine import END, GREEDY, LENGTH, class_requests, learned, prompt_requests, rotary, rows_of

from genvid.generation.budget import BudgetConfig, with_budget
from genvid.generation.engine.scheduler import Engine
from genvid.generation.engine.transformers_engine import TransformersEngine
from genvid.generation.sampler import SamplingConfig


@pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
@pytest.mark.parametrize("config", [GREEDY, SamplingConfig(temperature=1.5, top_k=9)], ids=["greedy", "drawn"])
def test_rows_are_those_of_our_engine(layout, config):
    """9 requests on 2 slots, of classes and of prompts of several lengths; rows end at different times."""
    model = rotary(layout)
    stock = TransformersEngine(model, config, slots=2)
    for requests in (class_requests(layout, 9), prompt_requests(layout, 5)):
        rows = rows_of(stock, requests)
        assert rows == rows_of(Engine(model, config, slots=4), requests)
    assert stock.tokens > 0


def test_plans_and_limits_are_kept():
    model, requests = rotary(), class_requests(LENGTH, 4)
    requests = [*(replace(r, planned=(1, 3, 6)) for r in requests[:2]), *(replace(r, limit=5) for r in requests[2:])]
    rows = rows_of(TransformersEngine(model, GREEDY, slots=4), requests)
    assert rows == rows_of(Engine(model, GREEDY, slots=4), requests)
    spent = [int(LENGTH.unpack(torch.tensor([row])).lengths.sum()) for row in rows]
    assert spent[:2] == [10, 10]
    assert max(spent[2:]) <= 5


def test_what_transformers_cannot_do_is_said_in_words():
    model = rotary()
    with pytest.raises(ValueError, match="without guidance"):
        TransformersEngine(model, SamplingConfig(guidance=1.5))
    with pytest.raises(ValueError, match="transformers has no adaptok_ar model"):
        TransformersEngine(learned(), GREEDY)
    planned = with_budget(Engine(model, GREEDY, slots=2), class_requests(LENGTH, 2), BudgetConfig(tokens_per_video=8))
    with pytest.raises(ValueError, match="cannot plan a budget"):
        TransformersEngine(model, GREEDY, slots=2).run(planned)
