"""Batch slots that sample several tokens of a row in a step, and those of a `genvid.ar.groups.GroupTransformer`."""

from __future__ import annotations

import torch
from torch import Tensor

from genvid import noise
from genvid.ar.row_model import RowModel
from genvid.generation.engine.attention import Attention
from genvid.generation.engine.slots import BEHIND, INPUTS, NULL_TOKEN, POSITION, SEED, STEPS, TOKEN, WAITED, BatchSlots
from genvid.generation.grammar import ANNOUNCED, COUNT
from genvid.generation.guidance import guided
from genvid.generation.sampler import SamplingConfig, draw


class ParallelSlots(BatchSlots):
    """Base class of slots that take several tokens of a row in a step. `most` and `together`: tokens that a row takes
    and inputs that it reads in a step, at most."""

    def __init__(
        self,
        model: RowModel,
        config: SamplingConfig,
        count: int,
        *,
        most: int,
        together: int,
        dtype: torch.dtype = torch.float32,
        compiled: bool = True,
        attention: Attention | None = None,
    ) -> None:
        self.most, self.together = most, together
        self._places = torch.arange(most, device=model.device)
        """(most,): kept, since the compiler narrows a counter that it makes itself to 32 bits."""
        super().__init__(model, config, count, dtype=dtype, compiled=compiled, attention=attention)

    def _seeds(self) -> Tensor:
        """(slots, most) seeds of the next tokens."""
        return noise.fold(self._state[SEED, :, None], self._state[POSITION, :, None] + 1 + self._places)

    def _outputs(self, states: Tensor) -> Tensor:
        return self._network.normed(states)

    def _read_inputs(
        self, tokens: Tensor, ahead: Tensor, there: Tensor, until: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, positions and lengths of a pass, each (halves x slots x together,); W is `together`.

        tokens: (2, slots, W), of both conditions. ahead: (W,) their places, counted from a row's last token. there:
        (slots, W) bool, those that are read. until: the place up to which each attends.
        """
        state = self._state
        position = torch.stack([state[POSITION], state[POSITION] - state[BEHIND]])[: self._halves, :, None]
        there = there & ~self._grammar.finished[:, None]
        positions = (position + ahead).where(there, self._network.capacity - 1)  # a place that nothing reads
        lengths = (position + until + 1).where(there, 0)
        return tokens[: self._halves].flatten(), positions.flatten(), lengths.flatten()

    def _guided(self, states: Tensor, ahead: Tensor) -> Tensor:
        """(halves, slots, W, width) normed states -> (slots, W, num_outputs) logits of the tokens `ahead` (W,) places
        behind the next one."""
        logits = self._network.project(states)
        if self._halves == 1:
            return logits[0]
        return guided(logits.flatten(0, 1), self._config.schedule.scale(self._grammar.progress(ahead)))

    def _append(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Append the first (slots,) `counts` >= 1 of (slots, most) tokens, a length or codes of one block, to every row
        that is neither finished nor waiting; (slots,) bool, which are."""
        state, grammar, spare = self._state, self._grammar, self._rows.shape[1] - 1
        waiting = grammar.waiting
        going = ~(grammar.finished | waiting)
        grammar.advance(tokens[:, 0], going, counts)
        taken = going[:, None] & (self._places < counts[:, None])
        self._rows.scatter_(1, (state[POSITION, :, None] + 1 + self._places).where(taken, spare), tokens)
        last = tokens.gather(1, counts[:, None] - 1)[:, 0]
        changed = {TOKEN: last, NULL_TOKEN: last, POSITION: state[POSITION] + counts, STEPS: state[STEPS] + 1}
        for row, value in changed.items():
            state[row] = value.where(going, state[row])
        state[WAITED] = waiting.long()
        return going


class GroupSlots(ParallelSlots):
    """A step reads the tokens of the last group, which join the cache, and the queries of the next one, which do not
    stay in it. The state's INPUTS is the number of the former.

    Codes of a group are drawn each by the random number of its own position: with groups of 1 the rows are those of the
    plain sampler.
    """

    def __init__(
        self,
        model: RowModel,
        config: SamplingConfig,
        count: int,
        *,
        dtype: torch.dtype = torch.float32,
        compiled: bool = True,
        attention: Attention | None = None,
    ) -> None:
        sizes = [left for size in model.groups for left in range(size, 0, -1)]
        while len(sizes) <= model.layout.largest:
            sizes += range(model.groups[-1], 0, -1)
        self._sizes = torch.tensor(sizes, device=model.device)
        """Codes of a block so far -> codes of its group from there on."""
        most = max(model.groups)
        super().__init__(
            model, config, count, most=most, together=2 * most - 1, dtype=dtype, compiled=compiled, attention=attention
        )

    def _group(self) -> Tensor:
        """(slots,) tokens of the next group. The length of a block is one by itself."""
        count, announced = self._grammar.state[COUNT], self._grammar.state[ANNOUNCED]
        return torch.minimum(self._sizes[count], announced - count).where(announced >= 0, 1)

    def _inputs_as_written(self) -> tuple[Tensor, Tensor, Tensor]:
        state, last = self._state, self.most - 1
        ahead = torch.arange(-last, last + 1, device=state.device)  # 0: the last token; above: queries
        tokens = self._rows.gather(1, (state[POSITION, :, None] + ahead).clamp(0, self._rows.shape[1] - 1))
        tokens = tokens.where(ahead < 0, self.layout.vocab_size - 1 + ahead)
        both = torch.stack([tokens.where(ahead != 0, state[row, :, None]) for row in (TOKEN, NULL_TOKEN)])
        group = self._group()[:, None]
        there = ((ahead <= 0) & (-ahead < state[INPUTS, :, None])) | ((ahead > 0) & (ahead < group))
        return self._read_inputs(both, ahead, there, (group - 1).where(ahead > 0, ahead))

    def _take_as_written(self, states: Tensor) -> None:
        """(halves x slots x together, width) normed states -> the next group of every row."""
        state, count = self._state, self.count
        states = states.view(self._halves, count, self.together, -1)[:, :, self.most - 1 :]
        logits = self._guided(states, self._places)
        self._record_scores(logits[:, 0])
        allowed = self._grammar.allowed()[:, None].expand(-1, self.most, -1).flatten(0, 1)
        tokens = draw(logits.flatten(0, 1), allowed, self._seeds().flatten(), self._config).view(count, self.most)
        group = self._group()
        going = self._append(tokens, group)
        state[INPUTS] = group.where(going, state[INPUTS])
