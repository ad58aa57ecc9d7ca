"""`genvid sample`: classes or a prompt -> videos."""

from __future__ import annotations

import argparse
import math
from collections import deque
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from genvid import noise
from genvid.allocation import Allocator
from genvid.ar.classes import class_names
from genvid.ar.model import RowModel
from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.cli.coding import new_output, open_budget, open_tokenizer
from genvid.data.clips import read_frames, to_float
from genvid.data.video import probe, video_bytes
from genvid.device import device
from genvid.eval.pages.page import Clip, Page
from genvid.files import sha256, write_atomically
from genvid.generation.budget import BudgetConfig, missing, with_budget
from genvid.generation.engine.scheduler import PRECISIONS, Engine, RowEngine
from genvid.generation.folder import FORMATS, SampleFolder, SampleWriter, contact_sheet, fill
from genvid.generation.grammar import check_plan
from genvid.generation.pipeline import (
    Job,
    check_match,
    class_job,
    continue_video,
    prediction_job,
)
from genvid.generation.sampler import SamplingConfig
from genvid.tokens import BlockTokens, TokenizerSpec, VideoTokenizer

SHOWN, SHOWN_FRAMES = 32, 256
"""Videos of the contact sheet and the page, and their last frames that are shown."""
MOST = 10**9
"""Videos or frames: more are a mistake."""
FPS = 25.0
"""Frame rate of videos of a class."""


def sample(arguments: argparse.Namespace) -> None:
    """Classes or a prompt -> videos and index.jsonl. The same command goes on where it was interrupted."""
    config = SamplingConfig(arguments.temperature, arguments.top_k, arguments.top_p, arguments.guidance)
    _check(arguments)
    output = Path(arguments.output)
    if not (output / "about.json").is_file():
        new_output(arguments.output, "")
    model, tokenizer = load_model(arguments.model, RowModel), open_tokenizer(arguments.tokenizer)
    check_match(model, tokenizer)
    condition = _condition(arguments, model)
    about = _about(arguments, config, condition)
    fps = arguments.fps or (FPS if arguments.prompt is None else probe(arguments.prompt).fps)
    writer = SampleWriter(about["tokenizer"], model.layout.codebook_size, fps, arguments.format)
    samples = SampleFolder(output, about)
    if len(samples.samples()) < arguments.count:
        make = _sample if arguments.frames is None else _continue
        make(arguments, config, model.to(device()), tokenizer, samples, writer, condition)
        samples.finish()
    made_by = f"{arguments.precision} on {device().type}"
    _show(samples, writer, tokenizer.spec, made_by)
    print(f"{arguments.count} videos in {output}, sampled in {made_by}")


def add_sample(parser: argparse.ArgumentParser) -> None:
    """Arguments of `genvid sample`, but for the models' and those of the draw."""
    parser.add_argument("--output", required=True, metavar="DIR", help="for videos and index.jsonl; resumes there")
    condition = parser.add_mutually_exclusive_group()
    condition.add_argument("--class", dest="label", metavar="NAME_OR_NUMBER")
    condition.add_argument("--prompt", metavar="VIDEO", help="continue the first frames of this video")
    parser.add_argument("--frames", type=int, metavar="N", help="continue the whole --prompt by N frames")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="videos to make (1)")
    same = "of one precision and kind of device, video i of a seed is always the same (0)"
    parser.add_argument("--seed", type=int, default=0, help=same)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the autoregressive model (fp32)")
    spending = parser.add_mutually_exclusive_group()
    spending.add_argument("--budget", type=int, metavar="N", help="most tokens of each video's generated blocks")
    spending.add_argument("--total", type=int, metavar="N", help="most tokens of all videos together")
    parser.add_argument("--engine", choices=["genvid", "transformers"], default="genvid", help="what samples (genvid)")
    parser.add_argument("--lengths", type=int, nargs="+", metavar="N", help="tokens of each block, exactly")
    parser.add_argument("--format", choices=FORMATS, default="mp4", help="files of the videos (mp4)")
    at_a_time = "videos at a time (under --total at least 32 rows): memory, not results (16)"
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help=at_a_time)
    parser.add_argument("--fps", type=float, help="frame rate of the videos (that of --prompt, or 25)")


