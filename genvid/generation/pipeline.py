"""From a class or a prompt video to videos: prefix, sampler, tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genvid.ar.model import RowModel
from genvid.ar.published import PublishedTransformer
from genvid.generation.sampler import Sampler, SamplingConfig
from genvid.tokens import BlockTokens, VideoTokenizer

Progress = Callable[[int, int], None]
"""Called with the videos done and all videos."""


@dataclass(frozen=True)
class Generated:
    """Sampled videos and what they are made of."""

    videos: Tensor
    """(B, 3, T, H, W) float in [-1, 1], on the CPU."""
    tokens: BlockTokens
    """Their tokens, on the CPU; `tokens.lengths` is what each block cost."""


def generate_classes(
    model: RowModel,
    tokenizer: VideoTokenizer,
    labels: Tensor,
    seeds: Tensor,
    config: SamplingConfig,
    *,
    planned: Tensor | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Generated:
    """(N,) classes and (N,) seeds -> N videos. `planned` (N, G) forces the lengths of blocks.

    A video depends on its own class, seed and plan only: slices of a long list give the same videos. A model without
    classes ignores `labels` but for their number.
    """
    layout, device = model.layout, _device(model)
    check_match(model, tokenizer)
    if model.config.context_blocks:
        raise ValueError("this model predicts frames from a prompt; it does not generate classes")
    whole = layout.class_prefix(labels) if layout.num_classes else layout.null_prefix(len(labels))

    def sample(rows: slice) -> BlockTokens:
        prefix = whole[rows].to(device)
        sampled = Sampler(model)(
            prefix,
            seeds[rows].to(device),
            config,
            null_prefix=layout.null_prefix(len(prefix), device),
            planned=None if planned is None else planned[rows],
        )
        return layout.unpack(sampled)

    return _in_batches(sample, tokenizer, len(labels), batch_size, progress)


def predict_frames(
    model: RowModel,
    tokenizer: VideoTokenizer,
    allocator: Callable[[BlockTokens], BlockTokens] | None,
    context: Tensor,
    seeds: Tensor,
    config: SamplingConfig,
    *,
    planned: Tensor | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Generated:
    """(N, 3, T0, H, W) first frames, whole blocks of them -> N whole videos, the first frames reconstructed.

    The context is encoded alone and cut by `allocator` (None: not cut). `planned` (N, G - context blocks) forces the
    lengths of what follows.
    """
    layout, device = model.layout, _device(model)
    check_match(model, tokenizer)
    if isinstance(model, PublishedTransformer):
        raise ValueError("a published model is prompted in another way: use predict_frames_as_published")
    if not model.config.context_blocks:
        raise ValueError("this model generates classes; it was not trained to predict frames")
    frames = tokenizer.spec.frames_per_block
    if context.ndim == 5 and context.shape[2] < frames:
        raise ValueError(f"a prompt of {context.shape[2]} frames is shorter than a block of {frames}")
    given = tokenizer.spec.check_video(context)
    if given != model.config.context_blocks:
        raise ValueError(
            f"this model continues prompts of {model.config.context_blocks * frames} frames, got {context.shape[2]}"
        )

    def sample(rows: slice) -> BlockTokens:
        tokens = tokenizer.encode(context[rows].to(device))
        if allocator is not None:
            tokens = allocator(tokens)
        sampled = Sampler(model)(
            layout.frame_prediction_prefix(tokens),
            seeds[rows].to(device),
            config,
            num_blocks=layout.num_blocks - given,
            planned=None if planned is None else planned[rows],
        )
        return layout.unpack(sampled)

    return _in_batches(sample, tokenizer, len(context), batch_size, progress)


def predict_frames_as_published(
    model: PublishedTransformer,
    tokenizer: VideoTokenizer,
    context: Tensor,
    seeds: Tensor,
    config: SamplingConfig,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Generated:
    """(N, 3, T0, H, W) first frames, any number -> N whole videos, in the way of the published checkpoints.

    The last frame is repeated to fill the context blocks, which are encoded without a cut; a last block that was
    padded in this way is then generated anew. Blocks before it are shown as reconstructed.
    """
    check_match(model, tokenizer)
    if not model.config.context_blocks:
        raise ValueError("this published model generates classes; frames are predicted by AdapTok-FP")
    spec, published, device = tokenizer.spec, model.config, _device(model)
    frames = published.context_blocks * spec.frames_per_block
    fewest = min(published.first_block * spec.frames_per_block + 1, frames)
    if not fewest <= context.shape[2] <= frames:
        raise ValueError(f"this model takes {fewest} to {frames} first frames, got {context.shape[2]}")
    last = context[:, :, -1:]
    padded = torch.cat([context, last.expand(-1, -1, frames - context.shape[2], -1, -1)], 2)
    spec.check_video(padded)

    def sample(rows: slice) -> BlockTokens:
        tokens = tokenizer.encode(padded[rows].to(device))
        prefix = model.context_prefix(tokens)
        generated = model.layout.unpack(Sampler(model)(prefix, seeds[rows].to(device), config), prefix.shape[1])
        return _join(tokens, published.first_block, generated)

    return _in_batches(sample, tokenizer, len(context), batch_size, progress)


def check_match(model: RowModel, tokenizer: VideoTokenizer) -> None:
    """Raise ValueError unless the rows of the model are made of the tokens of this tokenizer."""
    layout, spec = model.layout, tokenizer.spec
    ours, theirs = (layout.codebook_size, layout.block_capacity), (spec.codebook_size, spec.block_capacity)
    if ours != theirs:
        raise ValueError(
            f"the model was made for another tokenizer: it has {ours[0]} codes in blocks of {ours[1]}, the tokenizer "
            f"{theirs[0] or 'no'} codes in blocks of {theirs[1]}"
        )
    if spec.max_blocks is not None and layout.num_blocks > spec.max_blocks:
        raise ValueError(f"rows have {layout.num_blocks} blocks, but the tokenizer decodes at most {spec.max_blocks}")


@torch.no_grad()
def _in_batches(
    sample: Callable[[slice], BlockTokens],
    tokenizer: VideoTokenizer,
    count: int,
    batch_size: int,
    progress: Progress | None,
) -> Generated:
    videos, tokens = [], []
    for start in range(0, count, batch_size):
        part = sample(slice(start, start + batch_size))
        videos.append(tokenizer.decode(part).float().clamp(-1, 1).cpu())
        tokens.append(part.to("cpu"))
        if progress is not None:
            progress(min(start + batch_size, count), count)
    return Generated(torch.cat(videos), BlockTokens.concatenate(tokens))


def _join(context: BlockTokens, blocks: int, generated: BlockTokens) -> BlockTokens:
    """The first `blocks` of the context, then the generated ones."""
    assert context.codes is not None
    assert generated.codes is not None
    return BlockTokens(
        keep=torch.cat([context.keep[:, :blocks], generated.keep], 1),
        codes=torch.cat([context.codes[:, :blocks], generated.codes], 1),
    )


def _device(model: RowModel) -> torch.device:
    return next(model.parameters()).device
