"""Latents that drift, for the allocators of LIT."""

import torch

from genvid.tokens import BlockTokens

METRIC = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.5, 0.0], [0.3, 0.0, 2.0]])


def walk(clips: int = 2, blocks: int = 6, capacity: int = 8, seed: int = 0) -> BlockTokens:
    """Tokens whose latents are random walks, faster at some positions."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(clips, blocks, capacity, 3, generator=generator)
    latents = (steps * torch.linspace(0, 1, capacity)[:, None]).cumsum(1) * torch.tensor([1.0, 2.0, 0.5])
    return BlockTokens(torch.ones(latents.shape[:3], dtype=torch.bool), latents=latents)
