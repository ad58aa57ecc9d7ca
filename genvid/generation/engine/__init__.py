"""Sampling engines: batch slots that rows share, one row alone, and transformers' own."""
