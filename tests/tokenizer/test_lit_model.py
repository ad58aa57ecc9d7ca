"""LIT as a tokenizer and as a stream."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_codecs import CLASSES, cosmos, drifting, make_lit, save_codec

import genvid
from genvid.checkpoint import load_model
from genvid.provenance import Origin, ProvenanceError
from genvid.tokenizer.lit.budget import BudgetAllocator, PriceAllocator
from genvid.tokenizer.lit.codecs.diffusers_codec import DiffusersCodecConfig
from genvid.tokenizer.lit.comparators import ElasticTokRule, InfoTokRule, cell_errors
from genvid.tokenizer.lit.inpainter import Tiles
from genvid.tokenizer.lit.metric import by_metric
from genvid.tokenizer.lit.model import LIT, fill_by_copying
from genvid.tokenizer.lit.redundancy import RedundancyAllocator, RedundancyConfig, distances
from genvid.tokenizer.lit.stream import StreamDecoder, StreamEncoder
from genvid.tokenizer.lit.task import LITObjective, LITTask
from genvid.tokenizer.precision import set_precision
from genvid.tokens import BlockTokens, VideoTokenizer
from genvid.tokens.blocks import MeanTokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lit")


@pytest.fixture(scope="module")
def lit(folder: Path) -> LIT:
    return make_lit(cosmos(folder / "codec", window=9))


def thinned(lit: LIT, video: torch.Tensor, share: float = 0.4, *, means: bool = True) -> BlockTokens:
    tokens = lit.encode(video)
    return BudgetAllocator(round(share * tokens.keep[0].numel()), lit.metric, means=means)(tokens)


def test_it_is_a_tokenizer(lit: LIT) -> None:
    assert isinstance(lit, VideoTokenizer)
    tokens = lit.encode(drifting(2, 18))
    assert tokens.keep.shape == (2, 6, 16)
    assert tokens.keep.all()
    assert lit.decode(tokens).shape == (2, 3, 18, 32, 32)
    assert lit.spec.codebook_size is None


def test_all_kept_is_the_codec_bit_for_bit(lit: LIT) -> None:
    video = drifting(2, 18)
    tokens = RedundancyAllocator(RedundancyConfig(0), lit.metric)(lit.encode(video))
    assert torch.equal(lit.decode(tokens), lit.codec.decode(lit.codec.encode(video)))


def test_measured_latents_return_as_they_were(folder: Path) -> None:
    lit, video = make_lit(cosmos(folder / "codec", window=9)), drifting(2, 18)
    lit.measure(video)
    latents = lit.encode(video).latents
    assert latents is not None
    normalised = lit.normalise(latents)
    torch.testing.assert_close(lit.denormalise(normalised), latents)
    assert normalised.mean((0, 1, 2)).abs().max() < 0.1 * normalised.std()
    measured = by_metric(latents, lit.metric)
    torch.testing.assert_close(distances(normalised, normalised[:, :1]), distances(measured, measured[:, :1]))


def test_an_untrained_inpainter_is_copy_forward(folder: Path) -> None:
    lit = make_lit(cosmos(folder / "codec", window=9), trained=False)
    tokens = thinned(lit, drifting(2, 18))
    torch.testing.assert_close(lit.fill(tokens), fill_by_copying(tokens))


@pytest.mark.parametrize("means", [False, True])
def test_kept_latents_pass_unchanged_unless_they_are_means_and_dropped_ones_are_never_read(
    lit: LIT, means: bool
) -> None:
    tokens = thinned(lit, drifting(2, 18), means=means)
    assert tokens.latents is not None
    filled = lit.fill(tokens)
    assert torch.equal(filled[tokens.keep], tokens.latents[tokens.keep]) != means
    assert not torch.allclose(filled, fill_by_copying(tokens))
    spoiled = replace(tokens, latents=torch.where(tokens.keep[..., None], tokens.latents, torch.nan))
    assert torch.equal(lit.decode(spoiled), lit.decode(tokens))


def test_a_causal_inpainter_does_not_look_ahead_and_the_other_does(folder: Path, lit: LIT) -> None:
    both = make_lit(cosmos(folder / "codec", window=9), causal=False)
    video = drifting(1, 9)
    tokens = thinned(lit, video, 0.6)
    assert tokens.latents is not None
    latents = tokens.latents.clone()
    latents[:, 2] += 1
    changed = replace(tokens, latents=latents)
    assert torch.equal(lit.fill(tokens)[:, :2], lit.fill(changed)[:, :2])
    assert not torch.equal(both.fill(tokens)[:, :2], both.fill(changed)[:, :2])


def test_context_is_bounded(lit: LIT) -> None:
    tokens = lit.encode(drifting(1, 9 * 6))
    assert tokens.latents is not None
    keep = torch.ones_like(tokens.keep)
    keep[:, -1] = False
    latents = tokens.latents.clone()
    # Two layers of three frames reach four frames back, and the embedding one more.
    latents[:, : keep.shape[1] - 6] += 1
    filled, changed = (lit.fill(BlockTokens(keep, latents=x))[:, -1] for x in (tokens.latents, latents))
    torch.testing.assert_close(filled, changed)


@pytest.mark.parametrize(
    ("codec", "window", "chunks"),
    [
        ("AutoencoderKLCosmos", 9, [9, 18, 9]),
        ("AutoencoderKLCosmos", 25, [25] * 12),
        ("AutoencoderKLWan", None, [5, 12, 16]),
        ("AutoencoderKLCogVideoX", None, [9, 24, 8]),
    ],
)
def test_a_stream_equals_one_call(codec: str, window: int | None, chunks: list[int], folder: Path) -> None:
    config = DiffusersCodecConfig(str(save_codec(codec, folder / codec)), codec_window=window)
    lit = make_lit(config)
    video = drifting(2, sum(chunks))
    tokens = lit.encode(video)
    assert tokens.latents is not None
    measured = by_metric(tokens.latents, lit.metric)
    threshold = float(distances(measured[:, 1:], measured[:, :-1]).mean())
    allocator = RedundancyAllocator(RedundancyConfig(threshold), lit.metric)
    kept = allocator(tokens)
    assert 0.1 < kept.keep.double().mean() < 0.9
    encoder, decoder, parts, frames = StreamEncoder(lit, allocator), StreamDecoder(lit), [], []
    for chunk in video.split(chunks, 2):
        parts.append(encoder(chunk))
        frames.append(decoder(parts[-1]))
    assert torch.equal(torch.cat([part.keep for part in parts], 1), kept.keep)
    one_call = lit.decode(kept)
    # An untrained inpainter fills in numbers that some codecs decode to hundreds: what differs is their rounding.
    torch.testing.assert_close(torch.cat(frames, 2), one_call, atol=1e-5 * max(10, float(one_call.abs().max())), rtol=0)


@pytest.mark.parametrize("means", [True, False])
@pytest.mark.parametrize("priced", [True, False])
def test_a_stream_of_paths_equals_one_call_in_periods(lit: LIT, priced: bool, means: bool) -> None:
    """The sender looks ahead in every chunk; the receiver is causal."""

    def allocator(period: int | None) -> PriceAllocator | BudgetAllocator:
        if priced:
            return PriceAllocator(0.02, lit.metric, period=period, means=means)
        return BudgetAllocator(24, lit.metric, period=period, means=means)

    video = drifting(2, 27)
    tokens = allocator(3)(lit.encode(video))
    encoder, decoder = StreamEncoder(lit, allocator(None)), StreamDecoder(lit)
    parts = [encoder(chunk) for chunk in video.split(9, 2)]
    assert all(isinstance(part, MeanTokens) == means for part in parts)
    assert torch.equal(torch.cat([part.keep for part in parts], 1), tokens.keep)
    assert 16 < tokens.keep[0].sum() < tokens.keep[0].numel()
    if not priced:
        assert tokens.keep.unflatten(1, (3, 3)).sum((2, 3)).eq(24).all()
    frames = torch.cat([decoder(part) for part in parts], 2)
    torch.testing.assert_close(frames, lit.decode(tokens), atol=1e-4, rtol=1e-4)


def test_means_that_are_all_kept_are_corrected_in_a_stream_and_in_one_call(lit: LIT) -> None:
    video = drifting(2, 18)
    tokens = PriceAllocator(0, lit.metric, period=3)(lit.encode(video + 0.1 * torch.randn_like(video)))
    assert tokens.keep.all()
    assert isinstance(tokens, MeanTokens)
    assert tokens.latents is not None
    decoder = StreamDecoder(lit)
    parts = (MeanTokens(tokens.keep[:, i : i + 3], latents=tokens.latents[:, i : i + 3]) for i in (0, 3))
    frames = torch.cat([decoder(part) for part in parts], 2)
    torch.testing.assert_close(frames, lit.decode(tokens), atol=1e-4, rtol=1e-4)


def test_a_stream_refuses_frames_of_another_size_and_goes_on_after_a_refused_chunk(lit: LIT) -> None:
    encoder = StreamEncoder(lit, PriceAllocator(0.1, lit.metric))
    height, width = lit.resolution
    with pytest.raises(ValueError, match=f"this tokenizer takes {height}x{width} frames, got {height}x{2 * width}"):
        encoder(torch.zeros(1, 3, 9, height, 2 * width))
    with pytest.raises(ValueError, match="8 frames does not fit this codec"):
        encoder(drifting(1, 8))
    assert encoder(drifting(1, 9)).keep.shape[1] == 3


@pytest.mark.parametrize("given", [1, 2])
def test_a_stream_refuses_another_number_of_videos(lit: LIT, given: int) -> None:
    """References of one video would be those of both."""
    video, other = drifting(2, 18), slice(3 - given)
    encoder, decoder = StreamEncoder(lit, RedundancyAllocator(RedundancyConfig(0.6), lit.metric)), StreamDecoder(lit)
    decoder(encoder(video[:given, :, :9]))
    with pytest.raises(ValueError, match=f"this stream is of {given} videos side by side, got {3 - given}"):
        encoder(video[other, :, 9:])
    with pytest.raises(ValueError, match=f"this stream is of {given} videos side by side, got {3 - given}"):
        decoder(lit.encode(video[other, :, 9:]))


def test_a_receiver_goes_on_after_a_refused_chunk(folder: Path) -> None:
    name = "AutoencoderKLCogVideoX"
    lit = make_lit(DiffusersCodecConfig(str(save_codec(name, folder / name))))
    encoder = StreamEncoder(lit, RedundancyAllocator(RedundancyConfig(0.6), lit.metric))
    first, second = (encoder(chunk) for chunk in drifting(1, 17).split([9, 8], 2))
    assert not second.keep.all()
    plain, decoder = StreamDecoder(lit), StreamDecoder(lit)
    frames = [plain(first), plain(second)]
    with pytest.raises(ValueError, match="decodes 3, 5, 7"):
        decoder(first.select_blocks(slice(2)))
    assert torch.equal(decoder(first), frames[0])
    with pytest.raises(ValueError, match="decodes 2, 4, 6"):
        decoder(second.select_blocks(slice(1)))
    assert torch.equal(decoder(second), frames[1])


def test_a_stream_remembers_no_more_than_its_context(lit: LIT) -> None:
    encoder = StreamEncoder(lit, RedundancyAllocator(RedundancyConfig(0.5), lit.metric))
    decoder, sizes = StreamDecoder(lit), []
    for chunk in drifting(1, 90).split(9, 2):
        decoder(encoder(chunk))
        assert decoder.memory is not None
        assert decoder.selected is not None
        held = [decoder.selected.latents, *(tensor for layer in decoder.memory.layers for tensor in layer)]
        sizes.append([tensor.untyped_storage().nbytes() for tensor in held])
    assert sizes[-1] == sizes[1]


def test_a_static_stream_keeps_its_first_frame_and_nothing_else(lit: LIT) -> None:
    encoder = StreamEncoder(lit, RedundancyAllocator(RedundancyConfig(0.01), lit.metric))
    still = drifting(1, 1).expand(-1, -1, 9, -1, -1)
    assert [encoder(still).lengths.tolist() for _ in range(3)] == [[[16, 0, 0]], [[0, 0, 0]], [[0, 0, 0]]]


def test_a_folder_holds_the_inpainter_and_names_the_codec(lit: LIT, tmp_path: Path) -> None:
    lit.save(tmp_path / "model")
    again = load_model(tmp_path / "model", VideoTokenizer)
    tokens = thinned(lit, drifting(1, 18))
    assert all(torch.equal(weights, again.state_dict()[name]) for name, weights in lit.state_dict().items())
    # Where weights lie in memory changes the rounding of matrix products on some processors.
    torch.testing.assert_close(again.decode(tokens), lit.decode(tokens))
    assert not any(name.startswith("codec") for name in lit.state_dict())


def test_genvid_load_keeps_a_number_of_positions_of_each_clip(lit: LIT, tmp_path: Path) -> None:
    lit.save(tmp_path / "model")
    tokenizer = genvid.load(tmp_path / "model", device="cpu")
    video = (drifting(2, 12) + 1) / 2
    tokens = tokenizer.encode(video, tokens=40)
    assert tokens.lengths.sum(1).tolist() == [40, 40]
    filled = torch.cat([video, video[:, :, -1:].expand(-1, -1, 2, -1, -1)], 2) * 2 - 1
    kept = BudgetAllocator(40, lit.metric)(lit.encode(filled))
    decoded = tokenizer.decode(tokens)
    torch.testing.assert_close(decoded * 2 - 1, lit.decode(kept)[:, :, :12].clamp(-1, 1), atol=1e-5, rtol=1e-5)


def test_other_resolutions_work_with_tiles(lit: LIT) -> None:
    wide = lit.at((40, 56))
    tokens = thinned(wide, torch.rand(1, 3, 9, 40, 56) * 2 - 1, 0.5, means=False)
    assert wide.decode(tokens).shape == (1, 3, 9, 40, 56)
    # Tiles of three by three and two layers: what changes in one tile reaches its neighbours by convolutions, no more.
    assert tokens.latents is not None
    latents, keep = tokens.latents.clone(), tokens.keep.clone()
    latents[:, 0, 0] += 1
    keep[:, 1:, 0] = False  # else it may be the least change that is kept, the scale of all residuals
    changed = wide.fill(BlockTokens(keep, latents=latents)) - wide.fill(BlockTokens(keep, latents=tokens.latents))
    moved = changed.abs().amax((0, 1, 3)).view(5, 7) > 0
    assert moved[:3, :3].any()
    assert moved[:3, 3:6].any()
    assert not moved[:, 6:].any()
    with pytest.raises(ValueError, match="multiples of 8, got 40x50"):
        lit.at((40, 50))
    with pytest.raises(ValueError, match="LIT at 32x32 decodes latents"):
        lit.decode(tokens)


def test_convolutions_see_the_whole_frame_and_no_padding() -> None:
    frames, convolution = torch.randn(2, 15, 4), torch.nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    tiles = Tiles((3, 5), side=3)
    real = tiles.real(frames.device)
    assert real is not None
    x = torch.where(real[..., None], tiles.cut(frames), 7.0)
    assert x.shape[1] == tiles.count
    convolved = tiles.join(tiles.convolve(x.flatten(0, 1), convolution).unflatten(0, (2, -1)))
    plain = convolution(frames.view(2, 3, 5, 4).permute(0, 3, 1, 2))
    torch.testing.assert_close(convolved, plain.flatten(2).transpose(1, 2))


def test_a_dropped_first_block_is_one_sentence_unless_a_stream_knows_more(lit: LIT) -> None:
    tokens = lit.encode(drifting(1, 9))
    headless = replace(tokens, keep=tokens.keep & (torch.arange(3)[:, None] > 0))
    for decode in (lit.decode, StreamDecoder(lit)):
        with pytest.raises(ValueError, match="first block must be complete"):
            decode(headless)
    decoder = StreamDecoder(lit)
    decoder(tokens)
    assert decoder(headless).shape == (1, 3, 9, 32, 32)


def test_looking_ahead_cannot_stream(folder: Path) -> None:
    with pytest.raises(ValueError, match="non-causal inpainter cannot stream"):
        StreamDecoder(make_lit(cosmos(folder / "codec", window=9), causal=False))


def test_infotoks_rule_keeps_the_worst_cells(lit: LIT) -> None:
    video = drifting(2, 18)
    tokens = lit.encode(video)
    kept = InfoTokRule(lit, video, 40)(tokens).keep
    assert kept.sum((1, 2)).tolist() == [40, 40]
    assert kept[:, 0].all()
    error = cell_errors(lit.codec, (lit.decode(tokens) - video).abs().mean(1))[:, 1:]
    assert error[0][kept[0, 1:]].min() >= error[0][~kept[0, 1:]].max()


def test_cell_errors_are_means_over_what_a_latent_stands_for(lit: LIT) -> None:
    error = torch.rand(1, 18, 32, 32)
    cells = cell_errors(lit.codec, error)
    assert cells.shape == (1, 6, 16)
    torch.testing.assert_close(cells[0, 3, 5], error[0, 9, 8:16, 8:16].mean())
    torch.testing.assert_close(cells[0, 5, 2], error[0, 14:18, 0:8, 16:24].mean())


def test_elastictoks_rule_finds_the_fewest_tokens_that_reach_the_target(folder: Path) -> None:
    lit = make_lit(cosmos(folder / "codec", window=9), trained=False)
    video = drifting(1, 9)
    tokens = lit.encode(video)
    loose, strict = (ElasticTokRule(lit, video, target)(tokens) for target in (1.0, 0.0))
    assert loose.lengths.tolist() == [[16, 0, 0]]
    assert strict.keep.all()
    probe = lit.render(fill_by_copying(BudgetAllocator(30, lit.metric)(tokens))).detach()
    target = float(cell_errors(lit.codec, ((probe.clamp(-1, 1) - video) / 2).square().mean(1))[:, 1:].mean())
    kept = ElasticTokRule(lit, video, target)(tokens)
    error = cell_errors(lit.codec, ((lit.decode(kept).clamp(-1, 1) - video) / 2).square().mean(1)).mean(2)[0]
    full = cell_errors(lit.codec, ((lit.decode(tokens).clamp(-1, 1) - video) / 2).square().mean(1)).mean(2)[0]
    for block in (1, 2):
        assert error[block] <= target or (kept.keep[0, block].all() and full[block] > target)


def test_elastictoks_rule_needs_a_codec_that_decodes_block_by_block(folder: Path) -> None:
    source = save_codec("AutoencoderKLCogVideoX", folder / "AutoencoderKLCogVideoX")
    with pytest.raises(ValueError, match="decodes 2 at once: leave that rule out"):
        ElasticTokRule(make_lit(DiffusersCodecConfig(str(source))), drifting(1, 9), 0.1)


def test_training_starts_at_copy_forward_and_improves(folder: Path) -> None:
    lit = make_lit(cosmos(folder / "codec", window=None), trained=False)
    lit.pixel_error.fill_(1e3)  # a random codec loses all, and nothing that is added to that counts
    task = LITTask(lit, LITObjective(lowest_rate=0.2))
    batch = {"video": drifting(4, 17), "seed": torch.arange(4)}
    optimizer = torch.optim.AdamW(list(task.trainable("model")), lr=3e-3)
    outputs = []
    for step in range(60):
        output = task(batch, "model", step, {})
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        outputs.append(output.terms)
    assert float(outputs[0]["gain"]) == pytest.approx(0, abs=1e-5)
    assert float(outputs[-1]["gain"]) > 0.7
    assert not any(parameter.grad is not None for parameter in lit.codec.parameters())


def test_what_the_codec_loses_of_a_clip_by_itself_is_seen_on_its_first_frames(folder: Path) -> None:
    lit = make_lit(cosmos(folder / "codec", window=None))
    video = drifting(3, 17)
    lost = (lit.decode(lit.encode(video)) - video)[:, :, 1:5] / 2
    told = LITTask(lit, LITObjective()).own_error(lit.codec.encode(video), video)
    torch.testing.assert_close(told, lost.square().mean((1, 2, 3, 4)), rtol=1e-3, atol=0)


def test_a_decoded_share_of_the_clips_counts_for_all_of_them(folder: Path) -> None:
    lit = make_lit(cosmos(folder / "codec", window=None))
    batch = {"video": drifting(6, 17), "seed": torch.arange(6)}
    objectives = (LITObjective(pixel_weight=1), LITObjective(pixel_weight=1, pixel_share=0.4), LITObjective())
    tasks = [LITTask(lit, objective) for objective in objectives]
    alone = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(6)]
    every, some, none = (
        torch.tensor([task(clip, "model", 0, {}).loss.item() for clip in alone], dtype=torch.double) for task in tasks
    )
    shares = (some - none) / (every - none)
    assert sorted(set(shares.round(decimals=3).tolist())) == [0, 2.5]
    output = tasks[1](batch, "model", 0, {})
    assert output.loss.item() == pytest.approx(some.sum().item(), rel=1e-5)
    assert int(output.counts["decoded_psnr"]) == int((shares > 0).sum())


def test_drawn_masks_depend_on_the_clip_alone_and_cover_the_rates(folder: Path) -> None:
    task = LITTask(make_lit(cosmos(folder / "codec", window=9)), LITObjective(random_masks=0.25))
    latents = torch.randn(2, 6, 16, 4).cumsum(1).repeat(32, 1, 1, 1)
    seeds = torch.arange(64)
    keep, means = task.draw(latents, seeds)
    assert 0.3 < means.double().mean() < 0.8
    assert keep[:, 0].all()
    rates = keep.double().mean((1, 2))
    assert rates.min() < 0.25
    assert rates.max() > 0.9
    again = task.draw(latents[10:20], seeds[10:20])
    assert torch.equal(again[0], keep[10:20])
    assert torch.equal(again[1], means[10:20])
    still = task.draw(latents[:, :1].expand_as(latents), seeds)[0].double().mean((1, 2))
    assert (still == 1 / 6).double().mean() > 0.7  # but for masks at random


def test_the_codec_that_the_inpainter_was_trained_on_is_demanded(tmp_path, caplog):
    lit = make_lit(cosmos(tmp_path / "codec"))
    lit.save(tmp_path / "before")
    lit.origin = Origin({"codec": lit.codec.fingerprint()})
    lit.save(tmp_path / "lit")
    assert load_model(tmp_path / "lit").origin == lit.origin
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(5)
    diffusers.AutoencoderKLCosmos(**CLASSES["AutoencoderKLCosmos"]).save_pretrained(tmp_path / "codec")
    with pytest.raises(ProvenanceError, match=r"lit was not made from this codec \(codec is \w+ there, \w+ here\)"):
        load_model(tmp_path / "lit")
    load_model(tmp_path / "before")
    assert "before has no record of the codec that it was made from" in caplog.text
    (tmp_path / "codec" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json must hold keys and values, not a list"):
        load_model(tmp_path / "before")


def test_products_of_other_tokenizers_than_adaptok_stay_in_fp32(folder):
    lit = make_lit(cosmos(folder / "codec", window=9))
    set_precision(lit, "fp32")
    with pytest.raises(ValueError, match="bf16 is for AdapTok, and this tokenizer is LIT: use fp32"):
        set_precision(lit, "bf16")
