"""`genvid sample`: classes or a prompt -> videos."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from genvid import noise
from genvid.ar.model import RowModel, load_row_model
from genvid.ar.published import PublishedTransformer
from genvid.checkpoint import fingerprint, resolve
from genvid.cli.coding import new_output, open_budget, open_tokenizer
from genvid.data.clips import ClipConfig, to_float, to_uint8
from genvid.data.video import probe, read_clip, video_bytes
from genvid.eval.page import Clip, Page
from genvid.files import write_atomically
from genvid.generation.budget import BudgetConfig, with_budget
from genvid.generation.engine import Engine, RowEngine
from genvid.generation.folder import SampleFolder, SampleWriter, contact_sheet, fill
from genvid.generation.pipeline import (
    Job,
    check_match,
    class_job,
    continue_video,
    prediction_job,
    published_prediction_job,
)
from genvid.generation.sampler import SamplingConfig
from genvid.recipes.loading import class_names, device
from genvid.tokens import TokenizerSpec, VideoTokenizer

SHOWN = 32
"""Videos of the contact sheet and the page."""


def sample(arguments: argparse.Namespace) -> None:
    """Classes or a prompt -> videos and index.jsonl."""
    config = SamplingConfig(arguments.temperature, arguments.top_k, arguments.top_p, arguments.guidance)
    if arguments.count < 1 or arguments.batch_size < 1:
        raise ValueError(f"--count and --batch-size are at least 1, got {arguments.count} and {arguments.batch_size}")
    if not arguments.fps > 0 or (arguments.frames is not None and arguments.frames < 1):
        raise ValueError(f"--fps is above 0 and --frames at least 1, got {arguments.fps:g} and {arguments.frames}")
    if arguments.prompt is None and (arguments.scorer or arguments.tokens or arguments.published):
        raise ValueError("--scorer, --tokens and --published cut a --prompt: tokens of a class are --budget or --total")
    output = new_output(arguments.output, "")
    model = load_row_model(arguments.model)
    tokenizer = open_tokenizer(arguments.tokenizer)
    check_match(model, tokenizer)
    make = _sample if arguments.frames is None else _continue
    fps = arguments.fps if arguments.prompt is None else probe(arguments.prompt).fps
    writer = SampleWriter(fingerprint(resolve(arguments.tokenizer)), model.layout.codebook_size, fps, arguments.format)
    with write_atomically(output) as folder:
        samples = SampleFolder(folder, {"model": arguments.model, "tokenizer": arguments.tokenizer})
        videos = make(arguments, config, model.to(device()), tokenizer, samples, writer)
        samples.finish()
        _show(samples, videos, writer, tokenizer.spec)


@torch.no_grad()
def _sample(
    arguments: argparse.Namespace,
    config: SamplingConfig,
    model: RowModel,
    tokenizer: VideoTokenizer,
    samples: SampleFolder,
    writer: SampleWriter,
) -> list[Tensor]:
    """Fill the folder; the first videos (3, T, H, W) uint8."""
    job, condition = _job(arguments, model, tokenizer)
    engine = _engine(arguments, model, config)
    budget = BudgetConfig(arguments.budget, arguments.total, group_size=min(arguments.batch_size, arguments.count))
    job = replace(job, requests=with_budget(engine, job.requests, budget))
    fill(
        samples,
        writer,
        engine,
        tokenizer,
        job,
        numbers=range(arguments.count),
        conditions=[condition | {"budget": arguments.budget or arguments.total}] * arguments.count,
        batch_size=arguments.batch_size,
    )
    shown = range(min(arguments.count, SHOWN))
    tokens = [samples.tokens(number, tokenizer.spec, tokenizer=writer.tokenizer) for number in shown]
    return [to_uint8(tokenizer.decode(part.to(device()))[0]).cpu() for part in tokens]


def _continue(
    arguments: argparse.Namespace,
    config: SamplingConfig,
    model: RowModel,
    tokenizer: VideoTokenizer,
    samples: SampleFolder,
    writer: SampleWriter,
) -> list[Tensor]:
    """The whole prompt, and as many frames more as are asked for. Like `_sample`, but without token files: each part
    was decoded behind a context of its own."""
    if arguments.prompt is None:
        raise ValueError("--frames are those that follow a video: give --prompt")
    if isinstance(model, PublishedTransformer):
        raise ValueError("published models predict what follows the first frames, once: leave out --frames")
    if arguments.budget or arguments.total or arguments.lengths:
        raise ValueError("--frames goes on window by window: leave out --budget, --total and --lengths, or --frames")
    allocator = open_budget(arguments, tokenizer)
    prompt = _frames(arguments.prompt, probe(arguments.prompt).frames, tokenizer.spec)
    seeds = noise.sample_seeds(arguments.seed, "samples", torch.arange(arguments.count))
    with tqdm(desc="continuing", unit="block") as bar:

        def progress(done: int, wanted: int) -> None:
            bar.total = wanted
            bar.update(done - bar.n)

        made = continue_video(
            _engine(arguments, model, config),
            tokenizer,
            None if allocator is None else allocator(model.config.context_blocks),
            prompt.expand(arguments.count, -1, -1, -1, -1),
            seeds,
            num_frames=arguments.frames,
            progress=progress,
        )
    for number, video in enumerate(made.videos):
        line = {"number": number, "file": writer.write_video(samples.path, number, video)}
        line |= {"seed": int(seeds[number]), "prompt": str(arguments.prompt)}
        samples.add([line | {"tokens": made.tokens.lengths[number].tolist()}])
    return [to_uint8(video) for video in made.videos[:SHOWN]]


def _engine(arguments: argparse.Namespace, model: RowModel, config: SamplingConfig) -> RowEngine:
    """Ours, or transformers' own, whose internals not every version has."""
    slots = min(arguments.batch_size, arguments.count)
    dtype = torch.bfloat16 if device().type == "cuda" else None
    if arguments.engine == "genvid":
        return Engine(model, config, slots=slots, dtype=dtype)
    from genvid.generation.stock import StockEngine

    return StockEngine(model, config, slots=slots, dtype=dtype)


