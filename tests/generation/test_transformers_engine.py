"""transformers' continuous batching samples the rows of our engine."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from test_engine import END, GREEDY, LENGTH, class_requests, learned, prompt_requests, rotary, rows_of

from genvid.generation.budget import BudgetConfig, with_budget
from genvid.generation.engine.guided_llama import GuidedLlama
from genvid.generation.engine.scheduler import Engine
from genvid.generation.engine.transformers_engine import TransformersEngine
from genvid.generation.guidance import ByTokens
from genvid.generation.sampler import SamplingConfig


@pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
@pytest.mark.parametrize(
    "config",
    [
        GREEDY,
        SamplingConfig(temperature=1.5, top_k=9),
        replace(GREEDY, guidance=2.0),
        SamplingConfig(guidance=ByTokens((3.0, 1.0), (2,))),
    ],
    ids=["greedy", "drawn", "guided", "by_tokens"],
)
def test_rows_are_those_of_our_engine(layout, config):
    """9 requests on 2 slots, of classes and of prompts of several lengths; rows end at different times."""
    model = rotary(layout)
    stock = TransformersEngine(model, config, slots=2)
    for requests in (class_requests(layout, 9), *([] if config.guided else [prompt_requests(layout, 5)])):
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


def test_guidance_by_budgets():
    model = rotary(replace(LENGTH, budget_bins=4))
    requests = class_requests(model.layout, 4)
    prefixes = model.layout.set_budget(torch.tensor([r.prefix for r in requests]), torch.tensor([3, 6, 12, 18]))
    requests = [replace(r, prefix=tuple(p)) for r, p in zip(requests, prefixes.tolist(), strict=True)]
    config = replace(GREEDY, guidance=3.0)
    rows = rows_of(TransformersEngine(model, config, slots=4), requests)
    assert rows == rows_of(Engine(model, config, slots=4), requests)
    assert rows != rows_of(Engine(model, GREEDY, slots=4), requests)


def test_a_guided_llama_holds_its_weights_once():
    """And has the logits of the rows and of their null conditions, one after the other."""
    model, layout = rotary(replace(LENGTH, budget_bins=4)), replace(LENGTH, budget_bins=4)
    rows = torch.tensor([request.prefix for request in class_requests(layout, 5)])
    rows = torch.cat([layout.set_budget(rows, torch.arange(5) * 4), torch.arange(10).view(5, 2)], 1)
    null = torch.cat([layout.null_prefix(5), rows[:, 2:]], 1)
    assert torch.equal(layout.unconditional(rows), null)
    wanted = torch.cat([model.llama(each).logits for each in (rows, null)], -1)
    guided = GuidedLlama(copy.deepcopy(model.llama), layout.unconditional(torch.arange(layout.vocab_size)))
    torch.testing.assert_close(guided(rows, use_cache=False).logits, wanted)
    assert sum(p.numel() for p in guided.parameters()) == sum(p.numel() for p in model.llama.parameters())


def test_what_transformers_cannot_do_is_said_in_words():
    model = rotary()
    shorter = [replace(request, null_prefix=request.prefix[:1]) for request in prompt_requests(LENGTH, 2)]
    with pytest.raises(ValueError, match="by the context"):
        TransformersEngine(model, replace(GREEDY, guidance=1.5)).check(shorter)
    with pytest.raises(ValueError, match="transformers has no adaptok_ar model"):
        TransformersEngine(learned(), GREEDY)
    planned = with_budget(Engine(model, GREEDY, slots=2), class_requests(LENGTH, 2), BudgetConfig(tokens_per_video=8))
    with pytest.raises(ValueError, match="cannot plan a budget"):
        TransformersEngine(model, GREEDY, slots=2).run(planned)
