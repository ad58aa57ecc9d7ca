"""A model that predicts the codes of a block in groups: several at once, few at the beginning of a block, many at its
end.

Groups are causal; in a group, the codes are predicted from all earlier tokens and from each other's places, not from
each other's values. The first code of a group is predicted by the state of the token before it, as in the plain model.
Each other one has a query in its place, a learned input that attends to all earlier tokens and to the other queries of
its group. Queries leave nothing behind: the cache between two groups is that of the plain model. Sampled in groups of
1, this model is a plain one.

As in PAR (arXiv 2412.15119) and NAR (arXiv 2503.10696), but along the order of tail-drop tokens, for any length of a
block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from genvid.ar.attention import row_numbers, row_positions
from genvid.ar.config import ARConfig
from genvid.ar.model import BlockTransformer
from genvid.ar.rows import IGNORED
from genvid.ar.task import ARTask, cross_entropy
from genvid.batch import Batch
from genvid.checkpoint import Model
from genvid.train.task import StepOutput


@dataclass(frozen=True)
class GroupConfig(ARConfig):
    """A model that predicts groups of codes."""

    groups: tuple[int, ...] = (1, 1, 2, 4, 8)
    """Codes of the consecutive groups of a block; the last number repeats. The end of a block cuts its last group."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.groups or min(self.groups) < 1:
            raise ValueError(f"groups have at least 1 code each, got {self.groups}")
        if self.layout.framing != "length":
            raise ValueError('groups need a layout of "length" framing, whose blocks begin with their lengths')

    def group_starts(self) -> list[int]:
        """Number of each code of the longest block -> number of the first code of its group."""
        starts: list[int] = []
        for size in (*self.groups, *[self.groups[-1]] * self.layout.largest):
            starts += [len(starts)] * size
        return starts[: self.layout.largest]


class GroupTransformer(BlockTransformer):
    """A `BlockTransformer` with queries."""

    model_type: ClassVar[str] = "group_llama"
    config_type: ClassVar[type] = GroupConfig
    config: GroupConfig

    def __init__(self, config: GroupConfig) -> None:
        super().__init__(config)
        self.queries = nn.Parameter(torch.randn(max(config.groups) - 1, config.transformer.width) * 0.02)
        """Query i - 1 is the input of the i-th code of a group, from 0."""

    @property
    def groups(self) -> tuple[int, ...]:
        return self.config.groups

    @property
    def causal_lm(self) -> None:
        """transformers would sample one code at a time."""
        return None

    @property
    def input_embeddings(self) -> Tensor:
        return torch.cat([self.llama.model.embed_tokens.weight, self.queries])

    def group_states(self, tokens: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) ids, and (B, S) place in its group of the code that follows each, 0 for all that have no query -> the
        states of the tokens, and of the queries, both (B, S, width). States without a query are unspecified."""
        llama, count = self.llama.model, tokens.shape[1]
        embedded = torch.cat([llama.embed_tokens(tokens), self.queries[(offsets - 1).clamp(min=0)]], 1)
        rotary = llama.rotary_emb(embedded, torch.arange(count, device=tokens.device).repeat(2)[None])
        mask, x = group_mask(offsets), self.dropout(embedded)
        for layer in llama.layers:
            x = layer(x, attention_mask=mask, position_embeddings=rotary)
        return llama.norm(x).split(count, 1)  # type: ignore[no-any-return]

    def _write(self, folder: Path) -> None:
        Model._write(self, folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        return super(BlockTransformer, cls).load(folder)


def group_mask(offsets: Tensor) -> Tensor:
    """(B, S) places of the next codes in their groups -> (B, 1, 2S, 2S) bool, which of tokens and queries attend to
    which.

    A token attends to itself and earlier tokens. The query behind the token at place s, of the code at `offset` in its
    group, attends to the tokens up to s - offset, behind which the group begins, and to the queries of its group.
    """
    place = torch.arange(offsets.shape[1], device=offsets.device)
    begin = place - offsets  # the last token before the group
    tokens = (place[:, None] >= place).expand(len(offsets), -1, -1)
    queries_to_tokens = begin[:, :, None] >= place
    has_query = offsets > 0
    alike = (begin[:, :, None] == begin[:, None, :]) & has_query[:, None, :]
    queries = alike | torch.eye(len(place), dtype=torch.bool, device=offsets.device)
    upper = torch.cat([tokens, torch.zeros_like(tokens)], 2)
    return torch.cat([upper, torch.cat([queries_to_tokens, queries], 2)], 1)[:, None]


class GroupTask(ARTask):
    """Batches of `genvid.ar.rows.PackedRows` -> summed cross entropy: of every target from the token before it, as of a
    plain model, and of those that have queries, from these."""

    model: GroupTransformer

    def forward(self, batch: Batch, phase: str, step: int, carry: dict[str, Tensor]) -> StepOutput:
        model = self.model
        tokens, targets = spread(batch, model.layout.pad_id)
        offsets = group_offsets(model.config, tokens, targets)
        states, queried = model.group_states(tokens, offsets)
        there = targets != IGNORED
        nll, correct = cross_entropy(model.logits(states[there]), targets[there])
        grouped = offsets > 0
        group_nll, group_correct = cross_entropy(model.logits(queried[grouped]), targets[grouped])
        count, group_count = there.sum(), grouped.sum()
        terms = {
            "bits_per_token": nll.detach() / count / math.log(2),
            "accuracy": correct.sum() / count,
            "group_bits_per_token": group_nll.detach() / group_count.clamp(min=1) / math.log(2),
            "group_accuracy": group_correct.sum() / group_count.clamp(min=1),
        }
        counts = {name: group_count if name.startswith("group") else count for name in terms}
        return StepOutput(nll + group_nll, terms, counts)

    def num_items(self, batch: Batch) -> Tensor:
        """Targets, and those among them that have queries."""
        tokens, targets = spread(batch, self.model.layout.pad_id)
        return (targets != IGNORED).sum() + (group_offsets(self.model.config, tokens, targets) > 0).sum()


def spread(batch: Batch, pad_id: int) -> tuple[Tensor, Tensor]:
    """A packed batch -> tokens and targets of its rows, (R, S) each, padded to the longest."""
    starts, count = batch["starts"][0], batch["tokens"].shape[1]
    rows, places = row_numbers(starts, count), row_positions(starts, count)
    shape = (len(starts) - 1, int(places.max()) + 1)
    padded = []
    for name, filling in (("tokens", pad_id), ("targets", IGNORED)):
        values = batch[name][0]
        padded.append(values.new_full(shape, filling).index_put((rows, places), values))
    return padded[0], padded[1]


def group_offsets(config: GroupConfig, tokens: Tensor, targets: Tensor) -> Tensor:
    """(B, S) tokens and the targets that follow them -> (B, S) place of each target in its group, 0 for the first of a
    group, for lengths, and where nothing is predicted."""
    layout = config.layout
    place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    announced = place.where(layout.is_framing(tokens), -1).cummax(1).values  # the length that the target's block has
    number = (place - announced).clamp(0, layout.largest - 1)
    starts = torch.tensor(config.group_starts(), device=tokens.device)
    is_code = (targets != IGNORED) & (targets < layout.codebook_size)
    return (number - starts[number]).where(is_code, 0)
