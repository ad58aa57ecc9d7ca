"""Tokens of videos: blocks, padded rows, caches and files."""

from genvid.tokens.blocks import BlockTokens, CodebookTokenizer, ResizableTokenizer, TokenizerSpec, VideoTokenizer

__all__ = ["BlockTokens", "CodebookTokenizer", "ResizableTokenizer", "TokenizerSpec", "VideoTokenizer"]
