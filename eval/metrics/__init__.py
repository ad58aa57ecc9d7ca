"""Metrics of clips and of sets of clips."""
