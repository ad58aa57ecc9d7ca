"""Drawing the next token, and the plain sampler: cache, guidance, top-k and top-p, under the grammar.

The tokens of a video depend on its own seed and condition only, not on the batch. The plain sampler is the readable,
slow reference against which `genvid.generation.engine.scheduler` is tested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genvid import noise
from genvid.ar.hardware import hardware
from genvid.ar.model import RowModel
from genvid.generation.grammar import BlockGrammar

LARGEST_SCALE = 1e6
"""Largest temperature and guidance, and inverse of the least temperature: beyond, float32 logits overflow."""


@dataclass(frozen=True)
class SamplingConfig:
    """Distribution of the next token."""

    temperature: float = 1.0
    """Divisor of the logits; 0: the most likely token."""
    top_k: int = 0
    """Draw from the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Draw from the fewest tokens with this total probability; 1: all."""
    guidance: float = 1.0
    """Classifier-free guidance scale w: logits are null + w (conditional - null); 1: no guidance."""

    def __post_init__(self) -> None:
        numbers = (self.temperature, self.top_k, self.guidance)
        if not all(0 <= number < math.inf for number in numbers) or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature, top_k and guidance are at least 0 and top_p is in (0, 1], got {self}")
        if 0 < self.temperature < 1 / LARGEST_SCALE or max(self.temperature, self.guidance) > LARGEST_SCALE:
            raise ValueError(
                f"float32 logits overflow beyond these: temperature is 0 or at least {1 / LARGEST_SCALE:g}, "
                f"temperature and guidance are at most {LARGEST_SCALE:g}, got {self}"
            )


class Sampler:
    """The plain sampler. A cache lives as long as one call."""

    def __init__(self, model: RowModel) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(
        self,
        prefix: Tensor,
        seeds: Tensor,
        config: SamplingConfig,
        *,
        num_blocks: int | None = None,
        null_prefix: Tensor | None = None,
        planned: Tensor | None = None,
    ) -> Tensor:
        """(B, P) prefix and (B,) seeds -> (B, S) rows: prefix, `num_blocks` blocks (by default the layout's), PAD.

        Prefixes of different lengths end in PAD; rows are aligned at the left. `null_prefix` (B, P): the prefix without
        its condition, for guidance. `planned` (B, num_blocks): fixed block lengths.
        """
        layout = self.model.layout
        blocks = layout.num_blocks if num_blocks is None else num_blocks
        given = layout.prefix_lengths(prefix)
        prompts = prefix if config.guidance == 1.0 else self._both(prefix, null_prefix)
        copies = len(prompts) // len(prefix)
        self._check(given, seeds, blocks, planned)
        grammar = BlockGrammar(layout, len(prefix), blocks, planned=planned, device=prefix.device)
        position = int(given.min())
        inputs, cache = prompts[:, :position], self.model.new_cache()
        columns = [prefix[:, :position]]
        while not grammar.finished.all():
            logits = self.model.logits(self.model.states(inputs, cache)[:, -1]).float()
            if copies == 2:
                logits = guided(logits, config.guidance)
            token = draw(logits, grammar.allowed(), noise.fold(seeds, position), config)
            token = token.masked_fill(grammar.finished, layout.pad_id)
            free = given <= position
            grammar.advance(token, free)
            inputs = token[:, None].repeat(copies, 1)
            if position < prefix.shape[1]:
                inputs = inputs.where(free.repeat(copies)[:, None], prompts[:, position, None])
            columns.append(inputs[: len(prefix)])
            position += 1
        return torch.cat(columns, 1)

    def _both(self, prefix: Tensor, null_prefix: Tensor | None) -> Tensor:
        if null_prefix is None:
            raise ValueError("guidance other than 1 needs a null prefix, which frame prediction does not have")
        lengths = self.model.layout.prefix_lengths
        if null_prefix.shape != prefix.shape or not torch.equal(lengths(null_prefix), lengths(prefix)):
            raise ValueError(
                f"null prefix {tuple(null_prefix.shape)} and prefix {tuple(prefix.shape)} must have the same lengths"
            )
        return torch.cat([prefix, null_prefix])

    def _check(self, given: Tensor, seeds: Tensor, blocks: int, planned: Tensor | None) -> None:
        layout, positions = self.model.layout, self.model.max_positions
        if seeds.shape != given.shape or not len(given) or int(given.min()) < 1:
            raise ValueError(f"each of the {len(given)} rows needs a prefix and a seed; there are {len(seeds)} seeds")
        if not 1 <= blocks <= layout.num_blocks:
            raise ValueError(f"rows of this model have 1 to {layout.num_blocks} blocks, got {blocks}")
        new = blocks * (layout.largest + 1) if planned is None else planned.sum(1).to(given) + blocks
        needed = int((given + new).max()) - 1
        if needed > positions:
            raise ValueError(
                f"a prefix of {int(given.max())} and {blocks} blocks may need {needed} positions, but the model has "
                f"{positions}; shorten the context or plan shorter blocks"
            )


def guided(logits: Tensor, scale: float) -> Tensor:
    """(2B, V) logits, conditional then null -> (B, V)."""
    conditional, null = logits.chunk(2)
    return null + scale * (conditional - null)


def draw(logits: Tensor, allowed: Tensor, seeds: Tensor, config: SamplingConfig) -> Tensor:
    """(B, V) logits, (B, V) bool, (B,) seeds -> (B,) ids: inverse sampling with one uniform number per row."""
    uniform = noise.uniform(seeds, "token", 1)[:, 0]
    top_k = min(config.top_k, logits.shape[-1])
    tokens: Tensor = _draw(logits, allowed, uniform, config.temperature, top_k, config.top_p)
    return tokens


def truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """(B, V) logits at their temperature -> the same, -inf where top-k, then top-p drop a token; ties are kept."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p < 1:
        ordered = logits.sort(-1, descending=True).values
        probability = ordered.softmax(-1)
        unneeded = probability.cumsum(-1) - probability >= top_p
        unneeded[:, 0] = False  # also where float32 rounds top_p to 0
        least = ordered.masked_fill(unneeded, float("inf")).amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < least, float("-inf"))
    return logits


