"""The plug-in of integrations/vllm, in a batch that is kept as vLLM keeps it. vLLM itself is not installed: its three
names are stand-ins."""

from __future__ import annotations

import enum
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_engine import END, GREEDY, LENGTH, class_requests, prompt_requests, rotary, rows_of
from transformers import AutoConfig

from genvid.generation.budget import BudgetConfig, with_budget
from genvid.generation.engine.scheduler import Engine, Request
from genvid.generation.sampler import SamplingConfig
from genvid.tokens.rows import BlockLayout

DRAWN = SamplingConfig(temperature=1.5, top_k=9, top_p=0.9)
Move = enum.Enum("MoveDirectionality", ["UNIDIRECTIONAL", "SWAP"])


@pytest.fixture
def plugin(monkeypatch):
    """(genvid_vllm, genvid_vllm.processor)"""
    stand_in = ModuleType("vllm.v1.sample.logits_processor")
    stand_in.LogitsProcessor, stand_in.BatchUpdate, stand_in.MoveDirectionality = object, SimpleNamespace, Move
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "integrations" / "vllm"))
    return importlib.import_module("genvid_vllm"), importlib.import_module("genvid_vllm.processor")


class Server:
    """vLLM's batch: new requests take free places, the last ones fill gaps, and now and then two change places."""

    def __init__(self, processor, model, longest):
        self.processor, self.model, self.longest = processor, model, longest
        self.batch = []

    def run(self, requests, slots):
        waiting, ended = list(enumerate(requests)), {}
        while waiting or self.batch:
            gone = [place for place, entry in enumerate(self.batch) if entry["number"] in ended]
            kept = {place: entry for place, entry in enumerate(self.batch) if place not in gone}
            free, added, moved = sorted(gone) + list(range(len(self.batch), slots)), [], []
            while waiting and free:
                number, (prompt, params) = waiting.pop(0)
                entry = {"number": number, "prompt": prompt, "params": params, "output": []}
                kept[free[0]] = entry
                added.append((free.pop(0), params, prompt, entry["output"]))
            for hole in range(len(kept)):
                if hole not in kept:
                    last = max(kept)
                    kept[hole] = kept.pop(last)
                    moved.append((last, hole, Move.UNIDIRECTIONAL))
            if added and len(kept) > 1:
                kept[0], kept[1] = kept[1], kept[0]
                moved.append((0, 1, Move.SWAP))
            self.batch = [kept[place] for place in range(len(kept))]
            update = SimpleNamespace(batch_size=len(self.batch), removed=gone, added=added, moved=moved)
            self.processor.update_state(update if gone or added or moved else None)
            if self.batch:
                self.step(ended)
        return ended

    @torch.no_grad()
    def step(self, ended):
        rows = [[*entry["prompt"], *entry["output"]] for entry in self.batch]
        logits = torch.stack([self.model.llama(torch.tensor([row])).logits[0, -1] for row in rows])
        for entry, token in zip(self.batch, self.processor.apply(logits).argmax(-1).tolist(), strict=True):
            entry["output"].append(token)
            stopped = token in entry["params"].stop_token_ids or len(entry["output"]) == entry["params"].max_tokens
            if stopped or len(entry["prompt"]) + len(entry["output"]) == self.longest:
                ended[entry["number"]] = entry["output"]


