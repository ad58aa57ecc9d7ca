"""`genvid encode`, `decode` and `reconstruct`: videos through a tokenizer, at a token budget."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from genvid.allocation import Allocator, Budget
from genvid.api import Generator, Tokenizer, load
from genvid.ar.coding import ARCodes
from genvid.ar.row_model import RowModel
from genvid.checkpoint import fingerprint, load_model, model_name, resolve
from genvid.data.audio import AudioError, audio_file
from genvid.data.clips import read_clips, to_uint8
from genvid.data.video import VideoInfo, frame_rate, probe, video_sha256, video_writer
from genvid.device import device
from genvid.files import readable
from genvid.generation.pipeline import check_match
from genvid.precision import Precision
from genvid.provenance import check_made_from
from genvid.tokenizer.budgets import token_budget
from genvid.tokenizer.precision import set_precision
from genvid.tokenizer.segments import TokenRate, segment_coder
from genvid.tokenizer.streams import fitted, streams, video_decoder, video_encoder
from genvid.tokens import BlockTokens, VideoTokenizer
from genvid.tokens.blocks import ContinuousTokenizer
from genvid.tokens.code_counts import CodeCounts
from genvid.tokens.entropy import CodeModel, UniformCodes
from genvid.tokens.file import TokenFile, read_token_file, resume_token_file
from genvid.tokens.header import Header, TokenFileError

Loaded = TypeVar("Loaded", Tokenizer, Generator)
DEFAULT_TOKENIZER = "genvid-tiny"
"""Installed with genvid."""


@dataclass(frozen=True)
class BudgetOptions:
    """Tokens that are kept of a video; by default all."""

    tokens: int | None = None
    """AdapTok: mean tokens of a clip of full length (needs --scorer). LIT: tokens of the complete video."""
    scorer: str | None = None
    """Scorer of the AdapTok tokenizer: model folder or Hub id."""
    published: bool = False
    """Share --tokens among the blocks of a clip as the published evaluation of AdapTok does."""

    def __bool__(self) -> bool:
        return self != BudgetOptions()

    def build(self, tokenizer: VideoTokenizer) -> Budget | None:
        """The budget, checked against the tokenizer; None: all tokens are kept."""
        if not self:
            return None
        return token_budget(tokenizer, self.tokens, self.scorer, published=self.published)


@dataclass(frozen=True)
class EncodeOptions:
    """Options of `encode`."""

    video: Path
    """Video file."""
    output: Path
    """New token file (.tok)."""
    _: KW_ONLY
    tokenizer: str = DEFAULT_TOKENIZER
    """Model folder, Hub id or name of a model that is installed with genvid."""
    scorer: str | None = None
    """Scorer of the AdapTok tokenizer: model folder or Hub id (default: that in the tokenizer's folder, if any)."""
    tokens_per_second: float | None = None
    """Most tokens of a second of video, never exceeded (default: all are kept)."""
    code_model: str | None = None
    """Autoregressive model for the entropy coding of the codes: folder or Hub id (default: the counts in the
    tokenizer's folder, if any)."""
    refine: int = 0
    """Gradient steps that refine the tokens: nearer to the video, slower to encode (5 to 20 are useful)."""
    precision: Precision = "fp32"
    """Precision of matrix products. bf16 is about three times as fast on a GPU and picks a few other codes."""

    def __post_init__(self) -> None:
        if self.tokens_per_second is not None and not 0 < self.tokens_per_second < math.inf:
            raise ValueError(f"--tokens-per-second is above 0, got {self.tokens_per_second:g}")
        if self.scorer is not None and self.tokens_per_second is None:
            raise ValueError("--scorer shares out a budget: give --tokens-per-second, or leave it out")


@dataclass(frozen=True)
class DecodeOptions:
    """Options of `decode`."""

    tokens: Path
    """Token file (.tok)."""
    output: Path
    """New video (.mp4)."""
    _: KW_ONLY
    tokenizer: str = DEFAULT_TOKENIZER
    """The tokenizer that encoded the video."""
    code_model: str | None = None
    """The --code-model of the encoding, if there was one: folder or Hub id."""
    precision: Precision = "fp32"
    """Precision of matrix products. It may differ from that of the encoding."""


@dataclass(frozen=True)
class ReconstructOptions:
    """Options of `reconstruct`."""

    video: Path
    """Video file."""
    output: Path
    """New video (.mp4): the original on the left, the reconstruction on the right."""
    _: KW_ONLY
    tokenizer: str
    """Model folder or Hub id."""
    budget: BudgetOptions = field(default_factory=BudgetOptions)


def encode(options: EncodeOptions) -> None:
    """Encode a video into a token file.

    Until it is complete the file is called OUTPUT.unfinished; the same command goes on with it after an interruption.
    """
    output, info = new_output(options.output, ".tok"), probe(options.video)
    tokenizer = load_as(Tokenizer, options.tokenizer, options.scorer, options.precision).fitted(
        (info.height, info.width)
    )
    model = _code_model(tokenizer.model, options.tokenizer, options.code_model)
    coder = segment_coder(tokenizer.model, tokenizer.predictor, None if model is None else model.most_blocks)
    spec, limit = coder.spec, None
    if options.tokens_per_second is not None:
        limit = TokenRate(Fraction(options.tokens_per_second), frame_rate(info.fps))
    segments = spec.clips(info.frames)
    if model is not None:
        kept = 0 if limit else spec.block_capacity  # under a limit lengths depend on the content
        _check_segments(model, max(part.blocks for part in segments), kept)
    encode_next = coder.encoder(limit, [part.frames + part.filling for part in segments], options.refine)
    header = _header(options, tokenizer, info, None if model is None else model.record)
    with resume_token_file(output, header, model) as writer:
        if not writer.frames:
            writer.append_audio(_audio(options.video))
        end, videos = 0, read_clips(options.video, info, spec)
        for segment, video in tqdm(zip(segments, videos, strict=True), total=len(segments), unit="segment"):
            end += segment.frames
            if end > writer.frames or not coder.independent:
                tokens = encode_next(video[None].to(device())).to("cpu")
            if end > writer.frames:
                writer.append(tokens, segment.frames)
    _print_sizes(output, readable(options.video))


@torch.no_grad()
def decode(options: DecodeOptions) -> None:
    """Decode a token file into a video. Of a file that was cut, everything before the cut is decoded."""
    output = new_output(options.output, ".mp4")
    tokenizer = open_tokenizer(options.tokenizer, options.precision)
    with read_token_file(options.tokens) as file:
        tokenizer = fitted(tokenizer, (file.header.height, file.header.width))
        file.check_tokenizer(tokenizer.spec, fingerprint(resolve(options.tokenizer)))
        model = _code_model_of(file, tokenizer, options)
        frames, _ = file.whole()
        if not frames:
            raise TokenFileError(f"{options.tokens} was cut before the end of its first segment: copy it again")
        if frames < file.header.frames:
            print(f"{readable(options.tokens)} was cut: it holds {frames} of {file.header.frames} frames")
        _print_restart(output)
        with ExitStack() as opened:
            audio = opened.enter_context(_copied_audio(file))
            append = opened.enter_context(video_writer(output, file.header.fps, audio=audio))
            bar = opened.enter_context(tqdm(total=frames, unit="frame"))
            decode_next = video_decoder(tokenizer)
            for segment, tokens in file.tokens(model):
                append(_pixels(decode_next, tokens)[:, : segment.frames])
                bar.update(segment.frames)


@torch.no_grad()
def reconstruct(options: ReconstructOptions) -> None:
    """Write a video beside its reconstruction."""
    output = new_output(options.output, ".mp4")
    path, found = options.video, probe(options.video)
    tokenizer = fitted(open_tokenizer(options.tokenizer), (found.height, found.width))
    spec, encode_next, decode_next = tokenizer.spec, video_encoder(tokenizer), video_decoder(tokenizer)
    blocks = [clip.blocks for clip in spec.clips(found.frames)]
    budget = options.budget.build(tokenizer)
    allocators: list[tuple[int, Allocator | None]] = [(1, None)] * len(blocks)
    if budget is not None:
        allocators = [*budget.video_allocators(blocks)]
    if spec.max_blocks is None and len(blocks) > 1 and not streams(tokenizer):
        parts = f"{len(blocks)} clips of at most {max(blocks)}, each by itself"
        print(f"{readable(path)}: {sum(blocks)} blocks, coded in {parts}")
    _print_restart(output)
    clips, left, number = read_clips(path, found, spec), found.frames, 0
    with video_writer(output, found.fps) as append, tqdm(total=len(blocks), desc="coding", unit="clip") as bar:
        for size, allocator in allocators:
            group = list(islice(clips, size))
            tokens = _cut([_encode_clip(encode_next, clip, allocator) for clip in group], allocator)
            for row, clip in enumerate(group):
                both = torch.cat([to_uint8(clip), _pixels(decode_next, tokens[row : row + 1])], 3)[:, :left]
                append(both)
                left -= both.shape[1]
                bar.write(f"clip {number}: {_described(tokens[row : row + 1])}", file=sys.stdout)
                number += 1
                bar.update()


def new_output(output: Path, suffix: str) -> Path:
    """The output, checked: a file of this suffix that does not exist, or without a suffix an empty or absent folder."""
    if output.suffix != suffix:
        wanted = f"a {suffix} file" if suffix else "a folder"
        raise ValueError(f"the output must be {wanted}, got {output}")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"cannot write {output}: {above} is not a folder that can be written to")
    if output.exists() and (suffix or not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists already; choose another output or remove it first")
    return output


def open_tokenizer(source: str, precision: Precision = "fp32") -> VideoTokenizer:
    """Load a tokenizer onto the device of this process."""
    tokenizer = load_model(source, VideoTokenizer)
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer.to(device())
    set_precision(tokenizer, precision)
    return tokenizer


def load_as(kind: type[Loaded], source: str, scorer: str | None = None, precision: Precision = "fp32") -> Loaded:
    """`genvid.load` of a tokenizer or of an autoregressive model; ValueError for the other."""
    loaded = load(source, scorer=scorer, precision=precision)
    if not isinstance(loaded, kind):
        raise ValueError(f"{source} holds no {kind.__name__.lower()} but a {type(loaded).__name__.lower()}")
    return loaded


def _header(options: EncodeOptions, tokenizer: Tokenizer, info: VideoInfo, codes: Mapping[str, str] | None) -> Header:
    """The header of the token file."""
    made_from: dict[str, object] = {"video": video_sha256(options.video)[:16]}
    if options.tokens_per_second is not None:
        made_from["tokens per second"] = float(options.tokens_per_second)
        if tokenizer.predictor is not None:
            made_from["scorer"] = fingerprint(resolve(options.scorer or resolve(options.tokenizer) / "scorer"))
    if options.refine:
        made_from["refine"] = options.refine
    if options.precision != "fp32":
        made_from["precision"] = options.precision
    header = Header.of(
        tokenizer.model.spec,
        info.frames,
        frame_rate(info.fps),
        tokenizer=(model_name(options.tokenizer), fingerprint(resolve(options.tokenizer))),
        codes=codes or {},
        latents=tokenizer.model.latent_steps if isinstance(tokenizer.model, ContinuousTokenizer) else None,
    )
    return replace(header, made_from=made_from)


def _code_model(tokenizer: VideoTokenizer, source: str, model: str | None) -> CodeModel | None:
    """The probabilities by which codes are coded: those of an autoregressive model, or of the counts in the tokenizer's
    folder, or equal ones. None for latents."""
    if tokenizer.spec.codebook_size is None:
        if model is not None:
            raise ValueError(f"{source} is a continuous tokenizer, which has no codes: leave out --code-model")
        return None
    if model is None:
        return CodeCounts.load(resolve(source), tokenizer.spec) or UniformCodes(tokenizer.spec)
    loaded = load_model(model, RowModel)
    check_match(loaded, tokenizer)
    return ARCodes(loaded.to(device()), fingerprint(resolve(model)))


def _check_segments(model: CodeModel, blocks: int, tokens: int) -> None:
    """ValueError for segments of more blocks, or blocks of more tokens, than a model codes."""
    limits = (blocks, model.most_blocks, "blocks together"), (tokens, model.most_tokens, "tokens of a block")
    for needed, most, what in limits:
        if most is not None and needed > most:
            raise ValueError(
                f"--code-model codes at most {most} {what}, and this video needs {needed}: give another model"
            )


def _code_model_of(file: TokenFile, tokenizer: VideoTokenizer, options: DecodeOptions) -> CodeModel | None:
    """The code model of a file; ValueError where it is not at hand."""
    kind = file.header.codes.get("type")
    if options.code_model is not None and kind != "autoregressive":
        raise ValueError(f"{file.path} was coded without an autoregressive model: leave out --code-model")
    if kind == "autoregressive" and options.code_model is None:
        raise ValueError(f"{file.path} was coded by an autoregressive model: give it as --code-model")
    if kind == "uniform":
        return UniformCodes(tokenizer.spec)
    model = _code_model(tokenizer, options.tokenizer, options.code_model)
    if model is None:
        return None
    way_out = "decode with the code model that it was encoded with"
    check_made_from(file.path, {"code model": file.header.codes}, {"code model": model.record}, way_out)
    return model


def _audio(video: Path) -> Iterator[bytes]:
    """The audio of a video as the pieces of an mp4 file."""
    try:
        with audio_file(video) as file:
            if file is not None:
                with file.open("rb") as stream:
                    yield from iter(lambda: stream.read(2**20), b"")
    except AudioError as error:
        print(f"{readable(video)}: {error} and is left out")


@contextmanager
def _copied_audio(file: TokenFile) -> Iterator[Path | None]:
    """A temporary file of the audio of a token file; None where it has none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audio.mp4"
        with path.open("wb") as stream:
            for piece in file.audio():
                stream.write(piece)
        yield path if path.stat().st_size else None


def _print_sizes(file: Path, name: str) -> None:
    """Size of a token file beside that of plain codes."""
    with read_token_file(file) as opened:
        header, count = opened.header, opened.count()
    rate = 8 * count.payload_bytes * header.fps / header.frames / 1000
    print(f"{name}: {header.frames} frames, {count.blocks} blocks, {count.tokens} tokens")
    plain = f"{2 * header.channels * count.tokens} as 16-bit numbers"
    if header.codebook_size is not None:
        plain = f"{math.ceil(count.tokens * math.log2(header.codebook_size) / 8)} bytes packed, {plain}"
    size = f"{file.stat().st_size} bytes, of which tokens {count.payload_bytes} ({rate:.2f} kbit/s)"
    print(f"{readable(file)}: {size}; {'the codes' if header.latents is None else 'the latents'} alone take {plain}")


def _encode_clip(
    encode_next: Callable[[Tensor], BlockTokens], clip: Tensor, allocator: Allocator | None
) -> BlockTokens:
    """(3, T, H, W) on the CPU -> its tokens on the CPU, with the features that an allocator reads."""
    tokens = encode_next(clip[None].to(device()))
    return (tokens if allocator else replace(tokens, features=None)).to("cpu")


def _cut(clips: list[BlockTokens], allocator: Allocator | None) -> BlockTokens:
    """Join clips that share a budget, cut them and drop their features."""
    tokens = BlockTokens.concatenate(clips)
    return tokens if allocator is None else replace(allocator(tokens.to(device())).to("cpu"), features=None)


def _pixels(decode_next: Callable[[BlockTokens], Tensor], tokens: BlockTokens) -> Tensor:
    """Tokens of a clip -> (3, T, H, W) uint8."""
    return to_uint8(decode_next(tokens.to(device()))[0]).cpu()


def _described(clip: BlockTokens) -> str:
    return f"{int(clip.keep.sum())} tokens in blocks of {clip.lengths[0].tolist()}"


def _print_restart(output: Path) -> None:
    print(f"{readable(output)} is written in one piece: after an interruption the same command starts again")
