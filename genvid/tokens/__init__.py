"""Tokens of videos: blocks, padded rows, caches and files."""

from genvid.tokens.blocks import BlockTokens, TokenizerSpec, VideoTokenizer

__all__ = ["BlockTokens", "TokenizerSpec", "VideoTokenizer"]
