"""Autoregressive models under evaluation: their samples, and their predictions of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genvid import config as configuration
from genvid.allocation import Allocator
from genvid.ar.classes import class_names
from genvid.ar.row_model import RowModel
from genvid.ar.token_bits import token_bits
from genvid.batch import Batch
from genvid.checkpoint import fingerprint, resolve
from genvid.cli.coding import open_tokenizer
from genvid.eval.evaluation import BITS, Output
from genvid.eval.reconstruction import DECODED, Reconstruction
from genvid.generation.engine.scheduler import Engine
from genvid.generation.pipeline import Job, check_match, class_job, generate, prediction_job
from genvid.generation.sampler import SamplingConfig
from genvid.provenance import class_numbers
from genvid.tokens import CodebookTokenizer, TokenizerSpec, VideoTokenizer


class Sampling:
    """An autoregressive model under evaluation: samples of a class, or continuations of the first frames."""

    def __init__(
        self,
        model: RowModel,
        tokenizer: VideoTokenizer,
        config: SamplingConfig,
        about: Mapping[str, Any],
        *,
        context: Allocator | None = None,
    ) -> None:
        """`context`: the allocator of the prompt; None: all tokens are kept."""
        self.context = context
        self.model, self.tokenizer, self.about = model, tokenizer, {**about, "sampling": configuration.encode(config)}
        self.engine = Engine(model, config)
        self.numbers: list[int] | None = None
        self.spec: TokenizerSpec | None = tokenizer.spec

    def describe(self) -> Mapping[str, Any]:
        return self.about

    def number_classes(self, classes: Sequence[str]) -> None:
        """Read labels as numbers of `classes`, those of the data, from now on: the model may number them otherwise.

        ProvenanceError where the model was trained on other classes.
        """
        if self.model.layout.num_classes and not self.model.config.context_blocks:
            self.numbers = class_numbers(self.model.folder, class_names(self.model), classes)

    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        made = generate(self.engine, self.tokenizer, self._job(conditioning, seeds.cpu()), batch_size=DECODED)
        return Output(made.videos, made.tokens)

    def _job(self, conditioning: Batch, seeds: Tensor) -> Job:
        model, tokenizer = self.model, self.tokenizer
        if not model.config.context_blocks:
            labels = conditioning["label"].cpu()
            return class_job(model, labels if self.numbers is None else torch.tensor(self.numbers)[labels], seeds)
        return prediction_job(model, tokenizer, self.context, conditioning["video"], seeds)


class PredictedTokens:
    """Reconstructions, and the bits of their tokens under an autoregressive model."""

    def __init__(self, reconstruction: Reconstruction, model: RowModel, about: Mapping[str, Any]) -> None:
        check_match(model, reconstruction.tokenizer)
        self.reconstruction, self.model, self.about = reconstruction, model, {**reconstruction.about, **about}
        self.numbers: list[int] | None = None
        self.spec: TokenizerSpec | None = reconstruction.spec

    def describe(self) -> Mapping[str, Any]:
        return self.about

    def number_classes(self, classes: Sequence[str]) -> None:
        """As in `Sampling`."""
        if self.model.layout.num_classes:
            self.numbers = class_numbers(self.model.folder, class_names(self.model), classes)

    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        output, labels = self.reconstruction(conditioning, seeds), conditioning["label"].cpu()
        assert output.tokens is not None
        labels = labels if self.numbers is None else torch.tensor(self.numbers)[labels]
        bits = token_bits(self.model, output.tokens, labels)
        return replace(output, measured={"bits per token": bits.flatten(1).nanmean(1).double(), BITS: bits})


def codebook_of(source: str) -> Tensor:
    """(codebook size, C): the vectors of a tokenizer's codes, for a probe; ValueError where its tokens have none."""
    tokenizer = open_tokenizer(source)
    if not isinstance(tokenizer, CodebookTokenizer):
        raise ValueError(f"--probe reads codes, and the tokens of {source} are continuous: leave it out")
    return tokenizer.codebook()


def hashes(**folders: str | None) -> dict[str, str]:
    """Role -> fingerprint of its model folder, of the roles that have one."""
    return {role: fingerprint(resolve(folder)) for role, folder in folders.items() if folder is not None}
