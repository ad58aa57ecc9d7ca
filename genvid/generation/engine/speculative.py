"""Batch slots that verify guesses: speculative sampling (arXiv 2302.01318), with the draft heads of `genvid.ar.draft`.

A step reads the last token of a row and the codes guessed after it, and the model's distributions decide how many
guesses stay: a guess d is kept with probability min(1, p(d) / q(d)), p the model's distribution and q that of the
heads; the first that is not is replaced by a draw from max(p - q, 0). So samples have the distribution of the plain
sampler, whatever the heads guess. They are other samples of the same seeds, except at temperature 0. Random numbers are
functions of (seed, position) here too, so a row depends on its own seed, prefix and plan only.

Guesses end with the block: a row at the start of a block takes one token, its length.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional

from genvid import noise
from genvid.ar.draft import DraftHeads
from genvid.ar.row_model import RowModel
from genvid.generation.engine.attention import Attention
from genvid.generation.engine.parallel import ParallelSlots
from genvid.generation.engine.slots import INPUTS, NULL_TOKEN, POSITION, SEED, TOKEN
from genvid.generation.grammar import ANNOUNCED, COUNT
from genvid.generation.sampler import SamplingConfig, draw_weighted, probabilities


class SpeculativeSlots(ParallelSlots):
    """The state's INPUTS is 1 plus the guesses of a row."""

    def __init__(
        self,
        model: RowModel,
        config: SamplingConfig,
        count: int,
        *,
        heads: DraftHeads,
        dtype: torch.dtype = torch.float32,
        compiled: bool = True,
        attention: Attention | None = None,
    ) -> None:
        check_draft(model, heads)
        device, number = model.device, heads.config.heads
        self._heads = copy.deepcopy(heads).to(device, dtype)
        self._guesses = torch.zeros(count, number, dtype=torch.long, device=device)
        self._guessed = torch.zeros(count, number, model.layout.num_outputs, device=device)
        """(slots, guesses, num_outputs): the distributions that the guesses were drawn from."""
        wide = 1 + number
        super().__init__(
            model, config, count, most=wide, together=wide, dtype=dtype, compiled=compiled, attention=attention
        )

    def _changed(self) -> tuple[Tensor, ...]:
        return *super()._changed(), self._guesses, self._guessed

    def _inputs_as_written(self) -> tuple[Tensor, Tensor, Tensor]:
        state, ahead = self._state, self._places
        tokens = torch.stack([torch.cat([state[row, :, None], self._guesses], 1) for row in (TOKEN, NULL_TOKEN)])
        return self._read_inputs(tokens, ahead, ahead < state[INPUTS, :, None], ahead)

    def _take_as_written(self, states: Tensor) -> None:
        """(halves x slots x most, width) normed states -> the next tokens of every row, and guesses of those after."""
        places, seeds = self._places, self._seeds()
        states = states.view(self._halves, self.count, self.most, -1)
        logits = self._guided(states, places)
        self._record_scores(logits[:, 0])
        allowed = self._grammar.allowed()[:, None].expand(-1, self.most, -1)
        wanted = probabilities(logits.flatten(0, 1), allowed.flatten(0, 1), self._config).view_as(logits)
        kept = self._kept(wanted, seeds)
        token = self._next(wanted, seeds, kept)
        tokens = functional.pad(self._guesses, (0, 1)).where(places < kept[:, None], token[:, None])
        self._append(tokens, kept + 1)
        index = kept[None, :, None, None].expand(self._halves, -1, 1, states.shape[-1])
        self._guess(states.gather(2, index))

    def _kept(self, wanted: Tensor, seeds: Tensor) -> Tensor:
        """(slots, most, num_outputs) distributions of the model, (slots, most) seeds -> (slots,) guesses that stay."""
        number = self.most - 1
        p, q = (each[:, :number].gather(2, self._guesses[..., None])[..., 0] for each in (wanted, self._guessed))
        uniform = noise.uniform(seeds[:, :number].flatten(), "accept", 1).view_as(p)
        places = self._places[:number]
        stays = (uniform * q < p) & (places < self._state[INPUTS, :, None] - 1)
        return places.masked_fill(stays, number).amin(1)

    def _next(self, wanted: Tensor, seeds: Tensor, kept: Tensor) -> Tensor:
        """The token after the guesses that stay, (slots,)."""
        index = kept[:, None, None].expand(-1, 1, wanted.shape[2])
        weights = wanted.gather(1, index)[:, 0]
        guessed = functional.pad(self._guessed, (0, 0, 0, 1)).gather(1, index)[:, 0]
        left = (weights - guessed).clamp(min=0)
        rejected = (kept < self._state[INPUTS] - 1) & (left.sum(1) > 0)
        uniform = noise.uniform(seeds.gather(1, kept[:, None])[:, 0], "token", 1)[:, 0]
        token: Tensor = draw_weighted(left.where(rejected[:, None], weights), uniform)
        return token

    def _guess(self, states: Tensor) -> None:
        """(halves, slots, 1, width) states that the last tokens were drawn from -> guesses of those after them."""
        state, grammar, outputs = self._state, self._grammar.state, self.layout.num_outputs
        made = (grammar[ANNOUNCED] - grammar[COUNT] - 1).clamp(0, self.most - 1)
        state[INPUTS] = 1 + made.where(grammar[ANNOUNCED] >= 0, 0)
        tokens = state[: self._halves, :, None]
        codes = (torch.arange(outputs, device=states.device) < self.layout.codebook_size).expand(self.count, -1)
        for head in range(self.most - 1):
            states = self._heads.following(head, states, functional.embedding(tokens, self._network.embedding))
            logits = self._guided(states, torch.full((1,), head, device=states.device))[:, 0]
            guessed = probabilities(logits, codes, self._config)
            seeds = noise.fold(state[SEED], state[POSITION] + 1 + head)
            token = draw_weighted(guessed, noise.uniform(seeds, "guess", 1)[:, 0])
            self._guesses[:, head], self._guessed[:, head] = token, guessed
            tokens = token[None, :, None].expand(self._halves, -1, -1)


def check_draft(model: RowModel, heads: DraftHeads) -> None:
    """ValueError unless the heads guess for this model; ProvenanceError if they were trained for another one."""
    if model.groups or model.layout.framing != "length":
        raise ValueError(
            'draft heads guess for a plain model of "length" framing, whose blocks begin with their lengths: leave out '
            "the heads"
        )
    width = model.config.transformer.width
    if heads.config.width != width:
        raise ValueError(f"draft heads of width {heads.config.width} belong to another model: this one has {width}")
    heads.check_made_from(model=model)
