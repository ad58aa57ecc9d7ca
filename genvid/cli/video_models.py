"""Samples of an autoregressive model, under evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genvid import config as configuration
from genvid.allocation import Allocator
from genvid.ar.classes import class_names
from genvid.ar.model import RowModel
from genvid.batch import Batch
from genvid.checkpoint import fingerprint, resolve
from genvid.eval.evaluation import Output
from genvid.eval.reconstruction import DECODED
from genvid.generation.engine.scheduler import Engine
from genvid.generation.pipeline import Job, class_job, generate, prediction_job
from genvid.generation.sampler import SamplingConfig
from genvid.provenance import class_numbers
from genvid.tokens import TokenizerSpec, VideoTokenizer


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


def hashes(**folders: str | None) -> dict[str, str]:
    """Role -> fingerprint of its model folder, of the roles that have one."""
    return {role: fingerprint(resolve(folder)) for role, folder in folders.items() if folder is not None}