def _job(arguments: argparse.Namespace, model: RowModel, tokenizer: VideoTokenizer) -> tuple[Job, dict[str, Any]]:
    """What is asked for, and what the index says of its condition."""
    seeds = noise.sample_seeds(arguments.seed, "samples", torch.arange(arguments.count))
    planned = None if arguments.lengths is None else torch.tensor([arguments.lengths]).expand(len(seeds), -1)
    if arguments.prompt is None:
        label = _class_number(arguments, model)
        return class_job(model, torch.full_like(seeds, label or 0), seeds, planned=planned), {"class": label}
    allocator = open_budget(arguments, tokenizer)
    context = _prompt(arguments.prompt, model, tokenizer.spec).expand(arguments.count, -1, -1, -1, -1)
    condition = {"prompt": str(arguments.prompt)}
    if not isinstance(model, PublishedTransformer):
        cut = None if allocator is None else allocator(model.config.context_blocks)
        return prediction_job(model, tokenizer, cut, context, seeds, planned=planned), condition
    if allocator is not None or planned is not None:
        raise ValueError("published models read their prompt uncut: leave out --scorer, --tokens and --lengths")
    return published_prediction_job(model, tokenizer, context, seeds), condition


def _show(samples: SampleFolder, videos: list[Tensor], writer: SampleWriter, spec: TokenizerSpec) -> None:
    """A contact sheet and a playable page of the first samples, (3, T, H, W) uint8."""
    clips = []
    for video, (number, line) in zip(videos, samples.samples().items(), strict=False):
        played = video_bytes(video, writer.fps, scale=max(1, 128 // min(spec.resolution)))
        caption = f"{number}: {sum(line['tokens'])} tokens"
        clips.append(Clip(played, caption, line["tokens"], spec.block_capacity))
    (samples.path / "contact_sheet.png").write_bytes(contact_sheet(videos))
    page = Page("Samples", lead="Bars are the tokens of each block.")
    page.section("First samples").clips(clips)
    page.write(samples.path / "page.html")


def _prompt(path: str, model: RowModel, spec: TokenizerSpec) -> Tensor:
    """The first frames (1, 3, T0, H, W) of a video, as many as the model reads."""
    frames = model.config.context_blocks * spec.frames_per_block
    if not frames:
        raise ValueError("this model generates classes, it does not continue videos: give --class in place of --prompt")
    if isinstance(model, PublishedTransformer):  # as published: one frame of the first block that is generated
        frames = min(model.config.first_block * spec.frames_per_block + 1, frames)
    return _frames(path, frames, spec)


def _frames(path: str, count: int, spec: TokenizerSpec) -> Tensor:
    """The first frames (1, 3, count, H, W) of a video, in [-1, 1]."""
    clip = ClipConfig(frames=count, resolution=spec.resolution)
    return to_float(clip.fit(torch.from_numpy(read_clip(path, 0, count)), seed=0))[None]


def _class_number(arguments: argparse.Namespace, model: RowModel) -> int | None:
    """The class asked for by name or number; None where the model has no classes."""
    wanted, count = arguments.label, model.layout.num_classes
    if model.config.context_blocks:
        raise ValueError("this model continues videos, it does not generate classes: give --prompt")
    if not count:
        if wanted is not None:
            raise ValueError("this model has no classes: leave out --class")
        return None
    names = class_names(model)
    known = f"a number from 0 to {count - 1}" + (f", or one of {', '.join(names)}" if names else "")
    if wanted is None:
        raise ValueError(f"give --class (or --prompt, for a model that continues videos); a class is {known}")
    if wanted in names:
        return names.index(wanted)
    if not wanted.isdecimal() or int(wanted) >= count:
        raise ValueError(f"this model has no class '{wanted}'; a class is {known}")
    return int(wanted)
