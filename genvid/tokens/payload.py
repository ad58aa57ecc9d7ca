"""The payload of a segment: the kept tokens of consecutive blocks as bytes, and back. Codes are exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from genvid.tokens.blocks import BlockTokens, LatentSteps, MeanTokens, first_tokens
from genvid.tokens.entropy import CodeModel, Decoder, Encoder, get_lengths, put_lengths
from genvid.tokens.latents import dequantise, get_latents, put_latents, quantise
from genvid.tokens.masks import get_mask, put_mask


def pack_codes(tokens: BlockTokens, model: CodeModel, codebook_size: int) -> bytes:
    """The lengths, then the kept codes of the blocks of one video; ValueError for tokens that a file cannot hold."""
    if tokens.codes is None:
        raise ValueError("a file of codes cannot hold the latents of a continuous tokenizer")
    keep, codes = tokens.keep[0].cpu(), tokens.codes[0].cpu()
    if (keep[:, 1:] > keep[:, :-1]).any():
        raise ValueError("a file holds the first codes of each block; this keep mask has gaps")
    kept = [row[mask].numpy() for row, mask in zip(codes, keep, strict=True)]
    for row in kept:
        if len(row) and (row.min() < 0 or row.max() >= codebook_size):
            raise ValueError(f"codes are 0 to {codebook_size - 1}, got {row.min()} to {row.max()}")
    encoder = Encoder()
    put_lengths(encoder, [len(row) for row in kept], keep.shape[1])
    model.encode(encoder, kept)
    return encoder.bytes()


def unpack_codes(
    payloads: Sequence[bytes], blocks: Sequence[int], capacity: int, model: CodeModel
) -> list[BlockTokens]:
    """Payloads of several segments, of so many `blocks` -> the tokens of each; EntropyError for damaged ones."""
    decoders = [Decoder(payload) for payload in payloads]
    lengths = [get_lengths(*part, capacity) for part in zip(decoders, blocks, strict=True)]
    segments = []
    for kept in model.decode(decoders, lengths):
        codes = np.zeros((1, len(kept), capacity), np.int64)
        for block, row in enumerate(kept):
            codes[0, block, : len(row)] = row
        own = torch.tensor([[len(row) for row in kept]])
        segments.append(BlockTokens(first_tokens(own, capacity), torch.from_numpy(codes)))
    return segments


def pack_latents(tokens: BlockTokens, steps: LatentSteps) -> bytes:
    """Whether the kept latents are means, the mask, and the rounded latents of the blocks of one video."""
    if tokens.latents is None:
        raise ValueError("a file of latents cannot hold the codes of a discrete tokenizer")
    keep, latents = tokens.keep[0].cpu(), tokens.latents[0].float().cpu()
    encoder = Encoder()
    encoder.put_uniform(np.array([isinstance(tokens, MeanTokens)]), 2)
    put_mask(encoder, keep.numpy(), steps.columns)
    kept = [row[mask].numpy() for row, mask in zip(latents, keep, strict=True)]
    put_latents(encoder, [quantise(row, steps) for row in kept])
    return encoder.bytes()


def unpack_latents(payload: bytes, blocks: int, capacity: int, steps: LatentSteps) -> BlockTokens:
    """The inverse of `pack_latents`, to half a step of each channel; EntropyError for a damaged payload."""
    decoder = Decoder(payload)
    means = bool(decoder.get_uniform(2, 1)[0])
    keep = get_mask(decoder, blocks, capacity, steps.columns)
    multiples = get_latents(decoder, keep.sum(1).tolist(), len(steps.step))
    latents = np.zeros((*keep.shape, len(steps.step)), np.float32)
    latents[keep] = dequantise(np.concatenate(multiples), steps)
    kind = MeanTokens if means else BlockTokens
    return kind(torch.from_numpy(keep)[None], latents=torch.from_numpy(latents)[None])


def count_tokens(payload: bytes, blocks: int, capacity: int, steps: LatentSteps | None) -> int:
    """Kept tokens of a segment; EntropyError for a damaged payload."""
    decoder = Decoder(payload)
    if steps is None:
        return sum(get_lengths(decoder, blocks, capacity))
    decoder.get_uniform(2, 1)
    return int(get_mask(decoder, blocks, capacity, steps.columns).sum())
