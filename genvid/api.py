"""Models from their folders, for arrays and images instead of tensors:

    tokenizer = genvid.load("models/adaptok")
    tokens = tokenizer.encode(video, tokens=256)
    video = tokenizer.decode(tokens)
    model = genvid.load("models/adaptok-ar")
    videos = model.sample(tokenizer, label="Basketball", count=4)

Arrays are those of `genvid.data.arrays`, and come back in the form in which they were given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genvid import noise
from genvid.allocation import Allocator, Budget, DistortionPredictor
from genvid.ar.classes import class_number
from genvid.ar.draft import DraftHeads
from genvid.ar.row_model import RowModel
from genvid.checkpoint import CONFIG, CheckpointError, Model, load_model, resolve
from genvid.data.arrays import Array, ArrayForm, read_array
from genvid.device import device as default_device
from genvid.generation.budget import BudgetConfig, with_budget
from genvid.generation.engine.scheduler import Engine
from genvid.generation.frames import stream_frames
from genvid.generation.guidance import Guidance, by_name
from genvid.generation.pipeline import Job, check_match, class_job, generate, prediction_job, trained_cut
from genvid.generation.sampler import SamplingConfig
from genvid.hardware import on
from genvid.precision import Precision, dtype_of
from genvid.provenance import check_made_from
from genvid.replay import Graphs
from genvid.tokenizer.adaptok.budget import load_predictor
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.budgets import clip_budget
from genvid.tokenizer.precision import set_precision
from genvid.tokenizer.streams import fitted, stream_allocator, streams, video_decoder, video_encoder
from genvid.tokens import BlockTokens, VideoTokenizer
from genvid.tokens.frame_blocks import repeat_last

BATCH = 16
"""Videos sampled at a time: memory, not results."""


@dataclass(frozen=True)
class VideoTokens:
    """Tokens of B videos of the same length."""

    clips: tuple[BlockTokens, ...]
    """The consecutive clips that the tokenizer cuts a video into, each of all B videos, on the CPU."""
    frames: int
    """Frames of a video; the last clip is longer where these do not fill its blocks."""
    resolution: tuple[int, int]
    """Height and width of its frames."""
    form: ArrayForm
    tokenizer: str | None
    """Fingerprint of the tokenizer's folder."""

    @property
    def lengths(self) -> Tensor:
        """(B, G) int64: kept tokens of each block of the whole videos."""
        return torch.cat([clip.lengths for clip in self.clips], 1)


