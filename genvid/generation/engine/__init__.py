"""Sampling engines: continuous batching on batch slots, kernels for a single row, and transformers' engine."""