def length_scores(logits: Tensor, seeds: Tensor, config: SamplingConfig) -> Tensor:
    """(N, K) logits of sizes, (N,) seeds -> (N, K) float64 scores whose argmax is a sample of the size.

    A score is the log-probability of the size plus Gumbel noise (none at temperature 0). Sizes dropped by top-k and
    top-p score below all kept ones, by the difference of their log-probability from the least kept one: they are chosen
    only where a budget does not allow the sampled size.
    """
    if config.temperature == 0:
        return logits.double().log_softmax(-1)
    logits = logits / config.temperature
    kept = truncated(logits, min(config.top_k, logits.shape[-1]), config.top_p).double()
    scores = kept.log_softmax(-1) - (-noise.uniform(seeds, "length", logits.shape[1]).log()).log()
    dropped = kept == -torch.inf
    lowest, rarest = (x.masked_fill(dropped, torch.inf).amin(-1, keepdim=True) for x in (scores, kept))
    return torch.where(dropped, lowest - (rarest - logits.double()), scores)


@torch.library.custom_op("genvid::draw", mutates_args=())
def _draw(logits: Tensor, allowed: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Opaque to torch.compile: torch 2.11 compiles cumulative sums of few rows to kernels that fail on a GPU."""
    if temperature > 0 and not top_k and top_p == 1 and hardware(logits.device).kernels:
        from genvid.generation.engine.kernels import draw_tokens

        return draw_tokens(logits, allowed, uniform, temperature)
    logits = logits.masked_fill(~allowed, float("-inf"))
    if temperature == 0:
        return logits.argmax(-1)
    logits = truncated(logits / temperature, top_k, top_p)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    # Strictly below the total, so that the token has a positive probability.
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


@_draw.register_fake
def _(logits: Tensor, allowed: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return logits.new_empty(len(logits), dtype=torch.long)
