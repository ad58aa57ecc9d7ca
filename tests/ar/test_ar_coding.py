"""Entropy coding by an autoregressive model: exact, in any batch, and shorter the better the model predicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_ar_model import enlivened

from genvid.ar import coding
from genvid.ar.coding import MARGIN, STEPS, TABLE, ARCodes
from genvid.ar.config import ARConfig, TransformerConfig
from genvid.ar.exact import ExactNetwork
from genvid.ar.model import BlockTransformer
from genvid.ar.published import PublishedConfig, PublishedTransformer
from genvid.ar.row_model import RowModel
from genvid.tokens.entropy import Decoder, Encoder, EntropyError
from genvid.tokens.rows import BlockLayout

LAYOUT = BlockLayout(codebook_size=40, num_classes=3, num_blocks=3, block_capacity=8, sizes=(2, 4, 8))
TINY = TransformerConfig(width=32, depth=2, heads=4, kv_heads=2, hidden=48, max_positions=40)


def classes() -> RowModel:
    return enlivened(BlockTransformer(ARConfig(LAYOUT, TINY)))


def continues() -> RowModel:
    return enlivened(BlockTransformer(ARConfig(replace(LAYOUT, budget_bins=4), TINY, context_blocks=1)))


def published() -> RowModel:
    layout = replace(LAYOUT, sizes=(), framing="end")
    return enlivened(PublishedTransformer(PublishedConfig(layout, replace(TINY, rope_theta=None))))


MODELS = pytest.mark.parametrize("build", [classes, continues, published])
LENGTHS = [[2, 4, 8], [8], [0, 0], [3, 0, 7], [1]]
"""Of segments: some are none of the layout's sizes."""


def segments(seed: int = 0) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [[generator.integers(0, 40, length) for length in own] for own in LENGTHS]


def coded(model: ARCodes, codes: list[np.ndarray]) -> bytes:
    encoder = Encoder()
    model.encode(encoder, codes)
    return encoder.bytes()


def equal(decoded: list[list[np.ndarray]], codes: list[list[np.ndarray]]) -> bool:
    return [[part.tolist() for part in own] for own in decoded] == [[part.tolist() for part in own] for own in codes]


@MODELS
@torch.no_grad()
def test_logits_in_double_precision_are_those_of_the_model(build):
    model = build()
    rows = torch.randint(40, (3, 20), generator=torch.Generator().manual_seed(1))
    network = ExactNetwork(model)
    whole = network.logits(rows, network.new_cache(3, 20), 0)
    torch.testing.assert_close(whole.float(), model(rows), atol=2e-4, rtol=2e-4)
    cache, steps = network.new_cache(3, 20), []
    for place, part in ((0, rows[:, :5]), *((5 + i, rows[:, 5 + i : 6 + i]) for i in range(15))):
        steps.append(network.logits(part, cache, place))
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-11, rtol=0)
    assert (torch.cat(steps, 1) - whole).abs().max() * STEPS < MARGIN / 1000


@MODELS
def test_what_is_decoded_is_what_was_encoded_alone_and_side_by_side(build):
    model, codes = ARCodes(build(), "0123"), segments()
    payloads = [coded(model, own) for own in codes]
    assert equal(model.decode([Decoder(payload) for payload in payloads], LENGTHS), codes)
    for payload, lengths, own in zip(payloads, LENGTHS, codes, strict=True):
        assert equal(model.decode([Decoder(payload)], [lengths]), [own])


def test_codes_near_a_rounding_boundary_are_coded_without_the_model(monkeypatch):
    """With a wide margin some codes are; a decoder whose logits are off by less decodes them all the same."""
    monkeypatch.setattr(coding, "MARGIN", 0.004)
    model, codes = ARCodes(classes(), "0123"), segments()
    marked = []
    with monkeypatch.context() as patch:
        steps = ARCodes._steps
        patch.setattr(ARCodes, "_steps", lambda self, logits: marked.append(steps(self, logits)) or marked[-1])
        payloads = [coded(model, own) for own in codes]
    share = np.concatenate([marks for _, marks in marked]).mean()
    assert 0.05 < share < 0.95
    logits = ExactNetwork.logits

    def elsewhere(self, *arguments):
        exact = logits(self, *arguments)
        return exact + (torch.rand(exact.shape, generator=torch.Generator().manual_seed(2)) - 0.5) * 0.007 / STEPS

    monkeypatch.setattr(ExactNetwork, "logits", elsewhere)
    assert equal(model.decode([Decoder(payload) for payload in payloads], LENGTHS), codes)