class Tokenizer:
    """Arrays <-> tokens."""

    def __init__(self, model: VideoTokenizer, predictor: DistortionPredictor | None, device: torch.device) -> None:
        self.model, self.predictor, self.device = model, predictor, device
        self._graphs = Graphs()
        """Of the model at its trained size."""

    @torch.inference_mode(False)  # refinement takes gradients, whatever the mode of the caller
    @torch.no_grad()
    def encode(self, video: Any, *, tokens: int | None = None, refine: int = 0) -> VideoTokens:
        """A video, several of one length, or an image -> its tokens.

        A video of any length is cut into consecutive clips of at most `spec.max_blocks` blocks, and its last frame is
        repeated to fill the last block. `tokens` is the most that a clip of full length keeps, and a shorter one keeps
        its share; None: all. With a scorer they are spent where they reduce the distortion most, without one each block
        gets as many. Of LIT, `tokens` are the positions that each clip keeps.

        With rotary geometry a video is one stream, of any size within the tokenizer's bounds, and `tokens` is the most
        that any of its stretches of `model.frames` frames keeps.

        `refine`: steps by which the tokens are refined (genvid.tokenizer.refinement): the same number of them, decoded
        nearer to the video. ValueError below 0.
        """
        pixels, form = read_array(video)
        height, width = pixels.shape[-2:]
        model = self.model.at((height, width)) if streams(self.model) else self.model
        model.spec.check_frames(pixels)
        encoder = video_encoder(model, self._allocator(model, tokens), refine, self._shared_graphs(model))
        clips = []
        with on(self.device):
            for clip in self._clips(pixels):
                clips.append(replace(encoder(clip.to(self.device)), features=None).to("cpu"))
        return VideoTokens(tuple(clips), pixels.shape[2], (height, width), form, self._fingerprint())

    @torch.no_grad()
    def decode(self, tokens: VideoTokens) -> Array:
        """Tokens -> the videos, in the form of those that were encoded."""
        if tokens.tokenizer is not None and (own := self._fingerprint()) is not None:
            way_out = "decode them with the tokenizer that encoded them"
            check_made_from("the set of tokens", {"tokenizer": tokens.tokenizer}, {"tokenizer": own}, way_out)
        model = fitted(self.model, tokens.resolution)
        decoder = video_decoder(model, self._shared_graphs(model))
        with on(self.device):
            clips = [decoder(clip.to(self.device)) for clip in tokens.clips]
        return tokens.form.restore(torch.cat(clips, 2)[:, :, : tokens.frames])

    def budget(self, tokens: int) -> Budget:
        """The rule that keeps at most `tokens` of a clip of full length, each clip by itself. BudgetError when it takes
        more."""
        return clip_budget(self.model, self.predictor, _whole(tokens))

    def fitted(self, resolution: tuple[int, int]) -> Tokenizer:
        """For frames (height, width) as they are, where the tokenizer takes them; else itself, for resized ones."""
        return Tokenizer(fitted(self.model, resolution), self.predictor, self.device)

    def _allocator(self, model: VideoTokenizer, tokens: int | None) -> Allocator | None:
        """The allocator of the consecutive clips of one video."""
        if tokens is None:
            return None
        if streams(model):
            return stream_allocator(model, self.predictor, _whole(tokens), model.config.frames)
        budget = self.budget(tokens)
        return lambda clip: budget.allocator(clip.keep.shape[1])(clip)

    def _clips(self, video: Tensor) -> Iterator[Tensor]:
        """(B, 3, T, H, W) -> its consecutive clips, of which the last repeats its last frame to fill its blocks."""
        clips = self.model.spec.clips(video.shape[2])
        for part, clip in zip(torch.split(video, [clip.frames for clip in clips], 2), clips, strict=True):
            yield repeat_last(part, clip.filling)

    def _shared_graphs(self, model: VideoTokenizer) -> Graphs | None:
        return self._graphs if model is self.model else None

    def _fingerprint(self) -> str | None:
        return self.model.fingerprint if isinstance(self.model, Model) else None


