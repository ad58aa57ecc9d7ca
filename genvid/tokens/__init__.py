"""Tokens of videos: blocks, padded rows, caches and files."""

from genvid.tokens.blocks import BlockTokens, ResizableTokenizer, TokenizerSpec, VideoTokenizer

__all__ = ["BlockTokens", "ResizableTokenizer", "TokenizerSpec", "VideoTokenizer"]
