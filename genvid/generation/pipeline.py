"""From a class or a prompt video to videos: prefixes, engine, tokenizer.

A `Job` holds requests, and the map from their rows to tokens. `stream` yields videos as their rows finish, `generate`
returns all of them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genvid import noise
from genvid.allocation import Allocator, DistortionPredictor, JointAllocator, UniformAllocator
from genvid.ar.row_model import RowModel
from genvid.generation.engine.scheduler import Request, RowEngine
from genvid.tokens import BlockTokens, VideoTokenizer


@dataclass(frozen=True)
class Generated:
    """Sampled videos and their tokens."""

    videos: Tensor
    """(B, 3, T, H, W) float in [-1, 1], on the CPU."""
    tokens: BlockTokens
    """On the CPU; `tokens.lengths` are the tokens of each block."""


@dataclass(frozen=True)
class Job:
    """Videos to sample."""

    requests: list[Request]
    """`genvid.generation.budget.with_budget` replaces them by the same ones under a budget."""
    unpack: Callable[[int, Tensor], BlockTokens]
    """(index of a request, its row (S,)) -> the tokens of the complete video."""

    def only(self, numbers: Sequence[int]) -> Job:
        """The job of these requests only."""
        return Job([self.requests[number] for number in numbers], lambda i, row: self.unpack(numbers[i], row))


def class_job(model: RowModel, labels: Tensor, seeds: Tensor, *, planned: Tensor | None = None) -> Job:
    """(N,) classes and (N,) seeds -> N videos. `planned` (N, G): fixed block lengths.

    For a model without classes only the number of `labels` counts.
    """
    layout = model.layout
    if model.config.context_blocks:
        raise ValueError("this model predicts frames from a prompt; it does not generate classes")
    prefixes = layout.class_prefix(labels) if layout.num_classes else layout.null_prefix(len(labels))
    null = layout.null_prefix(len(labels)).tolist()
    requests = _requests(prefixes.tolist(), seeds, layout.num_blocks, planned, null)
    return Job(requests, lambda _, row: layout.unpack(row[None]))


@torch.no_grad()
def prediction_job(
    model: RowModel,
    tokenizer: VideoTokenizer,
    allocator: Callable[[BlockTokens], BlockTokens] | None,
    context: Tensor,
    seeds: Tensor,
    *,
    planned: Tensor | None = None,
    num_blocks: int | None = None,
) -> Job:
    """(N, 3, T0, H, W) frames -> N videos: the reconstructed context, and generated blocks after it.

    The context is the last `model.prompt_frames` frames, encoded without earlier ones and cut by `allocator` (None: not
    cut). `num_blocks` (by default `model.generated_blocks`) follow, of `planned` (N, num_blocks) lengths. Published
    models (`fixed_prompt`) support none of these options.
    """
    if model.fixed_prompt and not (allocator is None and planned is None and num_blocks is None):
        raise ValueError(
            "a published model reads the first frames of a video uncut and continues them once: leave out the "
            "allocator (--scorer, --tokens, --published), planned lengths (--lengths) and numbers of blocks (--frames)"
        )
    prompt = model.read_prompt(tokenizer, context, allocator)
    requests = _requests(prompt.prefixes, seeds, num_blocks or model.generated_blocks, planned, prompt.null_prefixes)
    return Job(requests, prompt.unpack)


def trained_allocator(model: RowModel) -> dict[str, Any]:
    """The allocator of the token cache that a model was trained on, as recorded; empty where none is."""
    recorded: dict[str, Any] = model.origin.made_from.get("cache", {}).get("allocator", {})
    return recorded


def trained_cut(model: RowModel, predictor: DistortionPredictor | None) -> Allocator | None:
    """The allocator of a prompt, as the rows that the model was trained on were cut: evenly, or each prompt to its
    share of their mean tokens by `predictor`; None: all tokens are kept. ValueError where that needs a predictor."""
    layout, trained = model.layout, trained_allocator(model)
    tokens = trained.get("tokens_per_video", layout.largest * layout.num_blocks)
    if trained.get("type") == "uniform":
        return UniformAllocator(max(size for size in layout.sizes if size <= tokens / layout.num_blocks))
    if tokens >= layout.block_capacity * layout.num_blocks:
        return None
    if predictor is None:
        raise ValueError(
            f"{model.folder} was trained on clips of at most {tokens:g} tokens: give --scorer and --tokens (in Python "
            "scorer or prompt_tokens) as in training, since the prompt is cut in the same way"
        )
    return JointAllocator(predictor, tokens * model.config.context_blocks / layout.num_blocks, group_size=1)


def stream(
    engine: RowEngine, tokenizer: VideoTokenizer, job: Job, *, batch_size: int = 16
) -> Iterator[tuple[list[int], Generated]]:
    """Yield (indices of requests, their videos) as rows finish, decoded up to `batch_size` at a time."""
    check_match(engine.model, tokenizer)
    engine.check(job.requests)
    return _stream(engine, tokenizer, job, batch_size)


def generate(engine: RowEngine, tokenizer: VideoTokenizer, job: Job, *, batch_size: int = 16) -> Generated:
    """All videos of a job, in the order of its requests."""
    found: list[tuple[int, Generated]] = []
    for numbers, made in stream(engine, tokenizer, job, batch_size=batch_size):
        parts = [Generated(made.videos[i : i + 1], made.tokens[i : i + 1]) for i in range(len(numbers))]
        found += zip(numbers, parts, strict=True)
    made_in_order = [made for _, made in sorted(found, key=lambda pair: pair[0])]
    return Generated(
        torch.cat([made.videos for made in made_in_order]),
        BlockTokens.concatenate([made.tokens for made in made_in_order]),
    )


def continue_video(
    engine: RowEngine,
    tokenizer: VideoTokenizer,
    allocator: Callable[[BlockTokens], BlockTokens] | None,
    context: Tensor,
    seeds: Tensor,
    *,
    num_frames: int,
    at_a_time: int | None = None,
) -> Generated:
    """(N, 3, T0, H, W) videos of any length -> the same with `num_frames` more frames; tokens of the new blocks only.

    The context slides: before each `at_a_time` blocks (by default `model.generated_blocks`) the last frames are encoded
    anew, as the beginning of a clip. Extra frames of the last block are dropped.
    """
    model, spec = engine.model, tokenizer.spec
    given, wanted = model.config.context_blocks, spec.continued.covering(num_frames)
    at_a_time = model.generated_blocks if at_a_time is None else at_a_time
    if num_frames < 1 or at_a_time < 1:
        raise ValueError(f"num_frames and at_a_time are at least 1, got {num_frames} and {at_a_time}")
    video, made = context.cpu(), list[BlockTokens]()
    for start in range(0, wanted, at_a_time):
        blocks, seeds_here = min(at_a_time, wanted - start), noise.fold(seeds, start)
        job = prediction_job(model, tokenizer, allocator, video, seeds_here, num_blocks=blocks)
        clip = generate(engine, tokenizer, job)
        video = torch.cat([video, clip.videos[:, :, spec.longest_clip(given) :]], 2)
        made.append(clip.tokens.blocks(slice(given, None)))
    return Generated(video[:, :, : context.shape[2] + num_frames], BlockTokens.join_blocks(made))


def continue_stream(
    engine: RowEngine,
    decode_next: Callable[[BlockTokens], Tensor],
    tokens: BlockTokens,
    seeds: Tensor,
    *,
    num_blocks: int,
    at_a_time: int = 1,
) -> Iterator[Generated]:
    """The (N, G, L) tokens of the beginning of N streams -> the next blocks, `at_a_time` as soon as they are sampled.

    The model reads the last blocks of tokens, given or sampled, behind the first ones (`RowModel.stream_context`):
    nothing is encoded again. `decode_next` decodes the next blocks of the streams, whose beginning it has decoded
    (genvid.tokenizer.streams).
    """
    model, given = engine.model, engine.model.config.context_blocks
    for start in range(0, num_blocks, at_a_time):
        tokens = model.stream_context(tokens.blocks(slice(None)))
        prompt = model.continuation(tokens)
        here = noise.fold(seeds, start)
        requests = _requests(prompt.prefixes, here, min(at_a_time, num_blocks - start), None, prompt.null_prefixes)
        rows = dict(engine.run(requests))
        whole = BlockTokens.concatenate([prompt.unpack(number, rows[number]) for number in range(len(requests))])
        made = whole.blocks(slice(given, None))
        videos = decode_next(made.to(model.device)).float().clamp(-1, 1).cpu()
        yield Generated(videos, made)
        tokens = BlockTokens.join_blocks([tokens.to("cpu"), made])


def check_match(model: RowModel, tokenizer: VideoTokenizer) -> None:
    """ValueError unless model and tokenizer have the same codes and blocks; ProvenanceError if the model was trained on
    the tokens of another tokenizer."""
    layout, spec = model.layout, tokenizer.spec
    ours, theirs = (layout.codebook_size, layout.block_capacity), (spec.codebook_size, spec.block_capacity)
    if ours != theirs:
        raise ValueError(
            f"the model belongs to another tokenizer: it has {ours[0]} codes in blocks of {ours[1]}, the tokenizer "
            f"{theirs[0] or 'no'} codes in blocks of {theirs[1]}"
        )
    if spec.max_blocks is not None and layout.num_blocks > spec.max_blocks:
        raise ValueError(f"rows have {layout.num_blocks} blocks, but the tokenizer decodes at most {spec.max_blocks}")
    model.check_made_from(tokenizer=tokenizer)


def _requests(
    prefixes: list[list[int]],
    seeds: Tensor,
    num_blocks: int,
    planned: Tensor | None = None,
    null_prefixes: list[list[int]] | None = None,
) -> list[Request]:
    plans = [None] * len(prefixes) if planned is None else [tuple(row) for row in planned.tolist()]
    nulls = [None] * len(prefixes) if null_prefixes is None else [tuple(row) for row in null_prefixes]
    return [
        Request(tuple(prefix), seed, num_blocks, null, plan)
        for prefix, seed, null, plan in zip(prefixes, seeds.tolist(), nulls, plans, strict=True)
    ]


@torch.no_grad()
def _stream(
    engine: RowEngine, tokenizer: VideoTokenizer, job: Job, batch_size: int
) -> Iterator[tuple[list[int], Generated]]:
    device, ended, missing = engine.model.device, [], len(job.requests)
    for number, row in engine.run(job.requests):
        ended.append((number, job.unpack(number, row)))
        missing -= 1
        if len(ended) == batch_size or not missing:
            tokens = BlockTokens.concatenate([part for _, part in ended])
            videos = tokenizer.decode(tokens.to(device)).float().clamp(-1, 1).cpu()
            yield [number for number, _ in ended], Generated(videos, tokens)
            ended = []
