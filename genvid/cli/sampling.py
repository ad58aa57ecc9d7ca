"""`genvid sample`: classes or a prompt -> videos."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from genvid import config as configuration
from genvid import noise
from genvid.allocation import Allocator
from genvid.ar.classes import class_number
from genvid.ar.draft import DraftHeads
from genvid.ar.row_model import RowModel
from genvid.checkpoint import fingerprint, load_model, model_name, resolve
from genvid.cli.coding import BudgetOptions, new_output, open_tokenizer
from genvid.data.clips import read_frames, to_float
from genvid.data.video import probe, video_bytes, video_sha256
from genvid.device import device
from genvid.eval.pages.page import Clip, Page
from genvid.files import write_atomically
from genvid.generation.budget import BudgetConfig, missing, with_budget
from genvid.generation.engine.scheduler import Engine, RowEngine
from genvid.generation.folder import SampleFolder, SampleWriter, contact_sheet, fill, fill_by_frames
from genvid.generation.grammar import check_plan
from genvid.generation.pipeline import (
    Generated,
    Job,
    check_match,
    class_job,
    continue_stream,
    continue_video,
    prediction_job,
    trained_cut,
)
from genvid.generation.sampler import SamplingConfig
from genvid.precision import PRECISIONS, Precision
from genvid.tokenizer.streams import streams, video_decoder, video_encoder
from genvid.tokens import BlockTokens, TokenizerSpec, VideoTokenizer
from genvid.tokens.frame_blocks import LONGEST_CLIP

SHOWN, SHOWN_FRAMES = 32, 256
"""Videos on the contact sheet and the page, and the number of their last frames shown."""
MOST = 10**9
"""Largest number of videos or frames: a larger one is a typing error."""
FPS = 25.0
"""Frames per second of videos of a class."""


@dataclass(frozen=True)
class SampleOptions:
    """Options of `sample`."""

    _: KW_ONLY
    model: str
    """Autoregressive model: model folder or Hub id."""
    tokenizer: str
    """Model folder or Hub id."""
    output: Path
    """Folder for videos and index.jsonl. The same command resumes there."""
    class_: str | None = None
    """Class by name or number."""
    prompt: Path | None = None
    """Video whose first frames are continued."""
    frames: int | None = None
    """Continue the complete --prompt by N frames."""
    prompt_budget: BudgetOptions = field(default_factory=BudgetOptions)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    count: int = 1
    """Number of videos."""
    seed: int = 0
    """Random seed. Video i of a seed is always the same, on one kind of device and in one precision (under a budget,
    for one --count)."""
    budget: int | None = None
    """Most tokens of the generated blocks of each video."""
    total: int | None = None
    """Most tokens of all videos together."""
    lengths: tuple[int, ...] = ()
    """Exact number of tokens of each block."""
    precision: Precision = "fp32"
    """Precision of the autoregressive model."""
    draft: str | None = None
    """Draft heads of the model, which guess codes that it verifies: the same distribution in fewer steps."""
    engine: Literal["genvid", "transformers"] = "genvid"
    """Engine that draws the tokens."""
    format: Literal["mp4", "npz", "png"] = "mp4"
    """Files of the videos."""
    stream: bool = False
    """Write the frames of each block as soon as its tokens are complete (needs --format png)."""
    batch_size: int = 16
    """Videos at a time; changes memory, not results. Under --total at least 32."""
    fps: float | None = None
    """Frame rate of the videos (default: that of --prompt, or 25)."""

    def __post_init__(self) -> None:
        """ValueError for numbers out of range, and for options that exclude each other or would be ignored."""
        if min(self.count, self.batch_size) < 1 or max(self.count, self.batch_size) > MOST:
            got = f"{self.count} and {self.batch_size}"
            raise ValueError(f"--count and --batch-size are at least 1 and at most {MOST:,}, got {got}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"--fps is above 0, got {self.fps}")
        if self.class_ is not None and self.prompt is not None:
            raise ValueError("--class and --prompt exclude each other: leave one out")
        if self.total is not None and self.budget is not None:
            raise ValueError("--budget and --total exclude each other: leave one out")
        if self.prompt is None and self.prompt_budget:
            raise ValueError(
                "--scorer, --tokens and --published cut a --prompt: tokens of a class are --budget or --total"
            )
        if self.lengths and self.has_budget:
            raise ValueError("--lengths are exact: leave out --budget and --total, or --lengths")
        if self.stream and (self.format != "png" or self.engine != "genvid" or self.frames is not None):
            raise ValueError(
                "--stream writes frames one by one, from genvid's own engine: give --format png, and leave out "
                "--engine and --frames"
            )
        if self.draft is not None and self.engine != "genvid":
            raise ValueError("--draft needs genvid's own engine: leave out --engine, or --draft")
        if self.frames is not None:
            self._check_frames(self.frames)

    def _check_frames(self, frames: int) -> None:
        if not 1 <= frames <= MOST:
            raise ValueError(f"--frames is at least 1 and at most {MOST:,}, got {frames}")
        if self.prompt is None:
            raise ValueError("--frames continues a video: give --prompt")
        if self.has_budget or self.lengths:
            raise ValueError(
                "--frames continues window by window: leave out --budget, --total and --lengths, or --frames"
            )

    @property
    def has_budget(self) -> bool:
        return self.total is not None or self.budget is not None


def sample(options: SampleOptions) -> None:
    """Generate videos of a class, or videos that continue a prompt."""
    if not (options.output / "about.json").is_file():
        new_output(options.output, "")
    model, tokenizer = load_model(options.model, RowModel), open_tokenizer(options.tokenizer)
    check_match(model, tokenizer)
    condition = _condition(options, model)
    about = _about(options, condition)
    fps = options.fps or (FPS if options.prompt is None else probe(options.prompt).fps)
    maker = model_name(options.tokenizer), about["tokenizer"]
    writer = SampleWriter(maker, tokenizer.spec, fps, options.format)
    samples = SampleFolder(options.output, about)
    if len(samples.samples()) < options.count:
        make = _sample if options.frames is None else _continue
        make(options, model.to(device()), tokenizer, samples, writer, condition)
        samples.finish()
    made_by = f"{options.precision} on {device().type}"
    _show(samples, writer, tokenizer.spec, made_by)
    print(f"{options.count} videos in {options.output}, sampled in {made_by}")


def _about(options: SampleOptions, condition: dict[str, Any]) -> dict[str, Any]:
    """Everything that the samples depend on."""
    cut = options.prompt_budget
    folders = {"model": options.model, "tokenizer": options.tokenizer, "scorer": cut.scorer, "draft": options.draft}
    names = ("count", "seed", "frames", "budget", "total", "engine", "precision", "format", "fps")
    return {
        **{role: None if path is None else fingerprint(resolve(path)) for role, path in folders.items()},
        "sampling": configuration.encode(options.sampling),
        "condition": {**condition, "prompt": None if options.prompt is None else video_sha256(options.prompt)},
        **{name: getattr(options, name) for name in names},
        "lengths": options.lengths or None,
        "tokens": cut.tokens,
        "published": cut.published,
    }


@torch.no_grad()
def _sample(
    options: SampleOptions,
    model: RowModel,
    tokenizer: VideoTokenizer,
    samples: SampleFolder,
    writer: SampleWriter,
    condition: dict[str, Any],
) -> None:
    """Generate the samples that the folder lacks."""
    job, engine = _job(options, model, tokenizer, condition), _engine(options, model)
    job = replace(job, requests=with_budget(engine, job.requests, BudgetConfig(options.budget, options.total)))
    numbers = missing(job.requests, samples.samples())
    budget = options.total if options.budget is None else options.budget
    conditions, job = [condition | {"budget": budget}] * len(numbers), job.only(numbers)
    if options.stream:
        assert isinstance(engine, Engine)
        first = fill_by_frames(samples, writer, engine, tokenizer, job, numbers=numbers, conditions=conditions)
        print(f"first frames after {first:.3f} s")
    else:
        size = options.batch_size
        fill(samples, writer, engine, tokenizer, job, numbers=numbers, conditions=conditions, batch_size=size)
    if isinstance(engine, Engine) and engine.slots.most > 1:
        print(f"{engine.tokens / engine.row_steps:.2f} tokens a step")


def _continue(
    options: SampleOptions,
    model: RowModel,
    tokenizer: VideoTokenizer,
    samples: SampleFolder,
    writer: SampleWriter,
    condition: dict[str, Any],
) -> None:
    """Like `_sample`, for the complete prompt and `frames` more, without token files: each part of the continuation was
    decoded behind a context of its own."""
    path, num_frames = options.prompt, options.frames
    assert path is not None
    assert num_frames is not None
    if model.fixed_prompt:
        raise ValueError("published models continue the first frames once, by a fixed length: leave out --frames")
    if options.sampling.guided and not model.config.null_context:
        raise ValueError(
            "--guidance with --frames needs a model that was also trained without its context "
            "(objective.context_dropout): leave out --guidance"
        )
    allocator = _allocator(options, model, tokenizer)
    prompt, spec = probe(path), tokenizer.spec
    engine, done = _engine(options, model), samples.samples()
    begin = _continued_stream if streams(tokenizer) else _continued_clips
    go_on = begin(engine, tokenizer, allocator, path, num_frames)
    seeds = noise.sample_seeds(options.seed, "samples", torch.arange(options.count))
    numbers = torch.tensor([number for number in range(options.count) if number not in done])
    for part in tqdm(torch.split(numbers, options.batch_size), desc="continuing", unit="batch"):
        made = go_on(seeds[part])
        samples.begin()
        lines = []
        for row, number in enumerate(part.tolist()):
            before = read_frames(path, prompt, spec)
            line = {"number": number, "file": writer.write_video(samples.path, number, made.videos[row], before)}
            line |= {"seed": int(seeds[number]), **condition, "tokens": made.tokens.lengths[row].tolist()}
            lines.append(line)
        samples.add(lines)


def _continued_clips(
    engine: RowEngine, tokenizer: VideoTokenizer, allocator: Allocator | None, path: Path, num_frames: int
) -> Callable[[Tensor], Generated]:
    """(N,) seeds -> the next frames of a video file, the end of which is encoded anew before each part."""
    spec = tokenizer.spec
    read = deque(read_frames(path, probe(path), spec), engine.model.prompt_frames(spec))
    context = to_float(torch.cat(list(read), 1))[None]

    def go_on(seeds: Tensor) -> Generated:
        contexts = context.expand(len(seeds), -1, -1, -1, -1)
        made = continue_video(engine, tokenizer, allocator, contexts, seeds, num_frames=num_frames)
        return replace(made, videos=made.videos[:, :, context.shape[2] :])

    return go_on


def _continued_stream(
    engine: RowEngine, tokenizer: VideoTokenizer, allocator: Allocator | None, path: Path, num_frames: int
) -> Callable[[Tensor], Generated]:
    """The same for a tokenizer that streams: the video is encoded once, and its tokens go on."""
    model, sinks = engine.model, engine.model.config.sink_blocks
    tokens = _ends_of_stream(tokenizer, path, sinks)
    context = model.stream_context(tokens)
    context = context if allocator is None else allocator(context.to(device())).to("cpu")
    last = context.keep.shape[1] - sinks
    between = tokens.blocks(slice(sinks, tokens.keep.shape[1] - last))
    tokens = BlockTokens.join_blocks([context.blocks(slice(sinks)), between, context.blocks(slice(sinks, None))])

    def go_on(seeds: Tensor) -> Generated:
        beginnings, decode_next = BlockTokens.concatenate([tokens] * len(seeds)), video_decoder(tokenizer)
        decode_next(beginnings.to(device()))
        blocks, at_a_time = tokenizer.spec.continued.covering(num_frames), model.generated_blocks
        made = [*continue_stream(engine, decode_next, beginnings, seeds, num_blocks=blocks, at_a_time=at_a_time)]
        videos = torch.cat([part.videos for part in made], 2)[:, :, :num_frames]
        return Generated(videos, BlockTokens.join_blocks([part.tokens for part in made]))

    return go_on


def _ends_of_stream(tokenizer: VideoTokenizer, path: Path, first: int) -> BlockTokens:
    """The `first` and the last blocks of a video file, `LONGEST_CLIP` together, encoded as a stream; its first frames
    are left out where they do not fill a block, so that the last block ends with the video."""
    info, spec = probe(path), tokenizer.spec
    lengths = spec.block_frames(spec.complete(info.frames))
    frames = islice(read_frames(path, info, spec), info.frames - sum(lengths), None)
    encode_next, blocks = video_encoder(tokenizer), list[BlockTokens]()
    for count in lengths:
        block = to_float(torch.cat(list(islice(frames, count)), 1))[None]
        blocks.append(encode_next(block.to(device())).to("cpu"))
        if len(blocks) > LONGEST_CLIP:
            del blocks[first]
    if not blocks:
        raise ValueError(
            f"{path} has {info.frames} frames, fewer than the {spec.frames_of(0)} of a block: give a longer prompt"
        )
    return BlockTokens.join_blocks(blocks)


def _engine(options: SampleOptions, model: RowModel) -> RowEngine:
    """The engine of this name. That of transformers is imported late: it needs internals that not every version has."""
    together = 1 if options.total is None else BudgetConfig().group_size  # rows of a group are planned together
    slots = min(max(options.batch_size, together), options.count)
    dtype = PRECISIONS[options.precision]
    if options.engine == "genvid":
        draft = None if options.draft is None else load_model(options.draft, DraftHeads)
        return Engine(model, options.sampling, slots=slots, dtype=dtype, draft=draft)
    from genvid.generation.engine.transformers_engine import TransformersEngine

    return TransformersEngine(model, options.sampling, slots=slots, dtype=dtype)


def _job(options: SampleOptions, model: RowModel, tokenizer: VideoTokenizer, condition: dict[str, Any]) -> Job:
    """Requests of all samples."""
    seeds = noise.sample_seeds(options.seed, "samples", torch.arange(options.count))
    if options.lengths:
        check_plan(model.layout, options.lengths)
    planned = torch.tensor([options.lengths]).expand(len(seeds), -1) if options.lengths else None
    if options.prompt is None:
        return class_job(model, torch.full_like(seeds, condition["class"] or 0), seeds, planned=planned)
    allocator = _allocator(options, model, tokenizer)
    context = _prompt(options.prompt, model, tokenizer.spec).expand(options.count, -1, -1, -1, -1)
    return prediction_job(model, tokenizer, allocator, context, seeds, planned=planned)


def _allocator(options: SampleOptions, model: RowModel, tokenizer: VideoTokenizer) -> Allocator | None:
    """The allocator of contexts, by default as in training. It cuts each by itself, so that a video does not depend on
    the others."""
    budget = options.prompt_budget.build(tokenizer)
    if budget is None:
        return trained_cut(model, None)
    allocator = budget.allocator(model.config.context_blocks)

    def cut(tokens: BlockTokens) -> BlockTokens:
        return BlockTokens.concatenate([allocator(tokens[row : row + 1]) for row in range(len(tokens.keep))])

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


def _condition(options: SampleOptions, model: RowModel) -> dict[str, Any]:
    """Condition of the samples as in index.jsonl; ValueError if the model does not take it."""
    if options.prompt is None:
        return {"class": class_number(model, options.class_)}
    if not model.config.context_blocks:
        raise ValueError("this model generates classes, it does not continue videos: give --class in place of --prompt")
    return {"prompt": str(options.prompt)}


def _prompt(path: Path, model: RowModel, spec: TokenizerSpec) -> Tensor:
    """The first frames of a video, as many as the model reads: (1, 3, T0, H, W) in [-1, 1]."""
    info, count = probe(path), model.prompt_frames(spec)
    if info.frames < count:
        raise ValueError(f"{path} has {info.frames} frames, but this model reads {count}")
    return to_float(torch.cat(list(islice(read_frames(path, info, spec), count)), 1))[None]
