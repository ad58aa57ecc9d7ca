"""AdapTok (arXiv 2505.17011): video -> ordered tokens per causal block -> video, from any prefix of each block.

The tokens and pixels of a block depend on that block and earlier ones alone: shorter clips are coded exactly as the
start of longer ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genvid.checkpoint import Model
from genvid.tokenizer.adaptok.attention import block_causal, latents_then_pixels
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.patches import PatchEmbedding, channels, unpatchify
from genvid.tokenizer.adaptok.pooled_queries import coarser_weights, pool_latents, pool_patches, pyramid_cells
from genvid.tokenizer.adaptok.positions import DecoderPositions, EncoderPositions
from genvid.tokenizer.layers import initialise
from genvid.tokens import BlockTokens, TokenizerSpec


class AdapTok(Model):
    """The tokenizer: `encode` and `decode` for use; `features`, `quantizer` and `render` for training."""

    model_type = "adaptok"
    config_type = AdapTokConfig
    config: AdapTokConfig
    cells: Tensor
    """(L, P), with pooled queries: see `pyramid_cells`."""
    coarser: Tensor
    """(L, L), with pooled queries: see `coarser_weights`."""

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
        self.memory = None
        if config.pooled_queries:
            self.register_buffer("cells", pyramid_cells(*config.grid[1:], config.block_capacity), persistent=False)
            self.register_buffer("coarser", coarser_weights(self.cells), persistent=False)
            # (W,) fading of a carried latent per block, from channels that vanish at once to those that stay.
            self.memory = nn.Parameter(torch.linspace(0, 1, decoder.width))

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
        """(B, 3, T, H, W) in [-1, 1] -> nearest codes and features of every token, all kept."""
        features = self.features(video)
        codes = self.quantizer.encode(features)
        return BlockTokens(keep=torch.ones_like(codes, dtype=torch.bool), codes=codes, features=features)

    @torch.no_grad()
    def decode(self, tokens: BlockTokens) -> Tensor:
        """Tokens -> (B, 3, T, H, W), about [-1, 1]. Each block is cut to its longest kept length in the batch."""
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
            queries = queries + pool_patches(patches, self.cells)
        x = torch.cat([patches + places, queries], 2)
        attend = block_causal((x.shape[2],) * blocks)
        x = x.flatten(1, 2)
        for layer in self.encoder:
            x = layer(x, attend)
        return x.view(len(x), blocks, -1, x.shape[-1])[:, :, -self.config.block_capacity :]

    def embed(self, tokens: BlockTokens) -> Tensor:
        """Codes -> (B, G, L, W) decoder input. In positions of dropped tokens it is arbitrary and never read."""
        assert tokens.codes is not None
        codes = tokens.codes.clamp(0, self.quantizer.codebook_size - 1)
        return self.quantizer.project(self.quantizer.lookup(codes))

    def render(self, embeddings: Tensor, keep: Tensor) -> Tensor:
        """Decoder input (B, G, L, W) and kept tokens (B, G, L) -> (B, 3, T, H, W), differentiable.

        Dropped tokens are masked, not removed: shapes do not depend on `keep`.
        """
        lengths = (keep.shape[2],) * keep.shape[1]
        return self._render(embeddings, keep, keep.flatten(1), lengths, range(keep.shape[1]))

    def render_block(self, embeddings: Tensor, keep: Tensor, block: int) -> Tensor:
        """The frames (B, 3, frames_per_block, H, W) of one block, as in `render`, from the latents up to it."""
        embeddings, keep = embeddings[:, : block + 1], keep[:, : block + 1]
        return self._render(embeddings, keep, keep.flatten(1), (keep.shape[2],) * (block + 1), [block])

    def _render(
        self,
        embeddings: Tensor,
        keep: Tensor,
        mask: Tensor | None,
        lengths: Sequence[int],
        blocks: Sequence[int],
    ) -> Tensor:
        """Frames of `blocks` from the first `lengths[g]` latents of each block; no later ones are kept.

        `mask` (B, sum(lengths)): which of these latents are kept; None: all.
        """
        places, queries = self.decoder_positions(len(lengths))
        latents = torch.cat([embeddings[:, g, :n] for g, n in enumerate(lengths)], 1)
        if mask is not None:
            latents = torch.where(mask[..., None], latents, 0)
        latents = latents + torch.cat([places[g, :n] for g, n in enumerate(lengths)])
        pixels = torch.cat([queries[block] for block in blocks]).expand(len(latents), -1, -1).to(latents.dtype)
        if self.memory is not None:
            pooled = pool_latents(embeddings, keep, self.cells, self.memory)
            pixels = pixels + pooled[:, list(blocks)].flatten(1, 2)
        x = torch.cat([latents, pixels], 1)
        attend = latents_then_pixels(lengths, queries.shape[1], blocks, mask)
        for layer in self.decoder:
            x = layer(x, attend)
        patches = self.output(self.output_norm(x[:, latents.shape[1] :]))
        return unpatchify(patches.view(len(x), len(blocks), *self.config.grid[1:], -1), self.config.patch)

    def _check(self, tokens: BlockTokens) -> None:
        blocks, capacity = tokens.keep.shape[1:]
        if tokens.codes is None:
            raise ValueError("these tokens have no codes, and AdapTok decodes codes: encode the video with AdapTok")
        if capacity != self.config.block_capacity or not 1 <= blocks <= self.config.grid[0]:
            raise ValueError(
                f"tokens of {blocks} blocks of {capacity} do not fit this tokenizer: "
                f"it decodes 1 to {self.config.grid[0]} blocks of {self.config.block_capacity}"
            )
        kept = tokens.codes[tokens.keep]
        if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < self.quantizer.codebook_size:
            raise ValueError(
                f"codes {int(kept.min())} to {int(kept.max())} do not fit this tokenizer's codebook of "
                f"{self.quantizer.codebook_size}: they were made by another tokenizer"
            )


def longest_kept(keep: Tensor) -> list[int]:
    """(B, G, L) kept tokens -> for each block, the length up to the last token that any clip keeps."""
    used = keep.any(0)
    positions = torch.arange(1, used.shape[1] + 1, device=used.device)
    lengths: list[int] = (used * positions).amax(1).tolist()
    return lengths