def _check(arguments: argparse.Namespace) -> None:
    """ValueError for numbers out of range, and for arguments that would be ignored."""
    count, batch_size, frames, fps = arguments.count, arguments.batch_size, arguments.frames, arguments.fps
    if min(count, batch_size) < 1 or max(count, batch_size) > MOST:
        raise ValueError(f"--count and --batch-size are at least 1 and at most {MOST:,}, got {count} and {batch_size}")
    if (fps is not None and not 0 < fps < math.inf) or (frames is not None and not 1 <= frames <= MOST):
        raise ValueError(f"--fps is above 0 and --frames at least 1 (and at most {MOST:,}), got {fps} and {frames}")
    cut = arguments.scorer is not None or arguments.tokens is not None or arguments.published
    if arguments.prompt is None and cut:
        raise ValueError("--scorer, --tokens and --published cut a --prompt: tokens of a class are --budget or --total")
    has_budget = arguments.budget is not None or arguments.total is not None
    if arguments.lengths is not None and has_budget:
        raise ValueError("--lengths are exact: leave out --budget and --total, or --lengths")
    if frames is not None and arguments.prompt is None:
        raise ValueError("--frames are those that follow a video: give --prompt")
    if frames is not None and (has_budget or arguments.lengths is not None):
        raise ValueError("--frames goes on window by window: leave out --budget, --total and --lengths, or --frames")
    if frames is not None and arguments.guidance != 1:
        raise ValueError("--frames has no null condition that guidance is measured against: leave out --guidance")


def _about(arguments: argparse.Namespace, config: SamplingConfig, condition: dict[str, Any]) -> dict[str, Any]:
    """Everything that the samples depend on."""
    folders = ("model", "tokenizer", "scorer")
    paths = {role: getattr(arguments, role) for role in folders}
    options = ("count", "seed", "frames", "budget", "total", "lengths", "tokens", "published")
    made = ("engine", "precision", "format", "fps")
    return {
        **{role: None if path is None else fingerprint(resolve(path)) for role, path in paths.items()},
        "sampling": asdict(config),
        "condition": {**condition, "prompt": None if arguments.prompt is None else sha256(arguments.prompt)},
        **{name: getattr(arguments, name) for name in options + made},
    }


@torch.no_grad()
def _sample(
    arguments: argparse.Namespace,
    config: SamplingConfig,
    model: RowModel,
    tokenizer: VideoTokenizer,
    samples: SampleFolder,
    writer: SampleWriter,
    condition: dict[str, Any],
) -> None:
    """Fill the folder with what is missing in it."""
    job, engine = _job(arguments, model, tokenizer, condition), _engine(arguments, model, config)
    job = replace(job, requests=with_budget(engine, job.requests, BudgetConfig(arguments.budget, arguments.total)))
    numbers = missing(job.requests, samples.samples())
    budget = arguments.total if arguments.budget is None else arguments.budget
    fill(
        samples,
        writer,
        engine,
        tokenizer,
        job.only(numbers),
        numbers=numbers,
        conditions=[condition | {"budget": budget}] * len(numbers),
        batch_size=arguments.batch_size,
    )


def _continue(
    arguments: argparse.Namespace,
    config: SamplingConfig,
    model: RowModel,
    tokenizer: VideoTokenizer,
    samples: SampleFolder,
    writer: SampleWriter,
    condition: dict[str, Any],
) -> None:
    """The whole prompt, and as many frames more as are asked for. Like `_sample`, but without token files: each part
    was decoded behind a context of its own."""
    if model.fixed_prompt:
        raise ValueError("published models predict what follows the first frames, once: leave out --frames")
    allocator = _allocator(arguments, model, tokenizer)
    prompt, spec = probe(arguments.prompt), tokenizer.spec
    read = deque(read_frames(arguments.prompt, prompt, spec), model.config.context_blocks * spec.frames_per_block)
    context = to_float(torch.cat(list(read), 1))[None]
    engine, done = _engine(arguments, model, config), samples.samples()
    seeds = noise.sample_seeds(arguments.seed, "samples", torch.arange(arguments.count))
    numbers = torch.tensor([number for number in range(arguments.count) if number not in done])
    for part in tqdm(torch.split(numbers, arguments.batch_size), desc="continuing", unit="batch"):
        contexts = context.expand(len(part), -1, -1, -1, -1)
        made = continue_video(engine, tokenizer, allocator, contexts, seeds[part], num_frames=arguments.frames)
        new = made.videos[:, :, context.shape[2] :]
        samples.begin()
        lines = []
        for row, number in enumerate(part.tolist()):
            before = read_frames(arguments.prompt, prompt, spec)
            line = {"number": number, "file": writer.write_video(samples.path, number, new[row], before)}
            line |= {"seed": int(seeds[number]), **condition, "tokens": made.tokens.lengths[row].tolist()}
            lines.append(line)
        samples.add(lines)