def served(plugin, model, requests, config, folder, longest=None):
    """Rows of the requests by the processor, on 3 places; `config` may be one for each request."""
    package, processors = plugin
    model.save(folder)
    longest = longest or model.max_positions + 1
    hf_config = AutoConfig.from_pretrained(folder)
    settings = SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config, max_model_len=longest))
    processor, layout = processors.RowProcessor(settings, torch.device("cpu"), False), model.layout
    configs = config if isinstance(config, list) else [config] * len(requests)
    params = [
        SimpleNamespace(**package.sampling_params(layout, request, own))
        for request, own in zip(requests, configs, strict=True)
    ]
    for each in params:
        processor.validate_params(each)
    prompts = [list(request.prefix) for request in requests]
    ended = Server(processor, model, longest).run(list(zip(prompts, params, strict=True)), 3)
    return [
        [*prompt, *(token for token in ended[number] if token != layout.pad_id)]
        for number, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
@pytest.mark.parametrize("config", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_rows_are_those_of_our_engine(plugin, layout, config, tmp_path):
    model = rotary(layout)
    requests = [*class_requests(layout, 7), *prompt_requests(layout, 2)]
    requests[1], requests[2] = replace(requests[1], planned=(1, 3, 6)), replace(requests[2], limit=7)
    assert served(plugin, model, requests, config, tmp_path) == rows_of(Engine(model, config, slots=4), requests)


def test_requests_of_several_kinds_are_drawn_together(plugin, tmp_path):
    model, requests = rotary(), class_requests(LENGTH, 6)
    rows = served(plugin, model, requests, [GREEDY, DRAWN] * 3, tmp_path)
    for number, config in enumerate([GREEDY, DRAWN] * 3):
        assert rows[number] == rows_of(Engine(model, config, slots=1), [requests[number]])[0]


def test_rows_keep_within_the_longest_of_the_server(plugin, tmp_path):
    """What cannot is ended without blocks, and the others go on."""
    model, requests = rotary(), class_requests(LENGTH, 4)
    requests[1] = replace(requests[1], planned=(6, 6, 6))
    requests[2] = replace(requests[2], planned=(6, 6, 5))  # no length of this layout
    rows = served(plugin, model, requests, DRAWN, tmp_path, longest=12)
    assert rows[1:3] == [list(request.prefix) for request in requests[1:3]]
    for row in (rows[0], rows[3]):
        assert len(row) <= 12
        assert LENGTH.unpack(torch.tensor([row])).lengths.shape == (1, 3)


def test_a_request_that_was_preempted_goes_on(plugin):
    package, _ = plugin
    model, request = rotary(), class_requests(LENGTH, 1)[0]
    row = rows_of(Engine(model, DRAWN, slots=1), [request])[0]
    asked = package.RowRequest.read(package.sampling_params(LENGTH, request, DRAWN)["extra_args"])
    for known in range(1, len(row)):
        batch = package.RowBatch(LENGTH, 100)
        batch.add(0, row[:1], row[1:known], asked)
        with torch.no_grad():
            scores = batch.draw(model.llama(torch.tensor([row[:known]])).logits[:, -1])
        assert int(scores.argmax()) == row[known]


def test_the_request_of_the_page_is_one(plugin):
    package, _ = plugin
    page = (Path(package.__file__).parents[1] / "README.md").read_text()
    body = json.loads(page.split("```json\n")[1].split("```")[0])
    layout = BlockLayout(512, 8, 4, 16, (1, 2, 4, 6, 8, 10, 12, 16))  # of the demo
    request = Request(tuple(layout.class_prefix(torch.tensor([0]))[0].tolist()), 10, 4, limit=24)
    config = SamplingConfig(top_p=0.95)
    params = package.sampling_params(layout, request, config)
    assert body["prompt"] == list(request.prefix)
    assert {name: body[name] for name in ("temperature", "max_tokens", "stop_token_ids")}.items() <= params.items()
    assert package.RowRequest.read(body["vllm_xargs"]) == package.RowRequest.read(params["extra_args"])


def test_what_vllm_cannot_do_is_said_in_words(plugin):
    package, processors = plugin
    request = class_requests(LENGTH, 2)
    with pytest.raises(ValueError, match="without a null condition"):
        package.sampling_params(LENGTH, request[0], SamplingConfig(guidance=2.0))
    planned = with_budget(Engine(rotary(), GREEDY, slots=2), request, BudgetConfig(tokens_per_video=8))
    with pytest.raises(ValueError, match="do not wait for each other"):
        package.sampling_params(LENGTH, planned[0], GREEDY)
    params = SimpleNamespace(**package.sampling_params(LENGTH, request[0], GREEDY))
    with pytest.raises(ValueError, match="0 to vLLM"):
        processors.RowProcessor.validate_params(SimpleNamespace(temperature=1.0, extra_args=params.extra_args))
    with pytest.raises(ValueError, match="needs the key 'genvid'"):
        processors.RowProcessor.validate_params(SimpleNamespace(temperature=0.0, extra_args=None))
    for unread in ({"seed": 10, "num_blocks": 4}, 10, "seed 10"):
        with pytest.raises(ValueError, match="is no JSON text of a RowRequest"):
            processors.RowProcessor.validate_params(SimpleNamespace(temperature=0.0, extra_args={"genvid": unread}))
    guided = {"genvid": json.dumps(json.loads(params.extra_args["genvid"]) | {"sampling": {"guidance": 2.0}})}
    with pytest.raises(ValueError, match="without a null condition"):
        processors.RowProcessor.validate_params(SimpleNamespace(temperature=0.0, extra_args=guided))
    wrong = {"genvid": json.dumps(json.loads(params.extra_args["genvid"]) | {"plan": [1]})}
    with pytest.raises(ValueError, match="plan"):
        processors.RowProcessor.validate_params(SimpleNamespace(temperature=0.0, extra_args=wrong))