def test_other_probabilities_are_noticed(monkeypatch):
    model, codes = ARCodes(classes(), "0123"), segments()
    payloads = [coded(model, own) for own in codes]
    logits = ExactNetwork.logits
    monkeypatch.setattr(ExactNetwork, "logits", lambda self, *arguments: logits(self, *arguments) * 1.01)
    with pytest.raises(EntropyError, match=r"computes other probabilities|no symbols"):
        model.decode([Decoder(payload) for payload in payloads], LENGTHS)


def test_logits_that_are_no_numbers_cost_bits_alone(monkeypatch):
    logits = ExactNetwork.logits
    monkeypatch.setattr(ExactNetwork, "logits", lambda self, *a: logits(self, *a) * torch.tensor(torch.nan))
    model, codes = ARCodes(classes(), "0123"), segments()
    assert equal(model.decode([Decoder(coded(model, own)) for own in codes], LENGTHS), codes)


@torch.no_grad()
def test_the_size_is_the_cross_entropy_of_the_model():
    row_model = classes()
    model = ARCodes(row_model, "0123")
    generator = np.random.default_rng(0)
    lengths = [8, 8, 8]
    total = expected = 0.0
    for _ in range(30):
        codes = [generator.integers(0, 40, length) for length in lengths]
        row, is_code = model._row(lengths)
        row[is_code] = np.concatenate(codes)
        logits = row_model(torch.from_numpy(row[None, :-1]))[0, :, :40][torch.from_numpy(is_code[1:])]
        targets = torch.from_numpy(np.concatenate(codes))
        expected += float(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")) / np.log(2)
        total += 8 * len(coded(model, codes))
    assert expected < total < 1.02 * expected + 30 * (16 + 32)


def test_rows_that_the_model_does_not_hold_are_refused():
    model = ARCodes(classes(), "0123")
    zeros = np.zeros(9, np.int64)
    for codes in ([zeros[:2]] * 4, [zeros]):
        with pytest.raises(EntropyError, match="do not fit the rows"):
            model.encode(Encoder(), codes)
        with pytest.raises(EntropyError, match="do not fit the rows"):
            model.decode([Decoder(b"")], [[len(block) for block in codes]])
    layout = replace(LAYOUT, sizes=(), framing="end", num_classes=0, num_blocks=2)
    config = PublishedConfig(layout, replace(TINY, rope_theta=None), context_blocks=2, first_block=1)
    with pytest.raises(ValueError, match="published frame predictor"):
        ARCodes(PublishedTransformer(config), "0123")


def test_the_table_is_that_of_the_specification():
    assert TABLE[0] == 2**20
    assert TABLE[8] == 385750
    assert TABLE[-2:].tolist() == [1, 0]
    exact = 2**20 * np.exp(-np.arange(len(TABLE) - 1) / STEPS)
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-4  # no rounding depends on a library's exp


def test_any_bytes_are_codes_or_an_error():
    model, generator = ARCodes(classes(), "0123"), np.random.default_rng(0)
    for _ in range(20):
        with pytest.raises(EntropyError):
            model.decode([Decoder(generator.bytes(20)) for _ in LENGTHS], LENGTHS)


@pytest.mark.gpu
def test_every_device_writes_and_reads_the_same_bytes():
    """A network of usual depth; without a GPU the CPU alone, one row and three."""
    layout = BlockLayout(codebook_size=512, num_classes=3, num_blocks=4, block_capacity=32, sizes=(8, 16, 32))
    sizes = TransformerConfig(width=128, depth=8, heads=4, kv_heads=4, hidden=256, max_positions=140)
    model = enlivened(BlockTransformer(ARConfig(layout, sizes)))
    generator, lengths = np.random.default_rng(0), [[32, 16, 8, 8], [20, 20, 20, 20], [32]]
    codes = [[generator.integers(0, 512, length) for length in own] for own in lengths]
    devices, payloads = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])], []
    for device in devices:
        coder = ARCodes(model.to(device), "0123")
        payloads.append([coded(coder, own) for own in codes])
    for device in devices:
        coder = ARCodes(model.to(device), "0123")
        assert equal(coder.decode([Decoder(payload) for payload in payloads[0]], lengths), codes)
    assert all(written == payloads[0] for written in payloads)
