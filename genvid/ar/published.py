"""The published autoregressive models of AdapTok (`AdapTok-AR`, `AdapTok-FP`), number for number.

They are Llamas with learned absolute positions in place of rotary ones, in "end" framing. Differences from ours:

* classes and codes have tables of their own; here they are one table, in the order of the layout's ids;
* frame prediction starts with the codes of whole context blocks without framing, then a separator that is only read.
  These models have no classes, and the separator has the id that our layout gives to the null class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaModel

from genvid.ar.attention import row_positions
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.llama import add_residual_dropout, llama_config, run_llama, run_packed
from genvid.ar.prompt import Cut, Prompt, encode_in_parts
from genvid.ar.row_model import RowModel
from genvid.checkpoint import (
    CheckpointError,
    check_free,
    describe_mismatch,
    load_weights,
    read_config,
    read_weights,
    resolve,
)
from genvid.provenance import Origin
from genvid.tokens import BlockTokens, TokenizerSpec, VideoTokenizer
from genvid.tokens.frame_blocks import repeat_last
from genvid.tokens.rows import BlockLayout

_LARP = " (LARP's kind: its names, positions and prefixes are not known to genvid, see docs/published.md)"


UCF101 = Path(__file__).with_name("published_classes.txt").read_text().split()
"""The classes of UCF-101 as the published models number them: in the byte order of their names in the video files,
where HandstandPushups is spelled HandStandPushups."""


@dataclass(frozen=True)
class PublishedConfig(ARConfig):
    """A published model. `layout` describes the generated blocks only; context blocks precede it, uncut."""

    first_block: int = 0
    """Which block of the video the first generated one is: it may replace the end of the context, whose last block
    holds repeated frames."""


class PublishedTransformer(RowModel):
    """Llama with learned absolute positions, indexed by the place in the row."""

    model_type: ClassVar[str] = "adaptok_ar"
    config_type: ClassVar[type] = PublishedConfig
    config: PublishedConfig
    fixed_prompt = True

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__(config)
        sizes, layout = config.transformer, config.layout
        if sizes.rope_theta is not None:
            raise ValueError("published models have learned positions: rope_theta must be None")
        if layout.num_classes == len(UCF101):  # the only data set of which there are published models with classes
            self.origin = Origin(classes=UCF101)
        # Codes, END, classes and null class: the models have neither our frame-prediction start nor PAD.
        self.llama = LlamaModel(llama_config(sizes, vocab_size=layout.null_id + 1, pad_id=None))
        self.llama.rotary_emb = _NoRotation(sizes.width // sizes.heads)
        self.positions = nn.Parameter(torch.zeros(sizes.max_positions, sizes.width))
        self.head = nn.Linear(sizes.width, layout.num_outputs, bias=False)
        self.dropout = nn.Dropout(sizes.dropout)
        add_residual_dropout(self.llama, sizes.dropout)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.zeros_(self.head.weight)

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.llama.config)

    def states(self, tokens: Tensor, cache: DynamicCache | None = None) -> Tensor:
        start = cache.get_seq_length() if cache is not None else 0
        known = tokens.clamp(max=self.layout.null_id)  # PAD is read only after the end of a row
        embedded = self.llama.embed_tokens(known) + self.positions[start : start + tokens.shape[1]]
        return run_llama(self.llama, self.dropout(embedded), cache)

    def packed_states(self, tokens: Tensor, starts: Tensor) -> Tensor:
        positions = row_positions(starts, tokens.shape[1])
        embedded = self.llama.embed_tokens(tokens.clamp(max=self.layout.null_id)) + self.positions[positions]
        return run_packed(self.llama, self.dropout(embedded), positions, starts, self.max_positions)

    def logits(self, states: Tensor) -> Tensor:
        return cast(Tensor, self.head(states))

    @property
    def backbone(self) -> LlamaModel:
        return self.llama

    @property
    def head_weight(self) -> Tensor:
        return self.head.weight

    @property
    def position_table(self) -> Tensor:
        return self.positions

    @property
    def generated_blocks(self) -> int:
        return self.layout.num_blocks

    def prompt_frames(self, spec: TokenizerSpec) -> int:
        """One frame of the first generated block, at most the context blocks; 0 where the model predicts no frames."""
        frames = super().prompt_frames(spec)
        return min(spec.longest_clip(self.config.first_block) + 1, frames)

    def video_frames(self, spec: TokenizerSpec) -> int:
        return spec.longest_clip(self.config.first_block + self.layout.num_blocks)

    def read_prompt(self, tokenizer: VideoTokenizer, video: Tensor, allocator: Cut | None) -> Prompt:
        """(N, 3, T0, H, W) first frames -> the context: the last frame repeated to fill the context blocks.

        The context is not cut. Blocks from `first_block` on are generated anew; earlier ones are decoded as encoded.
        """
        spec, first_block = tokenizer.spec, self.config.first_block
        frames, fewest = spec.longest_clip(self.config.context_blocks), self.prompt_frames(spec)
        if not frames:
            raise ValueError("this published model generates classes; frames are predicted by AdapTok-FP")
        if not fewest <= video.shape[2] <= frames:
            raise ValueError(f"this model takes {fewest} to {frames} first frames, got {video.shape[2]}")
        padded = repeat_last(video, frames - video.shape[2])
        spec.check_video(padded)
        context = BlockTokens.concatenate([part.to("cpu") for part in encode_in_parts(tokenizer, padded, self.device)])
        prefixes = self.context_prefix(context)

        def unpack(number: int, row: Tensor) -> BlockTokens:
            generated = self.layout.unpack(row[None], prefixes.shape[1])
            return BlockTokens.join_blocks([context[number : number + 1].blocks(slice(first_block)), generated])

        return Prompt(prefixes.tolist(), None, unpack)

    def context_prefix(self, context: BlockTokens) -> Tensor:
        """The (padded) clip's first blocks, uncut -> (B, P): their codes, then the separator."""
        blocks = self.config.context_blocks
        if not blocks:
            raise ValueError("this published model is class-conditional: it takes no context")
        if context.codes is None or context.keep.shape[1] < blocks:
            raise ValueError(f"this published model needs the codes of {blocks} context blocks")
        codes = context.codes[:, :blocks].flatten(1)
        return torch.cat([codes, self.layout.null_prefix(len(codes), codes.device)], 1)


