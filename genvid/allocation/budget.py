"""A token budget: allocators for clips of any number of blocks, and the clips that share one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence

from genvid.allocation.allocators import Allocator

GROUP_SIZE = 64
"""Clips that share a token budget: a batch of the published evaluation of AdapTok."""


class Budget(ABC):
    """Tokens that a tokenizer may keep. Made by `genvid.tokenizer.budgets.token_budget`."""

    @abstractmethod
    def allocator(self, blocks: int) -> Allocator:
        """The allocator for clips of so many blocks."""

    def video_allocators(self, blocks: Sequence[int]) -> list[tuple[int, Allocator]]:
        """Blocks of the consecutive clips of one video -> (clips that are cut together, their allocator), in order."""
        return [(len(group), self.allocator(blocks[group[0]])) for group in budget_groups(blocks)]


def budget_groups(blocks: Sequence[int]) -> list[list[int]]:
    """Blocks of each clip -> the clips that share a budget: `GROUP_SIZE` with the same number of blocks, in order."""
    alike = defaultdict[int, list[int]](list)
    for clip, count in enumerate(blocks):
        alike[count].append(clip)
    return [clips[start : start + GROUP_SIZE] for clips in alike.values() for start in range(0, len(clips), GROUP_SIZE)]
