"""Frozen codecs: continuous video autoencoders behind one small contract.

A codec turns 1 + n * `chunk_frames` frames into latent frames: the first covers one frame, every later one
`temporal_stride` frames. Latents are the codec's own numbers, unscaled, so kept ones decode bit for bit as with the
codec alone.

Long clips are coded in independent windows of `codec_window` frames (as NVIDIA's tokenizers are used), or with the
codec's own temporal caches (Wan, CogVideoX).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from genvid.checkpoint import weights_hash
from genvid.config import Choice
from genvid.tokenizer.lit.codecs.tiling import in_tiles
from genvid.tokens import TokenizerSpec
from genvid.tokens.masks import mask_bits


@dataclass(frozen=True)
class Geometry:
    """Strides of a codec."""

    channels: int
    """Of a latent."""
    temporal_stride: int
    """Frames of every latent frame but the first."""
    spatial_stride: int
    """Pixels along each side of a latent position."""
    chunk_frames: int
    """A clip has 1 + n * chunk_frames frames; a multiple of `temporal_stride`."""
    causal: bool
    """No latent frame depends on later frames, and no decoded frame on later latents."""


@dataclass(frozen=True, kw_only=True)
class CodecSpec(TokenizerSpec):
    """A block is a latent frame; the first of a clip (of each window) covers a single frame."""

    columns: int
    """Of latents in a frame."""
    chunk_frames: int
    codec_window: int | None
    """Frames that are coded independently of others; None: any number."""

    def side_bits(self, keep: Tensor) -> Tensor:
        """The coded mask (`mask_bits`)."""
        return mask_bits(keep, self.columns)

    def num_blocks(self, frames: int) -> int:
        windows, rest = divmod(frames, self.codec_window) if self.codec_window else (0, frames)
        if frames < 1 or (rest and (rest - 1) % self.chunk_frames):
            raise ValueError(f"a clip of {frames} frames does not fit this codec; use {self.lengths()}")
        blocks = windows * self.window_blocks if self.codec_window else 0
        return blocks + self.covering(rest)

    def filled(self, frames: int) -> int:
        windows, rest = divmod(frames, self.codec_window) if self.codec_window else (0, frames)
        last = 1 + -(-(rest - 1) // self.chunk_frames) * self.chunk_frames if rest else 0
        return windows * (self.codec_window or 0) + last

    def longest_clip(self, blocks: int) -> int:
        """Complete windows, at least one; without windows the first block is a single frame."""
        if self.codec_window:
            return max(1, blocks // self.window_blocks) * self.codec_window
        return 1 + (blocks - 1) * self.frames_per_block // self.chunk_frames * self.chunk_frames

    def frames_of(self, block: int) -> int:
        """1 for the first block of the clip, or of each window."""
        return super().frames_of(block % self.window_blocks if self.codec_window else block)

    @property
    def window_blocks(self) -> int:
        """Blocks of a complete window."""
        assert self.codec_window is not None
        return self.covering(self.codec_window)

    def lengths(self) -> str:
        """Clip lengths of the codec, for messages."""
        step, window = self.chunk_frames, self.codec_window
        short = f"1, {1 + step}, {1 + 2 * step}, ... frames (1 more than a multiple of {step})"
        return f"{short}, or windows of {window} frames followed by such a length" if window else short


class CodecStream(ABC):
    """A clip in chunks, with the same numbers as in one call. Encoder and decoder have separate states."""

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """The next frames (B, 3, T, H, W) -> their latents (B, C, G, h, w)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The next latents (B, C, G, h, w) -> their frames (B, 3, T, H, W)."""


class Codec(nn.Module, ABC):
    """A frozen autoencoder. `name` is for messages."""

    def __init__(self, name: str, geometry: Geometry, window: int | None) -> None:
        super().__init__()
        if window is not None and (window <= 1 or (window - 1) % geometry.chunk_frames):
            raise ValueError(
                f"{name}: a window has 1 more than a multiple of {geometry.chunk_frames} frames, got {window}"
            )
        self.name, self.geometry, self.codec_window = name, geometry, window
        self.tile: int | None = None

    def spec(self, resolution: tuple[int, int]) -> CodecSpec:
        """The spec for frames of (height, width); ValueError for sizes that are no multiple of the stride."""
        height, width = resolution
        space = self.geometry.spatial_stride
        if height < space or width < space or height % space or width % space:
            raise ValueError(
                f"{self.name} takes heights and widths that are multiples of {space}, got {height}x{width}"
            )
        return CodecSpec(
            frames_per_block=self.geometry.temporal_stride,
            resolution=resolution,
            block_capacity=(height // space) * (width // space),
            token_dim=self.geometry.channels,
            single_first_frame=True,
            columns=width // space,
            chunk_frames=self.geometry.chunk_frames,
            codec_window=self.codec_window,
        )

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> latents (B, C, G, h, w), window by window."""
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"a video is (B, 3, T, H, W), got {tuple(video.shape)}")
        self.spec((video.shape[3], video.shape[4])).num_blocks(video.shape[2])
        scale = Fraction(1, self.geometry.spatial_stride)
        return self._code(self._encode, video, self.codec_window or video.shape[2], self.tile, scale)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, G, h, w) -> (B, 3, T, H, W), about [-1, 1]. Gradients flow to the latents."""
        channels, space = self.geometry.channels, self.geometry.spatial_stride
        if latents.ndim != 5 or latents.shape[1] != channels:
            raise ValueError(f"{self.name} decodes latents (B, {channels}, G, h, w), got {tuple(latents.shape)}")
        blocks = latents.shape[2]
        if self.codec_window:
            blocks = self.spec((latents.shape[3] * space, latents.shape[4] * space)).window_blocks
        tile = None if self.tile is None else self.tile // space
        return self._code(self._decode, latents, blocks, tile, Fraction(space))

    def _code(
        self, apply: Callable[[Tensor], Tensor], x: Tensor, window: int, tile: int | None, scale: Fraction
    ) -> Tensor:
        """`apply` to every window of (B, C, T, H, W), of every tile of `tile` positions where there are tiles."""

        def in_windows(part: Tensor) -> Tensor:
            made = [apply(frames) for frames in torch.split(part, window, 2)]
            return made[0] if len(made) == 1 else torch.cat(made, 2)

        return in_windows(x) if tile is None else in_tiles(in_windows, x, tile, scale)

    def stream(self) -> CodecStream:
        """Start a stream; ValueError for codecs that cannot stream."""
        if not self.geometry.causal:
            raise ValueError(f"{self.name} is not causal: a frame needs the frames after it, so it cannot stream")
        if self.tile is not None and self.codec_window is None:
            raise ValueError(
                f"{self.name}: a stream with the codec's own caches is not tiled: set codec.codec_window to a number "
                "of frames, or codec.codec_tile to null"
            )
        return self._stream()

    def set_tile(self, tile: int | None) -> None:
        """Code frames in tiles of `tile` x `tile` pixels (genvid.tokenizer.lit.codecs.tiling); None: complete frames.

        Memory is that of one tile of one clip; reconstructions differ near the seams.
        """
        unit = 4 * self.geometry.spatial_stride
        if tile is not None and (tile < 1 or tile % unit):
            raise ValueError(f"{self.name}: a tile's side is a multiple of {unit} pixels, got {tile}")
        self.tile = tile

    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """(C,) mean and standard deviation of the latents, if they were published with the weights."""
        return None

    def fingerprint(self) -> str:
        """Short hash of its weights."""
        return weights_hash(self)[:16]

    def use_compiler(self) -> None:
        """Compile the network, in codecs that support it; nothing by default."""

    def _stream(self) -> CodecStream:
        """In windows; overridden by codecs with temporal caches."""
        if self.codec_window is None:
            raise ValueError(
                f"{self.name} has no state between chunks: to stream, set codec.codec_window to "
                f"1 + n * {self.geometry.chunk_frames} frames"
            )
        return WindowStream(self)

    @abstractmethod
    def _encode(self, video: Tensor) -> Tensor:
        """One window."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """One window."""


class WindowStream(CodecStream):
    """Chunks of complete, independent windows; the last chunk may end with a shorter one."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._ended = {"frames": False, "latents": False}

    def encode(self, video: Tensor) -> Tensor:
        assert self.codec.codec_window is not None
        return self._take("frames", video, self.codec.codec_window, self.codec.encode)

    def decode(self, latents: Tensor) -> Tensor:
        assert self.codec.codec_window is not None
        window = 1 + (self.codec.codec_window - 1) // self.codec.geometry.temporal_stride
        return self._take("latents", latents, window, self.codec.decode)

    def _take(self, what: str, chunk: Tensor, window: int, through: Callable[[Tensor], Tensor]) -> Tensor:
        if self._ended[what]:
            raise ValueError(f"a stream in windows of {window} {what} has ended with a shorter chunk: start another")
        made = through(chunk)
        self._ended[what] = chunk.shape[2] % window != 0
        return made


@dataclass(frozen=True)
class CodecConfig(Choice):  # type: ignore[misc]
    """A codec and its source; `type:` in YAML chooses the kind."""

    def load(self) -> Codec:
        """The codec, frozen and in eval mode; ValueError when it cannot be loaded."""
        raise NotImplementedError