class _NoRotation(nn.Module):
    """In place of Llama's rotary embedding: angles of zero."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*position_ids.shape, self.head_dim)
        return x.new_ones(shape), x.new_zeros(shape)


def convert(source: str | Path, destination: str | Path) -> PublishedTransformer:
    """A published folder or Hub id -> a model folder that `load_model` reads, and the model.

    Raises CheckpointError that names what is missing, unexpected or of another shape.
    """
    folder, destination = resolve(source), Path(destination)
    check_free(destination)
    data, weights = read_config(folder), read_weights(folder)
    config = _read_config(data, weights, folder)
    if mismatch := describe_mismatch(_expected_shapes(config), weights):
        raise CheckpointError(f"{folder} is no published AR model: {mismatch}")
    model = PublishedTransformer(config).eval()
    load_weights(model, _rename(weights, config), source=str(folder))
    model.save(destination)
    return model


def _read_config(data: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> PublishedConfig:
    """Sizes: from the weights where they show them, else from config.json. Weights that end early do not show how many
    layers there were."""
    counts = ("n_layer", "n_head", "max_seq_len", "tot_blocks", "cls_token_num")
    absent = [key for key in counts if key not in data]
    if absent:
        raise CheckpointError(
            f"{folder / 'config.json'} lacks {', '.join(absent)}: not a published AdapTok AR model{_LARP}"
        )
    for key in counts:
        if not isinstance(data[key], int) or data[key] < 1:
            raise CheckpointError(f"{folder / 'config.json'}: {key} must be a positive integer, got {data[key]!r}")
    if not data.get("with_block_sep", True):
        raise CheckpointError(f"{folder} has rows without block separators{_LARP}")
    names = ("abs_pe", "output.weight", "tok_embeddings.weight", "layers.0.feed_forward.w1.weight")
    for name in (*names, "layers.0.attention.wqkv.weight"):
        if name not in weights:
            raise CheckpointError(f"{folder} lacks {name}: not a published AR model with learned positions")
    width, heads = weights["output.weight"].shape[1], data["n_head"]
    capacity, rest = divmod(data["max_seq_len"], data["tot_blocks"])
    context, uneven = divmod(data["cls_token_num"] - 1, capacity)
    if rest or uneven:
        raise CheckpointError(
            f"{folder / 'config.json'}: max_seq_len {data['max_seq_len']} and cls_token_num {data['cls_token_num']} "
            f"are not whole blocks ({data['tot_blocks']} to generate)"
        )
    classes = len(weights.get("cls_embedding.embedding_table.weight", [None])) - 1
    qkv_heads = weights["layers.0.attention.wqkv.weight"].shape[0] // (width // heads)
    return PublishedConfig(
        layout=BlockLayout(
            codebook_size=len(weights["output.weight"]) - 1,
            num_classes=classes,
            num_blocks=data["tot_blocks"],
            block_capacity=capacity,
            framing="end",
        ),
        transformer=TransformerConfig(
            width=width,
            depth=data["n_layer"],
            heads=heads,
            kv_heads=(qkv_heads - heads) // 2,
            hidden=len(weights["layers.0.feed_forward.w1.weight"]),
            max_positions=weights["abs_pe"].shape[1],
            rope_theta=None,
            norm_eps=data.get("norm_eps", 1e-5),
        ),
        context_blocks=context,
        first_block=data.get("start_ar_block_idx", 0),
    )


def _expected_shapes(config: PublishedConfig) -> dict[str, tuple[int, ...]]:
    """Every entry of a published file of these sizes."""
    sizes, layout = config.transformer, config.layout
    width, hidden = sizes.width, sizes.hidden
    attention = width // sizes.heads * (sizes.heads + 2 * sizes.kv_heads)
    shapes: dict[str, tuple[int, ...]] = {
        "abs_pe": (1, sizes.max_positions, width),
        "norm.weight": (width,),
        "output.weight": (layout.num_outputs, width),
        "tok_embeddings.weight": (layout.num_outputs + bool(config.context_blocks), width),
    }
    if layout.num_classes:
        shapes["cls_embedding.embedding_table.weight"] = (layout.num_classes + 1, width)
    for layer in range(sizes.depth):
        shapes |= {
            f"layers.{layer}.attention.wqkv.weight": (attention, width),
            f"layers.{layer}.attention.wo.weight": (width, width),
            f"layers.{layer}.attention_norm.weight": (width,),
            f"layers.{layer}.feed_forward.w1.weight": (hidden, width),
            f"layers.{layer}.feed_forward.w2.weight": (width, hidden),
            f"layers.{layer}.feed_forward.w3.weight": (hidden, width),
            f"layers.{layer}.ffn_norm.weight": (width,),
        }
    return shapes


def _rename(weights: dict[str, Tensor], config: PublishedConfig) -> dict[str, Tensor]:
    """Published entries -> entries of PublishedTransformer."""
    tables = ("tok_embeddings.weight", "cls_embedding.embedding_table.weight")
    named = {
        "positions": weights["abs_pe"][0],
        "head.weight": weights["output.weight"],
        "llama.norm.weight": weights["norm.weight"],
        "llama.embed_tokens.weight": torch.cat([weights[table] for table in tables if table in weights]),
    }
    sizes = config.transformer
    head = sizes.width // sizes.heads
    parts = [sizes.heads * head, sizes.kv_heads * head, sizes.kv_heads * head]
    for layer in range(sizes.depth):
        theirs, ours = f"layers.{layer}", f"llama.layers.{layer}"
        qkv = torch.split_with_sizes(weights[f"{theirs}.attention.wqkv.weight"], parts)
        named |= {f"{ours}.self_attn.{name}_proj.weight": part for name, part in zip("qkv", qkv, strict=True)}
        named |= {
            f"{ours}.self_attn.o_proj.weight": weights[f"{theirs}.attention.wo.weight"],
            f"{ours}.mlp.gate_proj.weight": weights[f"{theirs}.feed_forward.w1.weight"],
            f"{ours}.mlp.up_proj.weight": weights[f"{theirs}.feed_forward.w3.weight"],
            f"{ours}.mlp.down_proj.weight": weights[f"{theirs}.feed_forward.w2.weight"],
            f"{ours}.input_layernorm.weight": weights[f"{theirs}.attention_norm.weight"],
            f"{ours}.post_attention_layernorm.weight": weights[f"{theirs}.ffn_norm.weight"],
        }
    return named
