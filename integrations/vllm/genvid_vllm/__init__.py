"""Rows of genvid's autoregressive models in vLLM."""

from genvid_vllm.rows import RowBatch, RowRequest, sampling_params

__all__ = ["RowBatch", "RowRequest", "sampling_params"]