def _engine(arguments: argparse.Namespace, model: RowModel, config: SamplingConfig) -> RowEngine:
    """Ours, or transformers' own, whose internals not every version has."""
    together = 1 if arguments.total is None else BudgetConfig().group_size  # rows that wait for each other
    slots = min(max(arguments.batch_size, together), arguments.count)
    dtype = PRECISIONS[arguments.precision]
    if arguments.engine == "genvid":
        return Engine(model, config, slots=slots, dtype=dtype)
    from genvid.generation.engine.transformers_engine import TransformersEngine

    return TransformersEngine(model, config, slots=slots, dtype=dtype)


def _job(arguments: argparse.Namespace, model: RowModel, tokenizer: VideoTokenizer, condition: dict[str, Any]) -> Job:
    """The videos that are asked for."""
    seeds = noise.sample_seeds(arguments.seed, "samples", torch.arange(arguments.count))
    if arguments.lengths is not None:
        check_plan(model.layout, arguments.lengths)
    planned = None if arguments.lengths is None else torch.tensor([arguments.lengths]).expand(len(seeds), -1)
    if arguments.prompt is None:
        return class_job(model, torch.full_like(seeds, condition["class"] or 0), seeds, planned=planned)
    allocator = _allocator(arguments, model, tokenizer)
    context = _prompt(arguments.prompt, model, tokenizer.spec).expand(arguments.count, -1, -1, -1, -1)
    return prediction_job(model, tokenizer, allocator, context, seeds, planned=planned)


def _allocator(arguments: argparse.Namespace, model: RowModel, tokenizer: VideoTokenizer) -> Allocator | None:
    """The rule that cuts contexts. Each is cut by itself: a video does not depend on the others."""
    budget = open_budget(arguments, tokenizer)
    if budget is None:
        return None
    rule = budget(model.config.context_blocks)

    def cut(tokens: BlockTokens) -> BlockTokens:
        return BlockTokens.concatenate([rule(tokens[row : row + 1]) for row in range(len(tokens.keep))])

    return cut


def _show(samples: SampleFolder, writer: SampleWriter, spec: TokenizerSpec, made_by: str) -> None:
    """A contact sheet and a playable page of the first samples."""
    clips, videos = [], []
    for number, line in islice(samples.samples().items(), SHOWN):
        video = writer.read_video(samples.path, line["file"], SHOWN_FRAMES)
        played = video_bytes(video, writer.fps, scale=max(1, 128 // min(spec.resolution)))
        caption = f"{number}: {sum(line['tokens'])} tokens"
        clips.append(Clip(played, caption, line["tokens"], spec.block_capacity))
        videos.append(video)
    with write_atomically(samples.path / "contact_sheet.png") as temporary:
        temporary.write_bytes(contact_sheet(videos))
    page = Page("Samples", lead=f"Sampled in {made_by}. Bars are the tokens of each block.")
    page.section("First samples").clips(clips)
    page.write(samples.path / "page.html")


def _condition(arguments: argparse.Namespace, model: RowModel) -> dict[str, Any]:
    """What the index says of a sample's condition; ValueError when it is not one of this model."""
    if arguments.prompt is None:
        return {"class": _class_number(arguments, model)}
    if not model.config.context_blocks:
        raise ValueError("this model generates classes, it does not continue videos: give --class in place of --prompt")
    return {"prompt": str(arguments.prompt)}


def _prompt(path: str, model: RowModel, spec: TokenizerSpec) -> Tensor:
    """The first frames (1, 3, T0, H, W) of a video, as many as the model reads."""
    return _frames(path, model.prompt_frames(spec), spec)


def _frames(path: str, count: int, spec: TokenizerSpec) -> Tensor:
    """The first frames (1, 3, count, H, W) of a video, in [-1, 1]."""
    info = probe(path)
    if info.frames < count:
        raise ValueError(f"{path} has {info.frames} frames, but this model reads {count}")
    return to_float(torch.cat(list(islice(read_frames(path, info, spec), count)), 1))[None]


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
