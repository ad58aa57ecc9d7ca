"""Interface of an autoregressive model over rows of block tokens.

It imports no network. Code that samples, codes or measures with a model imports this module alone;
`genvid.checkpoint.load_model` imports the class of a folder, with transformers.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

from genvid.ar.config import ARConfig
from genvid.ar.prompt import Cut, Prompt, encode_in_parts
from genvid.checkpoint import Model
from genvid.tokens import BlockTokens, TokenizerSpec, VideoTokenizer
from genvid.tokens.rows import BlockLayout

if TYPE_CHECKING:
    from transformers import DynamicCache, LlamaForCausalLM, LlamaModel


class RowModel(Model):
    """Interface of a model over rows for training and sampling."""

    config: ARConfig
    fixed_prompt: ClassVar[bool] = False
    """Whether a prompt is read uncut and continued once, by all blocks of the layout, as in the published code."""

    @property
    def layout(self) -> BlockLayout:
        return self.config.layout

    @property
    def max_positions(self) -> int:
        """Longest sequence of inputs; the last token of a row is no input."""
        return self.config.transformer.max_positions

    @abstractmethod
    def new_cache(self) -> DynamicCache:
        """An empty cache of keys and values, which the caller owns."""

    @abstractmethod
    def states(self, tokens: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """(B, S) ids that follow those in `cache`, which they join -> (B, S, width)."""

    @abstractmethod
    def packed_states(self, tokens: Tensor, starts: Tensor) -> Tensor:
        """(1, N) ids of whole rows one after another, (R + 1,) int32 where they start -> (1, N, width)."""

    @abstractmethod
    def logits(self, states: Tensor) -> Tensor:
        """(..., width) -> (..., num_outputs): of codes and framing, the only ids that may be predicted."""

    @property
    @abstractmethod
    def backbone(self) -> LlamaModel:
        """Embedding and layers."""

    @property
    @abstractmethod
    def head_weight(self) -> Tensor:
        """(num_outputs, width): the linear map of `logits`."""

    @property
    def input_embeddings(self) -> Tensor:
        """(ids, width) embeddings of the vocabulary, and of ids behind it that only this model's engine reads."""
        return cast(Tensor, self.backbone.embed_tokens.weight)

    @property
    def groups(self) -> tuple[int, ...]:
        """Codes of the consecutive groups of a block that are sampled at once; empty: one after another."""
        return ()

    @property
    def position_table(self) -> Tensor | None:
        """(max_positions, width) learned positions, added to the embeddings; None: rotary ones, in the backbone."""
        return None

    @property
    def causal_lm(self) -> LlamaForCausalLM | None:
        """The same network as transformers generates with it; None where transformers has no such model."""
        return None

    @property
    def generated_blocks(self) -> int:
        """Blocks of a video that follow its prompt, at most."""
        return self.layout.num_blocks - self.config.context_blocks

    def prompt_frames(self, spec: TokenizerSpec) -> int:
        """Fewest frames of a prompt; 0 where the model predicts no frames."""
        return spec.longest_clip(self.config.context_blocks)

    def video_frames(self, spec: TokenizerSpec) -> int:
        """Frames of a generated video, with those of its prompt."""
        return spec.longest_clip(self.layout.num_blocks)

    def read_prompt(self, tokenizer: VideoTokenizer, video: Tensor, allocator: Cut | None) -> Prompt:
        """(N, 3, T0, H, W) -> the context: the last `prompt_frames`, encoded alone and cut by `allocator`."""
        spec, frames = tokenizer.spec, self.prompt_frames(tokenizer.spec)
        if not frames:
            raise ValueError("this model generates classes; it was not trained to predict frames")
        if video.ndim == 5 and video.shape[2] < frames:
            raise ValueError(
                f"this model reads the last {frames} frames of a prompt, in {spec.described}, "
                f"but the prompt has {video.shape[2]}"
            )
        context = video[:, :, -frames:]
        spec.check_video(context)
        parts = encode_in_parts(tokenizer, context, self.device)
        tokens = [replace(part if allocator is None else allocator(part), features=None) for part in parts]
        return self.continuation(BlockTokens.concatenate(tokens))

    def stream_context(self, tokens: BlockTokens) -> BlockTokens:
        """Blocks of N streams -> those that the model reads to continue them, with all fields: the first `sink_blocks`
        and the last ones, `context_blocks` together, or all of fewer."""
        sinks, skipped = self.config.sink_blocks, max(tokens.keep.shape[1] - self.config.context_blocks, 0)
        parts = slice(sinks), slice(sinks + skipped, None)
        return BlockTokens.join_blocks([tokens.select_blocks(part) for part in parts])

    def continuation(self, context: BlockTokens) -> Prompt:
        """The given `context_blocks` blocks of N videos -> the prompt that continues them."""
        layout, given = self.layout, self.config.context_blocks
        if context.keep.shape[1] != given:
            raise ValueError(f"this model continues {given} blocks, got {context.keep.shape[1]}")
        rows = layout.frame_prediction_prefix(context)
        prefixes = [row[:length] for row, length in zip(rows.tolist(), layout.prefix_lengths(rows), strict=True)]
        null_prefixes = prefixes if layout.budget_bins else None  # the same context without a budget
        if self.config.null_context:
            null_prefixes = layout.context_free_prefix(len(prefixes)).tolist()
        return Prompt(prefixes, null_prefixes, lambda _, row: layout.unpack(row[None]))

    @property
    def device(self) -> torch.device:
        return self.head_weight.device

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S) -> (B, S, num_outputs): logits of the token after each position. PAD at the end needs no mask."""
        return self.logits(self.states(tokens))
