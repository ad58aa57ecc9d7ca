"""The autoregressive model: transformers' Llama over rows.

A standard architecture, so that every Llama server can run the model folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self, cast

from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, LlamaModel

from genvid import config as configuration
from genvid.ar import attention
from genvid.ar.config import ARConfig
from genvid.ar.llama import add_residual_dropout, llama_config, llama_json, read_llama_json, run_llama, run_packed
from genvid.ar.row_model import RowModel
from genvid.checkpoint import CONFIG, WEIGHTS, load_weights, read_weights
from genvid.files import save_tensors, write_json


class BlockTransformer(RowModel):
    """Llama with rotary positions. Its folder is a transformers folder; the layout is in config.json at "genvid".

    The output head spans the whole vocabulary, as Llama servers expect: classes and PAD are computed and not used, with
    8,192 codes and 101 classes about 1 % of the head.
    """

    model_type: ClassVar[str] = "llama"
    config_type: ClassVar[type] = ARConfig

    def __init__(self, config: ARConfig) -> None:
        super().__init__(config)
        if config.transformer.rope_theta is None:
            raise ValueError("a BlockTransformer has rotary positions: give rope_theta a number")
        self.llama = LlamaForCausalLM(llama_config(config.transformer, config.layout.vocab_size, config.layout.pad_id))
        self.dropout = nn.Dropout(config.transformer.dropout)
        add_residual_dropout(self.llama.model, config.transformer.dropout)

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.llama.config)

    def states(self, tokens: Tensor, cache: DynamicCache | None = None) -> Tensor:
        embedded = self.dropout(self.llama.model.embed_tokens(tokens))
        return run_llama(self.llama.model, embedded, cache)

    def packed_states(self, tokens: Tensor, starts: Tensor) -> Tensor:
        embedded = self.dropout(self.llama.model.embed_tokens(tokens))
        positions = attention.row_positions(starts, tokens.shape[1])
        return run_packed(self.llama.model, embedded, positions, starts, self.config.longest_input)

    def logits(self, states: Tensor) -> Tensor:
        return cast(Tensor, self.llama.lm_head(states)[..., : self.layout.num_outputs])

    @property
    def causal_lm(self) -> LlamaForCausalLM:
        return self.llama

    @property
    def backbone(self) -> LlamaModel:
        return self.llama.model

    @property
    def head_weight(self) -> Tensor:
        return cast(Tensor, self.llama.lm_head.weight[: self.layout.num_outputs])

    def _write(self, folder: Path) -> None:
        own = {
            "layout": configuration.encode(self.layout),
            "context_blocks": self.config.context_blocks,
            **({"null_context": True} if self.config.null_context else {}),
            **({"sink_blocks": self.config.sink_blocks} if self.config.sink_blocks else {}),
            "dropout": self.config.transformer.dropout,
            **self._origin_json(),
        }
        dtype = str(self.llama.dtype).removeprefix("torch.")
        data = {"architectures": ["LlamaForCausalLM"], **llama_json(self.config), "dtype": dtype, "genvid": own}
        write_json(folder / CONFIG, data)
        save_tensors(folder / WEIGHTS, self.llama.state_dict(), {"format": "pt"})

    @classmethod
    def load(cls, folder: Path) -> Self:
        config, origin = read_llama_json(folder)
        model = cls(config)
        model.origin = origin or model.origin
        load_weights(model.llama, read_weights(folder), source=str(folder))
        return model.eval()
