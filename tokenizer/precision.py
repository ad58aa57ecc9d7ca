"""Products of a tokenizer in half precision, for use alone: weights are rounded."""

from __future__ import annotations

import torch
from torch import nn

from genvid.allocation import DistortionPredictor
from genvid.precision import Precision, dtype_of
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer_stream import ScorerPredictor
from genvid.tokenizer.layers import TransformerBlock
from genvid.tokens import VideoTokenizer


def set_precision(
    tokenizer: VideoTokenizer, precision: Precision, predictor: DistortionPredictor | None = None
) -> None:
    """Compute the products of a tokenizer and its scorer in `precision`, but for those of codes and the scorer's head.

    ValueError for another precision, and for bf16 with a tokenizer other than AdapTok.
    """
    dtype = dtype_of(precision)
    if dtype == torch.float32:
        return
    if not isinstance(tokenizer, AdapTok):
        raise ValueError(f"{precision} is for AdapTok, and this tokenizer is {type(tokenizer).__name__}: use fp32")
    networks: list[nn.Module] = [tokenizer]
    layers = [tokenizer.patches.linear, tokenizer.output]
    if isinstance(predictor, ScorerPredictor):
        networks.append(predictor.scorer)
        layers.append(predictor.scorer.input)
    for layer in layers:
        layer.to(dtype)
    for network in networks:
        for block in network.modules():
            if isinstance(block, TransformerBlock):
                block.round(dtype)
