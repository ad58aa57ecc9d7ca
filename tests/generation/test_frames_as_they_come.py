"""Frames as they come: every block in time, all of them together the video."""

from __future__ import annotations

import threading

import pytest
import torch
from test_engine import END, LENGTH, class_requests, rotary, rows_of
from test_pipeline import PixelTokenizer, clip, model_of

from genvid.generation import frames
from genvid.generation.budget import BudgetConfig, with_budget
from genvid.generation.engine.scheduler import Engine
from genvid.generation.frames import stream_frames
from genvid.generation.pipeline import Job, class_job, generate, prediction_job
from genvid.generation.sampler import SamplingConfig


@pytest.mark.parametrize("layout", [LENGTH, END], ids=["length", "end"])
@pytest.mark.parametrize("slots", [1, 4])
def test_rows_are_yielded_up_to_every_complete_block(layout, slots):
    model, requests, config = rotary(layout), class_requests(layout, 9), SamplingConfig()
    whole, blocks = rows_of(Engine(model, config, slots=slots), requests), {}
    for number, row, last in Engine(model, config, slots=slots).run_blocks(requests):
        lengths = layout.unpack(row[None]).lengths[0].tolist()
        assert row.tolist() == whole[number][: len(row)]
        assert len(lengths) > len(blocks.get(number, []))
        assert last == (len(lengths) == 3) == (row.tolist() == whole[number])
        blocks[number] = lengths
    assert sorted(blocks) == list(range(9))


def test_the_first_block_does_not_wait_for_the_others():
    engine, request = Engine(rotary(), SamplingConfig(), slots=1), class_requests(LENGTH, 1)[0]
    found = engine.run_blocks([request])
    _, row, last = next(found)
    assert not last
    assert engine.steps <= len(row) + 3  # a step for each token, and the fewest steps between two synchronisations


@pytest.mark.parametrize("blocks", [0, 1])
def test_frames_joined_are_the_videos_of_generate(blocks):
    model, tokenizer, seeds = model_of(context_blocks=blocks), PixelTokenizer(), torch.arange(3)
    config = SamplingConfig(temperature=1.5)
    job = prediction_job(model, tokenizer, None, clip(2), seeds) if blocks else class_job(model, seeds, seeds)
    made = generate(Engine(model, config, slots=2), tokenizer, job)
    parts: list[list[torch.Tensor]] = [[], [], []]
    for part in stream_frames(Engine(model, config, slots=2), tokenizer, job):
        assert part.start == sum(video.shape[1] for video in parts[part.number])
        parts[part.number].append(part.video)
        count = part.tokens.keep.shape[1]
        assert torch.equal(part.tokens.lengths[0], made.tokens.lengths[part.number, :count])
        assert part.last == (count == 3)
    assert torch.equal(torch.stack([torch.cat(video, 1) for video in parts]), made.videos)
    assert max(len(video) for video in parts) > 1


def test_planned_videos_stream_too():
    model, tokenizer, seeds = model_of(), PixelTokenizer(), torch.arange(4)
    engine = Engine(model, SamplingConfig(), slots=4)
    job = class_job(model, seeds % 3, seeds)
    for budget in (BudgetConfig(total=20), BudgetConfig(tokens_per_video=5)):
        planned = Job(with_budget(engine, job.requests, budget), job.unpack)
        ends = [part.tokens.lengths.sum() for part in stream_frames(engine, tokenizer, planned) if part.last]
        assert len(ends) == 4
        assert sum(ends) <= 20


@pytest.mark.parametrize("ahead", [1, 64])
def test_a_stream_that_is_left_or_fails_ends_its_thread(ahead, monkeypatch):
    monkeypatch.setattr(frames, "_AHEAD", ahead)
    model, tokenizer, seeds, before = model_of(), PixelTokenizer(), torch.arange(3), threading.active_count()
    job = class_job(model, seeds, seeds)
    engine = Engine(model, SamplingConfig(), slots=1)
    parts = stream_frames(engine, tokenizer, job)
    next(parts)
    parts.close()
    monkeypatch.setattr(tokenizer, "decode", lambda tokens: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream_frames(engine, tokenizer, job))
    engine.slots.step = lambda reach: [][0]
    with pytest.raises(IndexError):
        list(stream_frames(engine, tokenizer, job))
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="another tokenizer"):
        stream_frames(engine, type("Other", (), {"spec": PixelTokenizer.spec.__class__(2, (2, 1), 9, 1, 8)})(), job)


def test_a_program_may_end_inside_a_stream(monkeypatch):
    """Then the generator is not closed."""
    at_exit = []
    monkeypatch.setattr(frames, "_AHEAD", 1)
    monkeypatch.setattr(frames, "finalize", lambda thread, end: at_exit.append(end) or end)
    model, seeds = model_of(), torch.arange(3)
    parts = stream_frames(Engine(model, SamplingConfig(), slots=1), PixelTokenizer(), class_job(model, seeds, seeds))
    before = threading.active_count()
    next(parts)
    assert threading.active_count() == before + 1
    at_exit[0]()
    assert threading.active_count() == before