class Generator:
    """An autoregressive model over the tokens of a tokenizer."""

    def __init__(self, model: RowModel, draft: DraftHeads | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.draft, self.dtype = model, draft, dtype

    @torch.no_grad()
    def sample(
        self,
        tokenizer: Tokenizer,
        *,
        label: int | str | None = None,
        prompt: Any = None,
        count: int = 1,
        seed: int = 0,
        tokens: int | None = None,
        prompt_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float | str | Guidance = 1.0,
    ) -> Array:
        """`count` videos of the class `label` (name or number), or that continue the video `prompt`; `stream` yields
        one as it is sampled.

        Videos of a class are (count, T, H, W, 3) uint8 in NumPy; continuations are a batch in the form of the prompt,
        whose last frames they begin with. Video i of a seed does not depend on `count`. `tokens` is the most that the
        generated blocks of a video have: these plans are estimated from the first 32 videos, so of fewer they depend on
        `count`. `prompt_tokens` cuts the prompt, as `Tokenizer.encode` does; by default it is cut as in training.
        `temperature` to `guidance` are those of `genvid.generation.sampler.SamplingConfig`; a name is a schedule of
        `genvid.generation.guidance` with its defaults.
        """
        if count < 1:
            raise ValueError(f"count is at least 1, got {count}")
        sampling = _sampling(temperature, top_k, top_p, guidance)
        with on(self.model.device):
            engine, job, form = self._prepare(tokenizer, label, prompt, count, seed, tokens, prompt_tokens, sampling)
            return form.restore(generate(engine, tokenizer.model, job, batch_size=BATCH).videos)

    def stream(
        self,
        tokenizer: Tokenizer,
        *,
        label: int | str | None = None,
        prompt: Any = None,
        seed: int = 0,
        tokens: int | None = None,
        prompt_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float | str | Guidance = 1.0,
    ) -> Iterator[Array]:
        """Yield the frames (T, H, W, 3) of each block of the video `sample(...)[0]`, as soon as its tokens are
        complete; the first of a continuation are the last ones of its prompt and its first block."""
        sampling = _sampling(temperature, top_k, top_p, guidance)
        with on(self.model.device):
            engine, job, form = self._prepare(tokenizer, label, prompt, 1, seed, tokens, prompt_tokens, sampling)
        parts, form = stream_frames(engine, tokenizer.model, job), replace(form, ndim=4)
        return (form.restore(part.video[None]) for part in parts)

    def _prepare(
        self,
        tokenizer: Tokenizer,
        label: int | str | None,
        prompt: Any,
        count: int,
        seed: int,
        tokens: int | None,
        prompt_tokens: int | None,
        sampling: SamplingConfig,
    ) -> tuple[Engine, Job, ArrayForm]:
        """Engine, requests and form of the videos."""
        check_match(self.model, tokenizer.model)
        seeds = noise.sample_seeds(seed, "samples", torch.arange(count))
        if prompt is None:
            if prompt_tokens is not None:
                raise ValueError("prompt_tokens cuts a prompt, and there is none: give prompt, or tokens for a class")
            number, form = class_number(self.model, label), ArrayForm()
            job = class_job(self.model, torch.full_like(seeds, number or 0), seeds)
        else:
            if label is not None:
                raise ValueError(f"give a label or a prompt, not both: got label {label!r}")
            job, form = self._continuations(tokenizer, prompt, prompt_tokens, seeds)
        engine = Engine(self.model, sampling, slots=min(BATCH, count), dtype=self.dtype, draft=self.draft)
        budget = BudgetConfig(None if tokens is None else _whole(tokens))
        return engine, replace(job, requests=with_budget(engine, job.requests, budget)), form

    def _continuations(
        self, tokenizer: Tokenizer, prompt: Any, tokens: int | None, seeds: Tensor
    ) -> tuple[Job, ArrayForm]:
        video, form = read_array(prompt)
        if len(video) != 1:
            raise ValueError(f"a prompt is one video, got {len(video)}")
        context = video.expand(len(seeds), -1, -1, -1, -1)
        blocks = self.model.config.context_blocks
        if tokens is None:
            allocator = trained_cut(self.model, tokenizer.predictor)
        else:
            allocator = tokenizer.budget(tokens).allocator(blocks)
        return prediction_job(self.model, tokenizer.model, allocator, context, seeds), replace(form, ndim=5)


def _whole(tokens: float) -> int:
    if not float(tokens).is_integer():
        raise ValueError(f"tokens are counted in whole numbers, got {tokens}")
    return int(tokens)


def _sampling(temperature: float, top_k: int, top_p: float, guidance: float | str | Guidance) -> SamplingConfig:
    schedule = by_name(guidance) if isinstance(guidance, str) else guidance
    return SamplingConfig(temperature, top_k, top_p, schedule)


@torch.inference_mode(False)
def load(
    source: str | Path,
    *,
    scorer: str | Path | None = None,
    draft: str | Path | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
) -> Tokenizer | Generator:
    """A model folder or Hugging Face Hub id -> its tokenizer or autoregressive model, by default on a GPU if there is
    one. The scorer of an AdapTok tokenizer is that in its folder `scorer`, unless another is given. `draft`: draft
    heads of an autoregressive model, by which it samples the same distribution in fewer steps. `precision`: of the
    products of a tokenizer, or of the weights and the cache of an autoregressive model; bf16 is faster."""
    dtype = dtype_of(precision)
    folder, place = resolve(source), default_device() if device is None else torch.device(device)
    model = load_model(folder).to(place)
    if scorer is not None and not isinstance(model, AdapTok):
        raise ValueError(f"a scorer belongs to an AdapTok tokenizer, and {source} holds a {model.model_type} model")
    if draft is not None and not isinstance(model, RowModel):
        raise ValueError(f"draft heads belong to an autoregressive model; {source} holds a {model.model_type} model")
    if isinstance(model, AdapTok):
        beside = folder / "scorer"
        found = scorer or (beside if (beside / CONFIG).is_file() else None)
        predictor = None if found is None else load_predictor(model, found)
        set_precision(model, precision, predictor)
        return Tokenizer(model, predictor, place)
    if isinstance(model, VideoTokenizer):
        set_precision(model, precision)
        return Tokenizer(model, None, place)
    if isinstance(model, RowModel):
        return Generator(model, None if draft is None else load_model(draft, DraftHeads), dtype)
    raise CheckpointError(
        f"{source} holds a model of type {model.model_type}; genvid.load opens tokenizers and autoregressive models"
    )
