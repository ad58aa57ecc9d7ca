"""AdapTok (arXiv 2505.17011): video -> ordered tokens per causal block -> video, from any prefix of each block.

A block's tokens and pixels depend on that block and earlier ones only, so shorter clips are exact and blocks can be
coded as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from genvid.checkpoint import Model
from genvid.tokenizer.adaptok.attention import block_causal, latents_then_pixels
from genvid.tokenizer.adaptok.cells import cells, coarser
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.patches import PatchEmbedding, channels, unpatchify
from genvid.tokenizer.adaptok.positions import DecoderPositions, EncoderPositions
from genvid.tokenizer.layers import initialise
from genvid.tokens import BlockTokens, TokenizerSpec


class AdapTok(Model):
    """The tokenizer. Training uses `features`, `quantizer` and `render`; everyone else `encode` and `decode`."""

    model_type = "adaptok"
    config_type = AdapTokConfig
    config: AdapTokConfig
    cells: Tensor
    coarser: Tensor

    def __init__(self, config: AdapTokConfig) -> None:
        super().__init__(config)
        encoder, decoder = config.encoder, config.decoder
        self.patches = PatchEmbedding(config.patch, encoder.width)
        self.encoder_positions = EncoderPositions(config.grid, config.block_capacity, encoder.width)
        self.encoder = encoder.build()
        self.quantizer = config.quantizer.build(encoder.width, decoder.width)
        self.decoder_positions = DecoderPositions(config.grid, config.block_capacity, decoder.width)
        self.decoder = decoder.build()
        self.output_norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.output = nn.Linear(decoder.width, channels(config.patch))
        initialise(self)
        nn.init.zeros_(self.output.weight)
        self.register_buffer("cells", cells(*config.grid[1:], config.block_capacity), persistent=False)
        self.register_buffer("coarser", coarser(self.cells), persistent=False)
        # What is left of a latent after each block in which its slot is dropped: channels that forget, and that do not.
        self.memory = nn.Parameter(torch.linspace(0, 1, decoder.width)) if config.pooled_queries else None

    @property
    def spec(self) -> TokenizerSpec:
        return TokenizerSpec(
            frames_per_block=self.config.patch[0],
            resolution=self.config.resolution,
            block_capacity=self.config.block_capacity,
            token_dim=self.quantizer.code_dim,
            codebook_size=self.quantizer.codebook_size,
            max_blocks=self.config.grid[0],
        )

    @torch.no_grad()
    def encode(self, video: Tensor) -> BlockTokens:
        """(B, 3, T, H, W) in [-1, 1] -> codes (the nearest) and features of every slot, all kept."""
        features = self.features(video)
        codes = self.quantizer.encode(features)
        return BlockTokens(keep=torch.ones_like(codes, dtype=torch.bool), codes=codes, features=features)

    @torch.no_grad()
    def decode(self, tokens: BlockTokens) -> Tensor:
        """Tokens -> (B, 3, T, H, W), about [-1, 1]. Cut to the longest of each block: dropped tokens are free."""
        self._check(tokens)
        lengths = longest_kept(tokens.keep)
        trimmed = torch.cat([tokens.keep[:, g, :n] for g, n in enumerate(lengths)], 1)
        mask = None if trimmed.all() else trimmed
        return self._render(self.embed(tokens), tokens.keep, mask, lengths, range(len(lengths)))

    def features(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> (B, G, L, W): the encoder's latents before the bottleneck."""
        blocks = self.spec.check_video(video)
        places, queries = self.encoder_positions(blocks)
        patches = self.patches(video).flatten(2, 3)
        queries = queries.expand(len(video), -1, -1, -1).to(patches.dtype)
        if self.config.pooled_queries:
            queries = queries + (self.cells / self.cells.sum(1, keepdim=True).clamp(min=1)).to(patches.dtype) @ patches
        x = torch.cat([patches + places, queries], 2)
        attend = block_causal((x.shape[2],) * blocks)
        x = x.flatten(1, 2)
        for layer in self.encoder:
            x = layer(x, attend)
        return x.view(len(x), blocks, -1, x.shape[-1])[:, :, -self.config.block_capacity :]

    def embed(self, tokens: BlockTokens) -> Tensor:
        """Codes -> (B, G, L, W) decoder input. Dropped slots may hold any number; what becomes of it is not read."""
        assert tokens.codes is not None
        codes = tokens.codes.clamp(0, self.quantizer.codebook_size - 1)
        return self.quantizer.project(self.quantizer.lookup(codes))

    def render(self, embeddings: Tensor, keep: Tensor) -> Tensor:
        """Decoder input (B, G, L, W) and the kept slots (B, G, L) -> (B, 3, T, H, W), differentiable.

        Works on all slots, so that shapes never depend on `keep`.
        """
        lengths = (keep.shape[2],) * keep.shape[1]
        return self._render(embeddings, keep, keep.flatten(1), lengths, range(keep.shape[1]))

    def render_block(self, embeddings: Tensor, keep: Tensor, block: int) -> Tensor:
        """Only the frames (B, 3, frames_per_block, H, W) of one block, from the latents up to it: equal and cheaper."""
        embeddings, keep = embeddings[:, : block + 1], keep[:, : block + 1]
        return self._render(embeddings, keep, keep.flatten(1), (keep.shape[2],) * (block + 1), [block])

    def novelty(self, embeddings: Tensor, left: Tensor) -> Tensor:
        """What the latents (..., L, W) of blocks tell that the decoder could not have known: (..., L, 2W), how they
        differ from what is `left` in their slots, and from what the latents before them say of their cells."""
        around = self.coarser.to(embeddings.dtype) @ embeddings
        return torch.cat([embeddings - left, embeddings - around], -1)

    def carry_over(self, embeddings: Tensor, keep: Tensor, left: Tensor | None = None) -> Tensor:
        """What is left of the last kept latent of each slot before every block (B, G, L, W) of which `keep` (B, G, L)
        stays, and after the last one: (B, G + 1, L, W). `left` (B, L, W) by earlier blocks."""
        assert self.memory is not None
        memory = self.memory.to(embeddings.dtype)
        found = [torch.zeros_like(embeddings[:, 0]) if left is None else left]
        for block, kept in zip(embeddings.unbind(1), keep.unbind(1), strict=True):
            found.append(memory * torch.where(kept[..., None], block, found[-1]))
        return torch.stack(found, 1)

    def _render(
        self,
        embeddings: Tensor,
        keep: Tensor,
        mask: Tensor | None,
        lengths: Sequence[int],
        blocks: Sequence[int],
    ) -> Tensor:
        """Frames of `blocks` from the first `lengths[g]` latents of each block, behind which nothing is kept.

        `mask` (B, sum(lengths)) says which of these are kept; None: all.
        """
        places, queries = self.decoder_positions(len(lengths))
        latents = torch.cat([embeddings[:, g, :n] for g, n in enumerate(lengths)], 1)
        if mask is not None:
            latents = torch.where(mask[..., None], latents, 0)
        latents = latents + torch.cat([places[g, :n] for g, n in enumerate(lengths)])
        pixels = torch.cat([queries[block] for block in blocks]).expand(len(latents), -1, -1).to(latents.dtype)
        if self.memory is not None:
            pixels = pixels + self._cell_means(*self._recall(embeddings, keep))[:, list(blocks)].flatten(1, 2)
        x = torch.cat([latents, pixels], 1)
        attend = latents_then_pixels(lengths, queries.shape[1], blocks, mask)
        for layer in self.decoder:
            x = layer(x, attend)
        patches = self.output(self.output_norm(x[:, latents.shape[1] :]))
        return unpatchify(patches.view(len(x), len(blocks), *self.config.grid[1:], -1), self.config.patch)

    def _recall(self, embeddings: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Decoder input (B, G, L, W) where dropped slots hold what is left of the last kept latent of that slot, and
        the slots that hold something (B, G, L)."""
        recalled = torch.where(keep[..., None], embeddings, self.carry_over(embeddings, keep)[:, :-1])
        return recalled, torch.stack(list(accumulate(keep.unbind(1), torch.logical_or)), 1)

    def _cell_means(self, latents: Tensor, known: Tensor) -> Tensor:
        """(B, G, P, W): for each patch the mean of the known latents (B, G, L, W) whose cells it lies in."""
        cover = self.cells.to(latents.dtype) * known[..., None]
        return cover.transpose(2, 3) @ latents / cover.sum(2).clamp(min=1)[..., None]

    def _check(self, tokens: BlockTokens) -> None:
        blocks, capacity = tokens.keep.shape[1:]
        if tokens.codes is None:
            raise ValueError("these tokens carry no codes; AdapTok decodes discrete tokens")
        if capacity != self.config.block_capacity or not 1 <= blocks <= self.config.grid[0]:
            raise ValueError(
                f"tokens of {blocks} blocks of {capacity} do not fit this tokenizer: "
                f"it holds 1 to {self.config.grid[0]} blocks of {self.config.block_capacity}"
            )
        kept = tokens.codes[tokens.keep]
        if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < self.quantizer.codebook_size:
            raise ValueError(
                f"codes {int(kept.min())} to {int(kept.max())} are not of this tokenizer's codebook of "
                f"{self.quantizer.codebook_size}; they come from another tokenizer"
            )


def longest_kept(keep: Tensor) -> list[int]:
    """For each block, the slots up to the last one that any clip of the batch keeps."""
    used = keep.any(0)
    slots = torch.arange(1, used.shape[1] + 1, device=used.device)
    lengths: list[int] = (used * slots).amax(1).tolist()
    return lengths
