"""Drawing the next token, and the plain sampler: cache, guidance, top-k and top-p, under the grammar.

The tokens of a video depend on its own seed and condition only, not on the batch. The plain sampler is the readable,
slow reference against which `genvid.generation.engine.scheduler` is tested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from genvid import noise
from genvid.ar.row_model import RowModel
from genvid.generation.grammar import BlockGrammar
from genvid.generation.guidance import LARGEST_SCALE, Constant, Guidance, guided
from genvid.hardware import hardware


@dataclass(frozen=True)
class SamplingConfig:
    """Distribution of the next token."""

    temperature: float = 1.0
    """Divisor of the logits; 0: the most likely token."""
    top_k: int = 0
    """Draw from the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Draw from the fewest tokens with this total probability; 1: all."""
    guidance: float | Guidance = 1.0
    """Scale w of classifier-free guidance: logits are null + w (conditional - null); 1: no guidance. Or a schedule:
    by_tokens, by_block, power_cosine, or one with its parameters, {type: by_tokens, scales: [3, 1], ends: [8]}."""

    def __post_init__(self) -> None:
        constant = 1.0 if isinstance(self.guidance, Guidance) else self.guidance
        if not all(0 <= number < math.inf for number in (self.temperature, self.top_k, constant)):
            raise ValueError(f"temperature, top_k and guidance are at least 0 and finite, got {self}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is in (0, 1], got {self}")
        if 0 < self.temperature < 1 / LARGEST_SCALE or max(self.temperature, constant) > LARGEST_SCALE:
            raise ValueError(
                f"float32 logits overflow beyond these: temperature is 0 or at least {1 / LARGEST_SCALE:g}, "
                f"temperature and guidance are at most {LARGEST_SCALE:g}, got {self}"
            )

    @property
    def schedule(self) -> Guidance:
        """`guidance` as an object."""
        return self.guidance if isinstance(self.guidance, Guidance) else Constant(self.guidance)

    @property
    def guided(self) -> bool:
        """Whether the null condition is computed."""
        return self.schedule != Constant(1.0)


class Sampler:
    """The plain sampler: one row after another. A cache lives as long as one row."""

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

        Prefixes of different lengths end in PAD; rows are aligned at the left. `null_prefix` (B, P0): the prefix
        without its condition, for guidance; it may be shorter. `planned` (B, num_blocks): fixed block lengths.
        """
        layout = self.model.layout
        blocks = layout.num_blocks if num_blocks is None else num_blocks
        conditions = [prefix]
        if config.guided:
            if null_prefix is None:
                raise ValueError("guidance other than 1 needs a null prefix")
            conditions.append(null_prefix)
        self._check(layout.prefix_lengths(prefix), seeds, blocks, planned)
        rows = []
        for number, seed in enumerate(torch.split(seeds, 1)):
            plan = None if planned is None else planned[number, None]
            grammar = BlockGrammar(layout, 1, blocks, planned=plan, device=prefix.device)
            prompts = [condition[number][condition[number] != layout.pad_id] for condition in conditions]
            rows.append(self._row(prompts, seed, config, grammar))
        return pad_sequence(rows, batch_first=True, padding_value=layout.pad_id)

    def _row(self, prompts: list[Tensor], seed: Tensor, config: SamplingConfig, grammar: BlockGrammar) -> Tensor:
        """The prompt, and the one that guidance needs if any, and the seed (1,) -> the row (S,)."""
        inputs, caches, row = prompts, [self.model.new_cache() for _ in prompts], [*prompts[0][:, None]]
        while not grammar.finished.all():
            states = [self.model.states(ids[None], cache)[:, -1] for ids, cache in zip(inputs, caches, strict=True)]
            logits = self.model.logits(torch.cat(states)).float()
            if config.guided:
                logits = guided(logits, config.schedule.scale(grammar.progress()))
            token = draw(logits, grammar.allowed(), noise.fold(seed, len(row)), config)
            grammar.advance(token, ~grammar.finished)
            inputs = [token] * len(prompts)
            row.append(token)
        return torch.cat(row)

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


def draw(logits: Tensor, allowed: Tensor, seeds: Tensor, config: SamplingConfig) -> Tensor:
    """(B, V) logits, (B, V) bool, (B,) seeds -> (B,) ids: inverse sampling with one uniform number per row."""
    uniform = noise.uniform(seeds, "token", 1)[:, 0]
    top_k = min(config.top_k, logits.shape[-1])
    tokens: Tensor = _draw(logits, allowed, uniform, config.temperature, top_k, config.top_p)
    return tokens


def probabilities(logits: Tensor, allowed: Tensor, config: SamplingConfig) -> Tensor:
    """(N, V) logits, (N, V) bool -> (N, V) float32, the distribution that `draw` draws from."""
    top_k = min(config.top_k, logits.shape[-1])
    shares: Tensor = _probabilities(logits, allowed, config.temperature, top_k, config.top_p)
    return shares


@torch.library.custom_op("genvid::probabilities", mutates_args=())
def _probabilities(logits: Tensor, allowed: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Opaque to torch.compile, as is `_draw`."""
    logits = logits.masked_fill(~allowed, float("-inf"))
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
    return truncated(logits / temperature, top_k, top_p).softmax(-1)


@_probabilities.register_fake
def _(logits: Tensor, allowed: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return torch.empty_like(logits)


@torch.library.custom_op("genvid::draw_weighted", mutates_args=())
def draw_weighted(weights: Tensor, uniform: Tensor) -> Tensor:
    """(N, V) weights >= 0, (N,) float64 in (0, 1) -> (N,) indices, by the inverse distribution; unspecified for rows of
    weights that are not finite."""
    cumulative = weights.double().cumsum(-1)
    return _inverse(cumulative, uniform).clamp(max=weights.shape[-1] - 1)


@draw_weighted.register_fake
def _(weights: Tensor, uniform: Tensor) -> Tensor:
    return weights.new_empty(len(weights), dtype=torch.long)


def _inverse(cumulative: Tensor, uniform: Tensor) -> Tensor:
    total = cumulative[:, -1:]
    # Strictly below the total, so that the index has a positive weight.
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


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
    return _inverse(logits.double().softmax(-1).cumsum(-1), uniform)


@_draw.register_fake
def _(logits: Tensor, allowed: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return logits.new_empty(len(logits), dtype=torch.long)
