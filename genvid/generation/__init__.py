"""Sampling block tokens from an autoregressive model, under a grammar and a budget."""
