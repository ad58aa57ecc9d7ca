"""Published AdapTok checkpoints -> genvid model folders, and the token budgets of the published evaluation.

Published models take pixels in [0, 1]. The affine map from [-1, 1] is folded into the first and the last layer here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genvid.checkpoint import (
    WEIGHTS,
    CheckpointError,
    check_free,
    describe_mismatch,
    fingerprint,
    load_weights,
    read_config,
    read_weights,
    resolve,
)
from genvid.files import write_atomically
from genvid.provenance import Origin
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.scorer import Scorer, ScorerConfig
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig

SCORE_MEAN, SCORE_STD = 0.19749, 0.07616
"""Of LPIPS (VGG): the constants of the published code that normalise published scorers."""

_GEOMETRY: dict[str, Any] = {
    "in_channels": 3,
    "encoder_attn_type": "full_causal_type1",
    "decoder_attn_type": "full_causal_type2",
    "scorer_attn_type": "full_causal_type1",
    "learned_encoder_patch_pe": False,
    "learned_encoder_latent_query_embed": True,
    "learned_decoder_latent_pe": False,
    "learned_decoder_patch_query_embed": False,
    "use_encoder_patch_token_type_embed": False,
    "use_encoder_latent_query_token_type_embed": False,
    "use_decoder_latent_token_type_embed": False,
    "use_decoder_patch_query_token_type_embed": True,
    "latent_pe_scale_factor": 10000,
    "bottleneck.args.norm": "none",
    "bottleneck.args.regularizer.name": "vq",
    "bottleneck.args.regularizer.args.l2_normalized": True,
}
"""Settings of the released configurations that our model has built in."""

_NAMES = {
    "patches.linear": "x_embedder.proj",
    "encoder_positions.queries": "encoder_latent_query_embed",
    "quantizer.input": "bottleneck.in_linear",
    "quantizer.output": "bottleneck.out_linear",
    "quantizer.embedding": "bottleneck.regularizer.embedding.weight",
    "decoder_positions.pixel_type": "decoder_patch_query_token_type_embed",
    "output_norm": "final_layer.norm_final",
    "output": "final_layer.linear",
}
_SCORER_NAMES = {
    "input": "scorer.project",
    "positions": "scorer.latent_pe",
    "output_norm": "scorer.ln_post",
    "head": "scorer.ffn",
}
_LAYER_NAMES = {
    "attention_norm": "norm1",
    "qkv": "attn.qkv",
    "out": "attn.proj",
    "mlp_norm": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
_FIXED = ("encoder_patch_pe", "decoder_patch_query_embed", "decoder_latent_pe")
"""Published as weights, but functions of the sizes: compared with ours and left out."""


@dataclass(frozen=True)
class Conversion:
    """Folders written by `convert`."""

    tokenizer: Path
    scorer: Path | None
    left_out: list[str]
    """Published weights that only training uses."""


def convert(source: str | Path, destination: str | Path) -> Conversion:
    """Published AdapTok folder or Hub id -> a tokenizer's model folder, and its scorer's as DESTINATION/scorer.

    CheckpointError names the weights that are missing, unexpected or of another shape.
    """
    folder, destination = resolve(source), Path(destination)
    check_free(destination)
    config, weights = read_config(folder), read_weights(folder)
    left_out = [name for name in weights if name.startswith("prior_model.")]
    weights = {name: value.float() for name, value in weights.items() if name not in left_out}
    tokenizer_config = tokenizer_config_of(config)
    tokenizer = AdapTok(tokenizer_config)
    scorer = None
    if config.get("scorer_name", "none") != "none":
        scorer = Scorer(scorer_config_of(config, tokenizer_config))
    if mismatch := describe_mismatch(_expected(tokenizer, scorer), weights):
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its config.json: {mismatch}")
    _check_fixed(tokenizer, weights)
    load_weights(tokenizer, _tokenizer_weights(tokenizer, weights), source=str(folder))
    with write_atomically(destination) as temporary:
        tokenizer.save(temporary)
        if scorer is not None:
            load_weights(scorer, _scorer_weights(scorer, weights), source=str(folder))
            scorer.origin = Origin({"tokenizer": fingerprint(temporary)})
            scorer.save(temporary / "scorer")
    return Conversion(destination, None if scorer is None else destination / "scorer", left_out)


def is_published(config: Mapping[str, Any]) -> bool:
    """Whether a published `config.json` is that of a tokenizer of this family."""
    return "bottleneck" in config and "bottleneck_token_num" in config


def published_budgets(block_capacity: int, tokens: int) -> list[int]:
    """Mean tokens of each block in the published evaluation at nominally `tokens` per 16-frame video of 4 blocks.

    `block_capacity` is the model's: 512 or 256.
    """
    tables = json.loads(Path(__file__).with_name("published_budgets.json").read_text())["mean_tokens_per_block"]
    table = tables.get(str(block_capacity))
    if table is None:
        raise ValueError(f"there are published budgets for blocks of {', '.join(tables)} tokens, not {block_capacity}")
    if str(tokens) not in table:
        raise ValueError(f"for blocks of {block_capacity} the published budgets are {', '.join(table)}, not {tokens}")
    budgets: list[int] = table[str(tokens)]
    return budgets


def tokenizer_config_of(config: Mapping[str, Any]) -> AdapTokConfig:
    """A published `config.json` -> ours; CheckpointError when our model cannot represent it."""
    if "encoder_attn_type" not in config:
        raise CheckpointError(
            "the published configuration has no encoder_attn_type, so its blocks are not causal: that is a tokenizer "
            "like LARP's, whose weight names and positions genvid cannot check (docs/published.md)"
        )
    for key, ours in _GEOMETRY.items():
        theirs = _get(config, key, ours)
        if theirs != ours:
            raise CheckpointError(f"the published configuration has {key} = {theirs!r}; genvid reads only {ours!r}")
    patch = (_size(config, "temporal_patch_size"), *2 * (_size(config, "patch_size"),))
    for ours, key in zip(patch, ("decoder_temporal_patch_size", "decoder_patch_size"), strict=False):
        if _get(config, key, ours) != ours:
            raise CheckpointError(f"the published configuration has {key} = {config[key]}, unlike the encoder's {ours}")
    frames, tokens = _size(config, "frame_num"), _size(config, "bottleneck_token_num")
    blocks = frames // patch[0]
    if frames % patch[0] or tokens % blocks or _get(config, "mask_generator.tot_groups", blocks) != blocks:
        raise CheckpointError(
            f"{frames} frames in patches of {patch[0]} are not as many blocks as the published configuration has "
            f"({_get(config, 'mask_generator.tot_groups', blocks)} blocks, {tokens} tokens)"
        )
    regularizer = "bottleneck.args.regularizer.args"
    return AdapTokConfig(
        frames=frames,
        resolution=(_size(config, "input_size"),) * 2,
        patch=patch,
        block_capacity=tokens // blocks,
        encoder=_network(config, "encoder"),
        decoder=_network(config, "decoder"),
        quantizer=VQConfig(
            codebook_size=_size(config, f"{regularizer}.codebook_size"),
            code_dim=_size(config, "bottleneck.args.bottleneck_dim"),
            temperature=_get(config, f"{regularizer}.stochastic_temperature", VQConfig.temperature),
            commitment_weight=_get(config, f"{regularizer}.commitment_loss_weight", VQConfig.commitment_weight),
            codebook_weight=_get(config, f"{regularizer}.codebook_loss_weight", VQConfig.codebook_weight),
        ),
    )


def scorer_config_of(config: Mapping[str, Any], tokenizer: AdapTokConfig) -> ScorerConfig:
    """A published `config.json` with a scorer -> ours."""
    step = _size(config, "scorer_step")
    sizes = tuple(range(step, tokenizer.block_capacity + 1, step))
    return ScorerConfig.for_tokenizer(tokenizer, _network(config, "scorer"), sizes=sizes, metric="lpips")


def _get(config: Mapping[str, Any], dotted: str, default: Any) -> Any:
    value: Any = config
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value


def _size(config: Mapping[str, Any], dotted: str) -> int:
    value = _get(config, dotted, None)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{dotted} in the published configuration must be a positive integer, got {value!r}")
    return value


def _network(config: Mapping[str, Any], part: str) -> StackConfig:
    return StackConfig(
        _size(config, f"{part}_hidden_size"), _size(config, f"{part}_depth"), _size(config, f"{part}_num_heads")
    )


def _published_name(name: str, names: Mapping[str, str], layers: Mapping[str, str]) -> str:
    """The published name of our weight. `names` maps prefixes of names, `layers` those of transformer stacks."""
    if match := re.fullmatch(r"(\w+)\.(\d+)\.(\w+)\.(weight|bias)", name):
        stack, index, module, kind = match.groups()
        if stack in layers:
            return f"{layers[stack]}.blocks.{index}.{_LAYER_NAMES[module]}.{kind}"
    ours = max((key for key in names if name == key or name.startswith(f"{key}.")), key=len)
    return names[ours] + name.removeprefix(ours)


def _tokenizer_names(tokenizer: AdapTok) -> dict[str, str]:
    layers = {"encoder": "encoder", "decoder": "decoder"}
    return {name: _published_name(name, _NAMES, layers) for name in tokenizer.state_dict()}


def _scorer_names(scorer: Scorer) -> dict[str, str]:
    names = (name for name, _ in scorer.named_parameters())
    return {name: _published_name(name, _SCORER_NAMES, {"layers": "scorer"}) for name in names}


def _expected(tokenizer: AdapTok, scorer: Scorer | None) -> dict[str, torch.Size]:
    """Shapes of the published weights of these models, by name."""
    state = tokenizer.state_dict()
    shapes = {theirs: state[ours].shape for ours, theirs in _tokenizer_names(tokenizer).items()}
    config = tokenizer.config
    blocks, rows, columns = config.grid
    width = config.decoder.width
    shapes["x_embedder.proj.weight"] = torch.Size([config.encoder.width, 3, *config.patch])
    shapes["encoder_latent_query_embed"] = torch.Size([blocks * config.block_capacity, config.encoder.width])
    shapes["decoder_patch_query_token_type_embed"] = torch.Size([1, 1, width])
    shapes["encoder_patch_pe"] = torch.Size([1, blocks * rows * columns, config.encoder.width])
    shapes["decoder_patch_query_embed"] = torch.Size([1, blocks * rows * columns, width])
    shapes["decoder_latent_pe"] = torch.Size([1, blocks * config.block_capacity, width])
    if scorer is not None:
        state = scorer.state_dict()
        shapes |= {theirs: state[ours].shape for ours, theirs in _scorer_names(scorer).items()}
        shapes["scorer.latent_pe"] = torch.Size([blocks * config.block_capacity, scorer.config.width])
    return shapes


def _check_fixed(tokenizer: AdapTok, weights: Mapping[str, Tensor]) -> None:
    """CheckpointError unless the published sin-cos tables equal ours."""
    buffers = dict(tokenizer.named_buffers())
    ours = ("encoder_positions.patches", "decoder_positions.pixels", "decoder_positions.latents")
    for name, table in zip(_FIXED, (buffers[name] for name in ours), strict=True):
        if not torch.allclose(weights[name], table.flatten(0, 1), atol=1e-4):
            raise CheckpointError(f"{name} is not the published sin-cos table; genvid has no other position geometry")


def _tokenizer_weights(tokenizer: AdapTok, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = dict(weights)
    kernel = weights["x_embedder.proj.weight"].double().permute(0, 2, 3, 4, 1).flatten(1)
    bias = weights["x_embedder.proj.bias"].double()
    # Theirs is (ours + 1) / 2 on the way in, and ours is 2 * theirs - 1 on the way out.
    weights["x_embedder.proj.weight"] = (kernel / 2).float()
    weights["x_embedder.proj.bias"] = (bias + kernel.sum(1) / 2).float()
    weights["final_layer.linear.weight"] = 2 * weights["final_layer.linear.weight"]
    weights["final_layer.linear.bias"] = 2 * weights["final_layer.linear.bias"] - 1
    return _renamed(tokenizer, _tokenizer_names(tokenizer), weights)


def _scorer_weights(scorer: Scorer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    statistics = {
        "evidence_scale.mean": scorer.evidence_scale.mean,
        "evidence_scale.std": scorer.evidence_scale.std,
        "target_scale.mean": torch.full_like(scorer.target_scale.mean, SCORE_MEAN),
        "target_scale.std": torch.full_like(scorer.target_scale.std, SCORE_STD),
    }
    return _renamed(scorer, _scorer_names(scorer), weights) | statistics


def _renamed(model: nn.Module, names: Mapping[str, str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = model.state_dict()
    return {ours: weights[theirs].reshape(state[ours].shape) for ours, theirs in names.items()}
