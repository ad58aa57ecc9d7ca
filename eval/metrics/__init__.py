"""Metrics as torchmetrics objects."""
