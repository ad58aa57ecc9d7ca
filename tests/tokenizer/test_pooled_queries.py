"""Pooled queries, carry-over and whitened latents, absent from the published model, keep its promises."""

import pytest
import torch

from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.adaptok.pooled_queries import cell_means, fill_from_past, novelty
from genvid.tokenizer.adaptok.pyramid import coarser_weights, pyramid_cells
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import FSQConfig, VQConfig
from genvid.tokenizer.statistics import Whiten
from genvid.tokens import BlockTokens

NETWORK = StackConfig(32, 2, 2)


@pytest.fixture
def tokenizer() -> AdapTok:
    torch.manual_seed(0)
    config = AdapTokConfig(
        frames=12,
        resolution=(32, 16),
        patch=(4, 8, 8),
        block_capacity=7,
        encoder=NETWORK,
        decoder=NETWORK,
        quantizer=FSQConfig(levels=(8, 8, 8), whiten=True),
        pooled_queries=True,
    )
    tokenizer = AdapTok(config)
    torch.nn.init.normal_(tokenizer.output.weight, std=0.5)
    return tokenizer.eval()


@pytest.fixture
def video() -> torch.Tensor:
    return torch.rand(2, 3, 12, 32, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("rows", "columns", "capacity"), [(4, 4, 16), (8, 8, 21), (16, 16, 300), (3, 5, 9)])
def test_every_prefix_of_cells_covers_the_picture_and_complete_levels_cover_it_once_each(rows, columns, capacity):
    cover = pyramid_cells(rows, columns, capacity)
    assert cover.shape == (capacity, rows * columns)
    assert bool(cover[0].all())
    assert torch.equal(cover[1:5].sum(0), torch.ones(rows * columns))


def test_a_partial_level_is_spread_over_the_picture():
    quarters = pyramid_cells(8, 8, 5 + 4)[5:].view(4, 8, 8)
    assert [int(quarters[:, i : i + 4, j : j + 4].any((1, 2)).sum()) for i in (0, 4) for j in (0, 4)] == [1, 1, 1, 1]


def test_blocks_stay_causal(tokenizer, video):
    changed = video.clone()
    changed[:, :, 8:] = -changed[:, :, 8:]
    before, after = tokenizer.features(video), tokenizer.features(changed)
    assert torch.allclose(before[:, :2], after[:, :2], atol=1e-6)
    assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-2)


def test_dropped_tokens_are_not_read_and_trimming_changes_nothing(tokenizer, video):
    lengths = torch.tensor([[3, 7, 1], [5, 2, 4]])
    tokens = tokenizer.encode(video).tail_drop(lengths)
    garbled = BlockTokens(tokens.keep, torch.where(tokens.keep, tokens.codes, 511 - tokens.codes))
    decoded = tokenizer.decode(tokens)
    assert torch.equal(decoded, tokenizer.decode(garbled))
    assert torch.allclose(decoded, tokenizer.render(tokenizer.embed(tokens), tokens.keep), atol=1e-5)
    for block in range(3):
        part = tokenizer.render_block(tokenizer.embed(tokens), tokens.keep, block)
        assert torch.allclose(part, decoded[:, :, 4 * block : 4 * block + 4], atol=1e-5)
    assert torch.allclose(tokenizer.decode(tokens[:1]), decoded[:1], atol=1e-5)


def test_a_patch_starts_from_the_mean_of_the_present_latents_whose_cells_contain_it(tokenizer):
    latents = torch.randn(1, 1, 7, 32)
    known = torch.tensor([[[True, True, False, True, False, False, False]]])
    means = cell_means(latents, known, tokenizer.pyramid.cells)
    cover = tokenizer.pyramid.cells * known[0, 0, :, None]
    for patch in range(cover.shape[1]):
        expected = latents[0, 0, cover[:, patch].bool()].mean(0)
        assert torch.allclose(means[0, 0, patch], expected, atol=1e-5)


def test_a_dropped_latent_is_filled_by_the_last_kept_one_in_its_position(tokenizer):
    embeddings = torch.randn(1, 3, 7, 32)
    keep = torch.tensor([[[True] * 5 + [False] * 2, [True] * 2 + [False] * 5, [True] + [False] * 6]])
    recalled, known = fill_from_past(embeddings, keep, tokenizer.memory)
    assert torch.equal(known, torch.tensor([[[True] * 5 + [False] * 2] * 3]))
    assert torch.equal(recalled[keep], embeddings[keep])
    assert torch.allclose(recalled[0, 1, 2:5], tokenizer.memory * embeddings[0, 0, 2:5])
    assert torch.allclose(recalled[0, 2, 2:5], tokenizer.memory**2 * embeddings[0, 0, 2:5])
    assert torch.allclose(recalled[0, 2, 1], tokenizer.memory * embeddings[0, 1, 1])
    assert not recalled[:, :, 5:].any()


