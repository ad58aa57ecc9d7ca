"""Bits of each token under an autoregressive model: how well the model predicts what a tokenizer gives it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genvid.ar.row_model import RowModel
from genvid.tokens import BlockTokens

_ROWS = 4
"""In a pass of the model: memory of the logits, not results."""


@torch.no_grad()
def token_bits(model: RowModel, tokens: BlockTokens, labels: Tensor) -> Tensor:
    """Tokens of B videos and their classes (B,) -> (B, G, L) float32: -log2 of the probability of each kept code, given
    the class, the tokens before it and the length of its block; NaN where a token is dropped.

    ValueError for a frame predictor, and for blocks of a length that the rows of the model do not have.
    """
    layout = model.layout
    if model.config.context_blocks:
        raise ValueError("bits of tokens are measured under a model of complete videos, and this one continues videos")
    prefix = layout.class_prefix(labels.cpu()) if layout.num_classes else layout.null_prefix(len(labels))
    rows = layout.pack(tokens.to(torch.device("cpu")), prefix).tokens.to(model.device)
    nats = []
    for part in torch.split(rows, _ROWS):
        logits, ids = model(part[:, :-1]), part[:, 1:]
        codes = ids.where(ids < layout.num_outputs, 0)
        nats.append(F.cross_entropy(logits.transpose(1, 2).float(), codes, reduction="none"))
    block, place = layout.coordinates(rows)
    capacity, count = tokens.keep.shape[2], tokens.keep[0].numel()
    is_code = (rows < layout.codebook_size) & (block >= 0)
    cell = (block * capacity + place).where(is_code, count)[:, 1:]
    bits = torch.full((len(rows), count + 1), math.nan, device=model.device)
    bits.scatter_(1, cell, torch.cat(nats) / math.log(2))
    return bits[:, :-1].reshape(tokens.keep.shape)
