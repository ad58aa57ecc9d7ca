"""Clips that are drawn, without end, with the statistics of natural video."""

from genvid.data.sources.procedural.source import ProceduralConfig

__all__ = ["ProceduralConfig"]
