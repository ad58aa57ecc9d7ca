"""AdapTok (arXiv 2505.17011): video -> ordered tokens per causal block -> video, from any prefix of each block.

The tokens and pixels of a block depend on that block and earlier ones alone: shorter clips are coded exactly as the
start of longer ones.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from genvid.allocation import Allocator
from genvid.checkpoint import Model
from genvid.replay import Graphs
from genvid.tokenizer.adaptok.attention import block_causal, last_of_blocks, latents_then_pixels
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.cuts import Cut, few, kept_cut, longest_kept, rounded
from genvid.tokenizer.adaptok.packed import MOST_TOKENS, SPARE, PackedTokens, has_kernel
from genvid.tokenizer.adaptok.past import PastBlocks
from genvid.tokenizer.adaptok.patches import PatchEmbedding, channels, unpatchify
from genvid.tokenizer.adaptok.pooled_queries import cell_means, fill_from_past, pool_latents
from genvid.tokenizer.adaptok.positions import DecoderPositions, EncoderPositions, Runs
from genvid.tokenizer.adaptok.pyramid import Pyramid, overlapping_cells, overlapping_pyramid, pyramid_cells
from genvid.tokenizer.adaptok.rotary import PastTokens, RotaryDecoderPositions, RotaryEncoderPositions
from genvid.tokenizer.layers import dtype_of_products, initialise, product
from genvid.tokens import BlockTokens, TokenizerSpec


class AdapTok(Model):
    """The tokenizer: `encode` and `decode` for use; `features`, `quantizer` and `render` for training.

    With rotary geometry it takes videos of any length, and `at` gives the same weights for frames of another size.
    """

    model_type = "adaptok"
    config_type = AdapTokConfig
    config: AdapTokConfig

    def __init__(self, config: AdapTokConfig) -> None:
        super().__init__(config)
        encoder, decoder = config.encoder, config.decoder
        self.resolution, self.window = config.resolution, config.window
        self.pyramid = _pyramid(config)
        self.patches = PatchEmbedding(config.patch, encoder.width)
        self.encoder_positions = (EncoderPositions if self.window is None else RotaryEncoderPositions)(config)
        self.encoder = encoder.build()
        self.quantizer = config.quantizer.build(encoder.width, decoder.width)
        self.past_tokens = PastTokens(config, self.quantizer.code_dim) if config.closed_loop else None
        self.decoder_positions = (DecoderPositions if self.window is None else RotaryDecoderPositions)(config)
        self.decoder = decoder.build()
        self.output_norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.output = nn.Linear(decoder.width, channels(config.patch))
        initialise(self)
        nn.init.zeros_(self.output.weight)
        # (W,) fading of a carried latent per block, from channels that vanish at once to those that stay.
        self.memory = nn.Parameter(torch.linspace(0, 1, decoder.width)) if config.pooled_queries else None

    @property
    def spec(self) -> TokenizerSpec:
        blocks = self.config.frame_blocks
        return TokenizerSpec(
            frames_per_block=blocks.frames_per_block,
            single_first_frame=blocks.single_first_frame,
            stream=blocks.stream,
            resolution=self.resolution,
            block_capacity=self.config.capacity_at(self.resolution),
            token_dim=self.quantizer.code_dim,
            codebook_size=self.quantizer.codebook_size,
            max_blocks=self.config.grid[0] if self.window is None else None,
        )

    def at(self, resolution: tuple[int, int]) -> Self:
        """The same weights for frames (height, width) of another size; ValueError for one out of bounds."""
        self.config.check_resolution(resolution)
        if resolution == self.resolution:
            return self
        other, capacity = copy.copy(self), self.config.capacity_at(resolution)
        rows, columns = self.config.picture_grid(resolution)
        pyramid = overlapping_pyramid(rows, columns, capacity, self.output.weight.device)
        other.resolution, other._modules = resolution, {**self._modules, "pyramid": pyramid}
        return other

    @torch.no_grad()
    def encode(self, video: Tensor, *, graphs: Graphs | None = None) -> BlockTokens:
        """(B, 3, T, H, W) in [-1, 1] -> nearest codes and features of every token, all kept.

        With rotary geometry one block after the other, as in a stream (genvid.tokenizer.adaptok.stream). Calls that
        share `graphs` replay launches (genvid.replay).
        """
        blocks = self.spec.check_video(video)
        if self.window is None:
            codes, features = self._encode_clips(video) if graphs is None else graphs(self._encode_clips, video)
            return all_kept(codes, features)
        past = PastBlocks(self.window, graphs=graphs)
        parts = torch.split(video, self.spec.block_frames(blocks), 2)
        return BlockTokens.join_blocks([self.encode_next(part, past) for part in parts])

    @torch.no_grad()
    def decode(self, tokens: BlockTokens, *, graphs: Graphs | None = None) -> Tensor:
        """Tokens -> (B, 3, T, H, W), about [-1, 1].

        On a GPU in half precision kept tokens alone are computed. Else, and for long videos, blocks of rotary geometry
        are decoded one by one, as in a stream; with absolute geometry each is cut to its longest kept length. Calls
        that share `graphs` replay launches (genvid.replay).
        """
        kept = self.check(tokens)
        assert tokens.codes is not None
        if self._has_kernel(tokens.keep.device) and self._in_one_pass(tokens.keep):
            if graphs is None or not few(tokens.keep):
                return self._decode_kept(tokens.codes, tokens.keep, kept)
            kept += -kept % SPARE
            frames: Tensor = graphs(self._decode_kept, tokens.codes, tokens.keep, kept)
            return frames
        if self.window is None:
            lengths = longest_kept(tokens.keep)
            if graphs is not None and few(tokens.keep):
                length = rounded(max(lengths), tokens.keep.shape[2])
                frames = graphs(self._decode_clips, tokens.codes, tokens.keep, length)
                return frames
            trimmed = torch.cat([tokens.keep[:, g, :n] for g, n in enumerate(lengths)], 1)
            mask = None if trimmed.all() else trimmed
            return self._render(self.embed(tokens), tokens.keep, mask, lengths, range(len(lengths)))
        past = PastBlocks(self.window, graphs=graphs)
        blocks = [tokens.blocks(slice(g, g + 1)) for g in range(tokens.keep.shape[1])]
        return torch.cat([self.decode_next(block, past) for block in blocks], 2)

    @torch.no_grad()
    def encode_next(self, video: Tensor, past: PastBlocks, allocator: Allocator | None = None) -> BlockTokens:
        """`encode` of the frames of one block, after those of `past`, cut by `allocator`; None: all tokens are kept."""
        codes, features = past.step(self._encode_block, video)
        tokens = all_kept(codes, features)
        tokens = tokens if allocator is None else allocator(tokens)
        if self.past_tokens is not None:
            assert tokens.codes is not None
            self._remember(self.past_tokens, tokens.codes[:, 0], tokens.keep[:, 0], past)
        return tokens

    @torch.no_grad()
    def decode_next(self, tokens: BlockTokens, past: PastBlocks) -> Tensor:
        """`decode` of one block, after those of `past`."""
        assert tokens.codes is not None
        return past.step(self._decode_block, tokens.codes, tokens.keep, kept_cut(tokens.keep, few(tokens.keep)))

    def render_next(self, embeddings: Tensor, keep: Tensor, cut: Cut, past: PastBlocks, *, remember: bool) -> Tensor:
        """Decoder input (B, L, W) of one block, of which `keep` (B, L) -> its frames after those of `past`,
        differentiable; with `remember`, the block is then among these. `cut`: that of `kept_cut`."""
        assert self.memory is not None
        known, blocks = past.latents_then(embeddings, keep), [0 if past.empty else 1]
        if remember:
            past.append_latents(embeddings, keep)
        filled, present = fill_from_past(*known, self.memory, self.window)
        pooled = cell_means(filled[:, -1:], present[:, -1:], self.pyramid.cells)
        mask, runs = keep[:, : cut.length], [(0, cut.length)]
        x = self.decoder_input(embeddings[:, : cut.length], mask, runs, [0], pooled)
        place = self.decoder_positions.placement(runs, [0], self.pyramid, past.count)
        x = past.run(self.decoder, x, mask, place, ragged=cut.ragged, remember=remember, room=cut.room)
        return self.frames(x[:, cut.length :], blocks)

    def _encode_clips(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and features of clips."""
        features = self.features(video)
        return self.quantizer.encode(features), features

    def _decode_kept(self, codes: Tensor, keep: Tensor, count: int) -> Tensor:
        """Frames of clips from their kept tokens, of which there are `count`, or up to `SPARE` fewer."""
        return self.render_kept(self.embed(BlockTokens(keep, codes)), keep, count)

    def _decode_clips(self, codes: Tensor, keep: Tensor, length: int) -> Tensor:
        """Frames of clips from the first `length` tokens of each block."""
        blocks = keep.shape[1]
        mask = keep[:, :, :length].flatten(1)
        return self._render(self.embed(BlockTokens(keep, codes)), keep, mask, (length,) * blocks, range(blocks))

    def _encode_block(self, past: PastBlocks, video: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, 1, L) and features (B, 1, L, W) of the frames of one block."""
        features = self._features_next(video, past)[:, None]
        return self.quantizer.encode(features), features

    def _decode_block(self, past: PastBlocks, codes: Tensor, keep: Tensor, cut: Cut) -> Tensor:
        """Codes (B, 1, L) of one block, kept where (B, 1, L) -> its frames."""
        embeddings = self.embed(BlockTokens(keep, codes))
        return self.render_next(embeddings[:, 0], keep[:, 0], cut, past, remember=True)

    def features(self, video: Tensor, keep: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> (B, G, L, W): the encoder's latents before the bottleneck.

        `keep` (B, G, L): in a closed loop, the tokens of each block that later blocks read; None: all. `added` (B, G,
        P, W) is added to the embedded patches.
        """
        blocks = self.spec.check_video(video)
        if self.past_tokens is not None:
            return self._closed_loop_features(self.past_tokens, video, keep, added)
        x = self._encoder_input(video, added)
        place = self.encoder_positions.placement(range(blocks), self.pyramid)
        sizes, count = (x.shape[2],) * blocks, self.spec.block_capacity
        everyone, of_latents = block_causal(sizes, window=self.window), last_of_blocks(sizes, count, self.window)
        latents = torch.arange(sum(sizes), device=x.device).view(blocks, -1)[:, -count:].flatten()
        x = x.flatten(1, 2)
        *layers, last = self.encoder
        for layer in layers:
            x = layer(x, place(everyone))
        features: Tensor = last(x, place(of_latents), latents)
        return features.view(len(x), blocks, -1, features.shape[-1])

    def _closed_loop_features(
        self, reader: PastTokens, video: Tensor, keep: Tensor | None, added: Tensor | None
    ) -> Tensor:
        """`features`, one block after the other. No gradient flows from a block to those before it."""
        past, lengths = PastBlocks(self.window), self.spec.block_frames(self.spec.num_blocks(video.shape[2]))
        features: list[Tensor] = []  # list[Tensor]() would break the graph of a compiled step
        for block, part in enumerate(torch.split(video, lengths, 2)):
            own = None if added is None else added[:, block : block + 1]
            features.append(self._features_next(part, past, own))
            codes = self.quantizer.encode(features[-1])
            kept = torch.ones_like(codes, dtype=torch.bool) if keep is None else keep[:, block]
            self._remember(reader, codes, kept, past)
        return torch.stack(features, 1)

    def _features_next(self, video: Tensor, past: PastBlocks, added: Tensor | None = None) -> Tensor:
        """Frames of one block -> its features (B, L, W), after those of `past`. In a closed loop `_remember` follows,
        with the tokens that are kept."""
        x = self._encoder_input(video, added)[:, 0]
        place = self.encoder_positions.placement([0], self.pyramid, past.count)
        every = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        x = past.run(self.encoder, x, every, place, ragged=False, remember=self.past_tokens is None)
        return x[:, -self.spec.block_capacity :]

    def _remember(self, reader: PastTokens, codes: Tensor, keep: Tensor, past: PastBlocks) -> None:
        """Go on to the block after this one of codes (B, L), of which the encoder reads those kept in `keep` (B, L)."""
        x = reader(self.quantizer.lookup(codes).detach(), self.pyramid)
        past.run(self.encoder, x, keep, reader.placement(past.count, self.pyramid))

    def quantized(self, features: Tensor) -> BlockTokens:
        """Features (B, G, L, W) -> their nearest codes, all kept."""
        return all_kept(self.quantizer.encode(features), features)

    def embed(self, tokens: BlockTokens) -> Tensor:
        """Codes -> (B, G, L, W) decoder input. In positions of dropped tokens it is arbitrary and never read."""
        assert tokens.codes is not None
        codes = tokens.codes.clamp(0, self.quantizer.codebook_size - 1)
        return self.quantizer.project(self.quantizer.lookup(codes))

    def codebook(self) -> Tensor:
        """(codebook size, code_dim): the vector of every code."""
        return self.quantizer.codebook().detach()

    def render(self, embeddings: Tensor, keep: Tensor) -> Tensor:
        """Decoder input (B, G, L, W) and kept tokens (B, G, L) -> (B, 3, T, H, W), differentiable.

        Dropped tokens are masked, not removed: shapes do not depend on `keep`.
        """
        return self.render_with_states(embeddings, keep, None)[0]

    def render_with_states(
        self, embeddings: Tensor, keep: Tensor, layer: int | None, most_kept: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """`render`, and the states (B, G, rows, columns, W) of the pixel queries after decoder layer `layer`; None: the
        last.

        With `most_kept`, which `keep` does not exceed, of so many tokens alone: shapes depend on it.
        """
        lengths, blocks = (keep.shape[2],) * keep.shape[1], range(keep.shape[1])
        if most_kept is None:
            last, states = self._pixel_states(embeddings, keep, keep.flatten(1), lengths, blocks, layer)
        else:
            last, states = self._kept_pixel_states(embeddings, keep, most_kept, layer)
        grid = self.config.picture_grid(self.resolution)
        return self.frames(last, blocks), states.reshape(len(states), len(blocks), *grid, -1)

    def render_block(self, embeddings: Tensor, keep: Tensor, block: int) -> Tensor:
        """The frames (B, 3, T, H, W) of one block, as in `render`, from the latents up to it."""
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
        return self.frames(self._pixel_states(embeddings, keep, mask, lengths, blocks, None)[0], blocks)

    def _pixel_states(
        self,
        embeddings: Tensor,
        keep: Tensor,
        mask: Tensor | None,
        lengths: Sequence[int],
        blocks: Sequence[int],
        layer: int | None,
    ) -> tuple[Tensor, Tensor]:
        """States of the pixel queries after the last layer and after `layer` (None: the last), as in `_render`."""
        pooled, runs = self._pooled(embeddings, keep), list(enumerate(lengths))
        latents = torch.cat([embeddings[:, g, :n] for g, n in runs], 1)
        pooled = None if pooled is None else pooled[:, list(blocks)]
        x = self.decoder_input(latents, mask, runs, blocks, pooled)
        pixels = (x.shape[1] - latents.shape[1]) // len(blocks)
        attend = latents_then_pixels(lengths, pixels, blocks, mask, self.window)
        attend = self.decoder_positions.placement(runs, blocks, self.pyramid)(attend)
        tapped = None
        for index, decode in enumerate(self.decoder):
            x = decode(x, attend)
            tapped = x if index == layer else tapped
        pixels_of = slice(latents.shape[1], None)
        return x[:, pixels_of], (x if tapped is None else tapped)[:, pixels_of]

    def render_kept(self, embeddings: Tensor, keep: Tensor, count: int) -> Tensor:
        """`render` of nothing but `count` tokens, without gradients: the kept ones and at most `SPARE` others."""
        return self.frames(self._kept_pixel_states(embeddings, keep, count, None)[0], range(keep.shape[1]))

    def _kept_pixel_states(
        self, embeddings: Tensor, keep: Tensor, count: int, layer: int | None
    ) -> tuple[Tensor, Tensor]:
        """`_pixel_states` of `PackedTokens`."""
        clips, blocks, capacity = keep.shape
        runs = [(block, capacity) for block in range(blocks)]
        places, queries = self.decoder_positions(runs, range(blocks), self.pyramid)
        packed = PackedTokens(keep, count, len(queries) // blocks, self.window)
        latents = torch.where(packed.latents[:, None] < 0, 0, embeddings.flatten(0, 2)[packed.latents])
        latents = latents + places[packed.places[:count]]
        pixels = _pixel_queries(queries, embeddings, self._pooled(embeddings, keep))
        place = self.decoder_positions.placement(runs, range(blocks), self.pyramid, chosen=packed.places)
        x = torch.cat([latents[None], pixels.reshape(1, -1, pixels.shape[-1])], 1)
        tapped = None
        for index, decode in enumerate(self.decoder):
            if index == len(self.decoder) - 1:
                x = decode(x, place(packed.attend_pixels), slice(count, None))
            else:
                x = decode(x, place(packed.attend))
            tapped = x[:, -clips * len(queries) :] if index == layer else tapped
        last = x.view(clips, -1, x.shape[-1])
        return last, last if tapped is None else tapped.reshape(last.shape)

    def _has_kernel(self, device: torch.device) -> bool:
        """Whether the device has the kernel of packed tokens for the decoder in the precision of this moment."""
        network = self.config.decoder
        return has_kernel(device, dtype_of_products(self.decoder, device), network.width // network.heads)

    def packs_training(self, device: torch.device) -> bool:
        """Whether a step computes kept tokens alone after the encoder: where it is compiled for a GPU."""
        return torch.compiler.is_compiling() and torch.is_grad_enabled() and self._has_kernel(device)

    def _in_one_pass(self, keep: Tensor) -> bool:
        """Whether blocks are decoded together: with rotary geometry, whose videos have any length, so many of them."""
        clips, blocks, capacity = keep.shape
        return self.window is None or clips * blocks * (capacity + len(self.pyramid.patch_places)) <= MOST_TOKENS

    def _pooled(self, embeddings: Tensor, keep: Tensor) -> Tensor | None:
        """(B, G, P, W) start values of the pixel queries, with pooled queries; None without."""
        if self.memory is None:
            return None
        return pool_latents(embeddings, keep, self.pyramid.cells, self.memory, self.window)

    def _encoder_input(self, video: Tensor, added: Tensor | None) -> Tensor:
        """(B, 3, T, H, W) -> (B, G, S, W): patches, plus `added` (B, G, P, W), and latent queries of each block."""
        patches = self.patches(video).flatten(2, 3)
        x: Tensor = self.encoder_positions(patches if added is None else patches + added, self.pyramid)
        return x

    def decoder_input(
        self, latents: Tensor, mask: Tensor | None, runs: Runs, blocks: Sequence[int], pooled: Tensor | None
    ) -> Tensor:
        """Latents (B, N, W) of `runs`, kept where `mask` (B, N), and `pooled` (B, len(blocks), P, W) -> (B, S, W):
        latents and pixel queries."""
        places, queries = self.decoder_positions(runs, blocks, self.pyramid)
        if mask is not None:
            latents = torch.where(mask[..., None], latents, 0)
        return torch.cat([latents + places, _pixel_queries(queries, latents, pooled)], 1)

    def frames(self, x: Tensor, blocks: Sequence[int]) -> Tensor:
        """Pixel queries of `blocks` after the last layer (B, len(blocks) * P, W) -> their frames (B, 3, T, H, W)."""
        patches = product(self.output, self.output_norm(x)).to(x.dtype)
        grid = self.config.picture_grid(self.resolution)
        lengths = [self.spec.frames_of(block) for block in blocks]
        return unpatchify(patches.view(len(x), len(blocks), *grid, -1), self.config.patch, lengths)

    def check(self, tokens: BlockTokens) -> int:
        """Number of kept tokens; ValueError for tokens that were not made by this tokenizer."""
        blocks, capacity = tokens.keep.shape[1:]
        if tokens.codes is None:
            raise ValueError("these tokens have no codes, and AdapTok decodes codes: encode the video with AdapTok")
        spec = self.spec
        if capacity != spec.block_capacity or not 1 <= blocks <= (spec.max_blocks or blocks):
            most = "any number of" if spec.max_blocks is None else f"1 to {spec.max_blocks}"
            raise ValueError(
                f"tokens of {blocks} blocks of {capacity} do not fit this tokenizer: "
                f"it decodes {most} blocks of {spec.block_capacity}"
            )
        foreign = tokens.keep & ((tokens.codes < 0) | (tokens.codes >= self.quantizer.codebook_size))
        kept, wrong = torch.stack([tokens.keep.sum(), foreign.sum()]).tolist()  # the one wait for the device
        if wrong:
            codes = tokens.codes[tokens.keep]
            raise ValueError(
                f"codes {int(codes.min())} to {int(codes.max())} do not fit this tokenizer's codebook of "
                f"{self.quantizer.codebook_size}: they were made by another tokenizer"
            )
        return int(kept)


def all_kept(codes: Tensor, features: Tensor) -> BlockTokens:
    """Codes (B, G, L) and the features (B, G, L, W) that they are of."""
    return BlockTokens(keep=torch.ones_like(codes, dtype=torch.bool), codes=codes, features=features)


def _pixel_queries(queries: Tensor, latents: Tensor, pooled: Tensor | None) -> Tensor:
    """(Q, W) vectors and `pooled` (B, G, P, W) -> (B, Q, W), in the precision of `latents` (B, ...)."""
    pixels = queries.expand(len(latents), -1, -1).to(latents.dtype)
    return pixels if pooled is None else pixels + pooled.flatten(1, 2)


def _pyramid(config: AdapTokConfig) -> Pyramid:
    """At the trained size."""
    cells = pyramid_cells if config.window is None else overlapping_cells
    rows, columns = config.grid[1:]
    return Pyramid(rows, columns, cells(rows, columns, config.block_capacity))
