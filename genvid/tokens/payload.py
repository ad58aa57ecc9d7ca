"""The payload of a segment: the kept tokens of consecutive blocks as bytes, and back, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from genvid.tokens.blocks import BlockTokens
from genvid.tokens.entropy import CodeModel, Decoder, Encoder, get_lengths, put_lengths


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


def unpack_lengths(payload: bytes, blocks: int, capacity: int) -> list[int]:
    """Kept codes of each block; EntropyError for a damaged payload."""
    return get_lengths(Decoder(payload), blocks, capacity)


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
        segments.append(BlockTokens(torch.arange(capacity) < own[..., None], torch.from_numpy(codes)))
    return segments