def test_queries_of_both_halves_are_pooled(tokenizer, video):
    """With no attention between, what a latent and a pixel start from is all that there is."""

    class Chosen(torch.nn.Module):
        def forward(self, x, attend, chosen):
            return x[:, chosen]

    plain = AdapTok(AdapTokConfig(**{**tokenizer.config.__dict__, "pooled_queries": False}))
    plain.load_state_dict({name: value for name, value in tokenizer.state_dict().items() if name != "memory"})
    for model in (tokenizer, plain):
        model.encoder, model.decoder = torch.nn.ModuleList([Chosen()]), torch.nn.ModuleList()
    brighter = video + 0.5
    assert torch.equal(plain.features(video), plain.features(brighter))
    assert not torch.allclose(tokenizer.features(video), tokenizer.features(brighter), atol=1e-2)
    embeddings, keep = torch.randn(2, 3, 7, 32), torch.ones(2, 3, 7, dtype=torch.bool)
    assert torch.equal(plain.render(embeddings, keep), plain.render(-embeddings, keep))
    assert not torch.allclose(tokenizer.render(embeddings, keep), tokenizer.render(-embeddings, keep), atol=1e-2)


def test_whitening_undoes_scale_shift_and_correlation():
    torch.manual_seed(0)
    mix = torch.tensor([[5.0, 0, 0], [4.9, 0.1, 0], [0, 0, 0.1]])
    whiten = Whiten(3)
    for _ in range(200):
        x = torch.randn(64, 3) @ mix.T + 7
        whiten.update(whiten.sums(x))
    y = whiten(torch.randn(20_000, 3) @ mix.T + 7)
    assert y.mean(0).abs().max() < 0.1
    assert (torch.cov(y.T) - torch.eye(3)).abs().max() < 0.1


def test_whitening_does_not_depend_on_the_batch():
    whiten = Whiten(4).train()
    x = torch.randn(100, 4) * 3 + 1
    assert torch.allclose(whiten(x), x, atol=1e-4)
    whiten.update(whiten.sums(x))
    assert torch.allclose(whiten(x)[:2], whiten(x[:2]))


def test_whitening_statistics_are_those_of_all_parts_of_a_step():
    one, parts = Whiten(3), Whiten(3)
    for step in range(5):
        x = torch.randn(60, 3) * (step + 1) + 20
        one.update(one.sums(x))
        parts.update(sum(parts.sums(part) for part in x.split([7, 40, 13])))
    assert one.mean.equal(parts.mean)
    assert one.covariance.equal(parts.covariance)


def test_a_whitened_quantizer_uses_its_codes_where_latents_share_one_direction():
    torch.manual_seed(0)
    features = torch.randn(16, 2, 8, 1) * torch.ones(32) * 3 + 0.05 * torch.randn(16, 2, 8, 32)
    keep = torch.ones(16, 2, 8, dtype=torch.bool)
    used = {}
    for whiten in (False, True):
        torch.manual_seed(1)
        quantizer = VQConfig(codebook_size=64, code_dim=8, whiten=whiten).build(32, 32).train()
        quantizer.update_statistics(quantizer(features, keep).sums)
        used[whiten] = quantizer(features, keep).codes.unique().numel()
    assert used[True] > 3 * used[False]


def test_novelty_is_the_difference_from_carried_and_coarser_latents(tokenizer):
    latents, left = torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    from_slot, from_cell = novelty(latents, left, tokenizer.pyramid.coarser).chunk(2, -1)
    torch.testing.assert_close(from_slot, latents - left)
    cover = tokenizer.pyramid.cells.bool()
    for slot in range(7):
        patches = []
        for patch in cover[slot].nonzero()[:, 0]:
            before = [other for other in range(slot) if cover[other, patch]]
            patches.append(latents[:, before].mean(1) if before else torch.zeros(2, 32))
        torch.testing.assert_close(from_cell[:, slot], latents[:, slot] - torch.stack(patches).mean(0))


def test_every_latent_but_the_first_lies_in_coarser_cells():
    weights = coarser_weights(pyramid_cells(4, 4, 16))
    torch.testing.assert_close(weights[1:].sum(1), torch.ones(15))
    assert not weights.triu().any()
