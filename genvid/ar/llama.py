"""transformers' Llama as our models use it: its config, its keys in config.json, and its layers over packed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaModel

from genvid import config as configuration
from genvid.ar import attention
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.checkpoint import CheckpointError, read_config, read_origin
from genvid.provenance import Origin


def add_residual_dropout(model: LlamaModel, dropout: float) -> None:
    """Dropout on the outputs of attention and SwiGLU, which transformers' Llama does not have."""

    def drop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return nn.functional.dropout(output, dropout, module.training)

    for layer in model.layers if dropout else ():
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)


def llama_config(config: TransformerConfig, vocab_size: int, pad_id: int | None) -> LlamaConfig:
    """Our config -> transformers' config."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta or 10000.0},
        pad_token_id=pad_id,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
        attn_implementation=attention.NAME,
    )


def run_llama(model: LlamaModel, embedded: Tensor, cache: DynamicCache | None) -> Tensor:
    """(B, S, width) embeddings -> (B, S, width) final states; causal, and right-padded rows need no mask."""
    # By position: transformers renames the argument of the cache.
    output = model(None, None, None, cache, embedded, use_cache=cache is not None)
    return cast(Tensor, output.last_hidden_state)


def run_packed(model: LlamaModel, embedded: Tensor, positions: Tensor, starts: Tensor, longest: int) -> Tensor:
    """(1, N, width) embeddings of rows one after another, (N,) places in them -> (1, N, width) final states.

    Layer by layer, since LlamaModel would make a mask of (N, N) of such positions.
    """
    if model.config._attn_implementation != attention.NAME:  # any other would attend across rows
        raise ValueError(f"packed rows need attn_implementation {attention.NAME!r}")
    rotary = model.rotary_emb(embedded, positions[None])
    for layer in model.layers:
        embedded = layer(embedded, position_embeddings=rotary, cu_seq_lens_q=starts, max_length_q=longest)
    return cast(Tensor, model.norm(embedded))


_SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "hidden": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}
"""Our word -> transformers' key."""

_FIXED = (
    "vocab_size",
    "hidden_act",
    "head_dim",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
"""Other keys of transformers that define the computation: their values follow from our config."""


def llama_json(config: ARConfig) -> dict[str, Any]:
    """Keys of transformers' config that define the network."""
    values = llama_config(config.transformer, config.layout.vocab_size, config.layout.pad_id).to_dict()
    return {key: values[key] for key in ("model_type", *_SIZES.values(), *_FIXED)}


def read_llama_json(folder: Path) -> tuple[ARConfig, Origin | None]:
    """config.json -> our config; a key that contradicts the layout is an error that names it."""
    file, data = folder / "config.json", read_config(folder)
    own, rope = data.get("genvid"), data.get("rope_parameters")
    if not isinstance(own, dict):
        raise CheckpointError(f"{folder} holds a Llama, but not one of genvid: its config.json has no key 'genvid'")
    absent = [key for key in (*_SIZES.values(), *_FIXED) if key not in data]
    absent += [f"genvid.{key}" for key in ("layout", "context_blocks", "dropout") if key not in own]
    if absent:
        raise CheckpointError(f"{file} lacks {', '.join(absent)}")
    transformer = {ours: data[theirs] for ours, theirs in _SIZES.items()}
    transformer |= {
        "dropout": own.pop("dropout"),
        "rope_theta": rope.get("rope_theta") if isinstance(rope, dict) else None,
    }
    origin = read_origin(own, folder)
    config = configuration.decode(ARConfig, {**own, "transformer": transformer}, source=str(file))
    for key, value in llama_json(config).items():
        if data[key] != value:
            raise CheckpointError(f"{file} has {key} {data[key]!r}, where genvid's layout needs {value!r}")
    return config, origin
