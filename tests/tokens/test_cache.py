"""Token caches: what goes in comes out, whatever the number of processes; anything else is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genvid.data import step_batches
from genvid.pieces import PiecesError
from genvid.tokens import BlockTokens
from genvid.tokens.cache import TokenCache, TokenCacheWriter
from genvid.tokens.cache_info import CacheError, CacheInfo

INFO = CacheInfo(
    tokenizer="abc",
    allocator={"type": "group", "budgets": [2.0, 3.5]},
    data="def",
    group_size=4,
    frames=8,
    num_blocks=2,
    block_capacity=6,
    sizes=[0, 1, 2, 3, 4, 5, 6],
    codebook_size=100,
    classes=["run", "walk"],
)


def some_tokens(clips: int = 22, codebook_size: int = 100) -> BlockTokens:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(codebook_size, (clips, 2, 6), generator=draw)
    codes[0, 0, 0] = codebook_size - 1
    lengths = torch.randint(7, (clips, 2), generator=draw)
    lengths[0], lengths[1] = 6, 0
    return BlockTokens(keep=torch.ones(clips, 2, 6, dtype=torch.bool), codes=codes).tail_drop(lengths)


def write(folder: Path, tokens: BlockTokens, info: CacheInfo = INFO, shards: int = 1) -> TokenCacheWriter:
    """Groups of four go to the shards in turn."""
    writer = TokenCacheWriter(folder, info, shards=shards)
    writer.begin()
    for number in writer.missing():
        with writer.shard(number) as shard:
            for first in range(4 * number, len(tokens.keep), 4 * shards):
                rows = torch.arange(first, min(first + 4, len(tokens.keep)))
                shard.add(tokens[rows], rows % 2, rows, [f"clip {i}" for i in rows.tolist()])
    writer.finish()
    return writer


@pytest.mark.parametrize("shards", [1, 2, 9])
@pytest.mark.parametrize("codebook_size", [100, 2**16, 2**16 + 1, 2**18])
def test_round_trip(tmp_path: Path, codebook_size: int, shards: int) -> None:
    tokens, info = some_tokens(codebook_size=codebook_size), replace(INFO, codebook_size=codebook_size)
    write(tmp_path / "cache", tokens, info, shards)
    cache = TokenCache.open(tmp_path / "cache")
    assert (len(cache), cache.info, cache.classes, cache.num_classes) == (22, info, ["run", "walk"], 2)
    assert torch.equal(cache.lengths, tokens.lengths.int())
    for i in range(22):
        item = cache[i, 77]
        assert torch.equal(item["codes"], tokens.codes[i] * tokens.keep[i])
        assert torch.equal(item["lengths"], tokens.lengths[i])
        assert [int(item[name]) for name in ("label", "index", "seed")] == [i % 2, i, 77]
        assert cache.source(i) == f"clip {i}"
    assert int(cache[5]["seed"]) == 5


def test_codes_cost_two_bytes(tmp_path: Path) -> None:
    tokens = BlockTokens(keep=torch.ones(500, 2, 6, dtype=torch.bool), codes=torch.zeros(500, 2, 6, dtype=torch.int64))
    with TokenCacheWriter(tmp_path, INFO).shard(0) as shard:
        shard.add(tokens, torch.zeros(500), torch.arange(500), [""] * 500)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 500 * (2 * 12 + 4 * 2 + 8 + 8 + 3 * 4) + 2000


def test_batches_through_workers(tmp_path: Path) -> None:
    write(tmp_path / "cache", some_tokens())
    cache = TokenCache.open(tmp_path / "cache")
    alone = next(step_batches(cache, batch_size=6, seed=0))
    helped = next(step_batches(cache, batch_size=6, seed=0, workers=1))
    assert alone[0]["codes"].shape == (6, 2, 6)
    assert all(torch.equal(alone[0][name], helped[0][name]) for name in alone[0])


def test_expectations_are_checked(tmp_path: Path) -> None:
    write(tmp_path / "cache", some_tokens())
    assert len(TokenCache.open(tmp_path / "cache", tokenizer="abc", allocator=INFO.allocator, group_size=4)) == 22
    with pytest.raises(CacheError, match="made with tokenizer 'abc', but 'xyz' is needed"):
        TokenCache.open(tmp_path / "cache", tokenizer="xyz")
    with pytest.raises(CacheError, match=r"made with allocator .*group.*, but .*uniform.* is needed"):
        TokenCache.open(tmp_path / "cache", allocator={"type": "uniform"})


def test_unfinished_and_absent_caches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no token cache"):
        TokenCache.open(tmp_path / "absent")
    tokens, rows = some_tokens(4), torch.arange(4)
    writer = TokenCacheWriter(tmp_path / "cache", INFO, shards=2)
    with writer.shard(0) as shard:
        shard.add(tokens, rows, rows, ["a"] * 4)
    with pytest.raises(CacheError, match=r"not a finished token cache: it has no fingerprint\.json"):
        TokenCache.open(tmp_path / "cache")
    with pytest.raises(CacheError, match=r"lacks tokens-00001-of-00002\.arrow"):
        writer.finish()
    # Starting again over the remains, of which no record says where they are from, gives a whole cache without them.
    write(tmp_path / "cache", some_tokens(22), shards=2)
    assert len(TokenCache.open(tmp_path / "cache")) == 22
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [
        "fingerprint.json",
        "tokens-00000-of-00002.arrow",
        "tokens-00001-of-00002.arrow",
    ]


def test_an_interrupted_shard_is_absent(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TokenCacheWriter(tmp_path / "cache", INFO).shard(0):
        raise KeyboardInterrupt
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_interrupted_cache_goes_on_with_the_shards_that_it_lacks(tmp_path: Path) -> None:
    write(tmp_path / "straight", some_tokens(), shards=3)
    begun = TokenCacheWriter(tmp_path / "cache", INFO, shards=3)
    begun.begin()
    with begun.shard(1) as shard:
        rows = torch.tensor([4, 5, 6, 7, 16, 17, 18, 19])
        for part in rows.split(4):
            shard.add(some_tokens()[part], part % 2, part, [f"clip {i}" for i in part.tolist()])
    again = TokenCacheWriter(tmp_path / "cache", INFO, shards=3)
    again.begin()
    assert again.missing() == [0, 2]
    write(tmp_path / "cache", some_tokens(), shards=3)
    names = sorted(file.name for file in (tmp_path / "straight").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "cache").iterdir())
    for name in names:
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "cache" / name).read_bytes()


def test_shards_of_another_cache_are_refused(tmp_path: Path) -> None:
    TokenCacheWriter(tmp_path, INFO, shards=3).begin()
    with pytest.raises(PiecesError, match="tokenizer is abc there, xyz here"):
        TokenCacheWriter(tmp_path, replace(INFO, tokenizer="xyz"), shards=3)
    with pytest.raises(PiecesError, match="clips is None there, 7 here"):
        TokenCacheWriter(tmp_path, INFO, shards=3, about={"clips": 7})


def test_occupied_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "cache", some_tokens())
    with pytest.raises(CacheError, match="already holds a token cache"):
        TokenCacheWriter(tmp_path / "cache", INFO)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("")
    with pytest.raises(CacheError, match=r"holds other files \(thesis\.tex\)"):
        TokenCacheWriter(tmp_path / "papers", INFO)


def test_damaged_caches_are_named(tmp_path: Path) -> None:
    write(tmp_path / "cache", some_tokens())
    shard = tmp_path / "cache" / "tokens-00000-of-00001.arrow"
    record = json.loads((tmp_path / "cache" / "fingerprint.json").read_text())
    (tmp_path / "cache" / "fingerprint.json").write_text(json.dumps({**record, "clips": 23}))
    with pytest.raises(CacheError, match="holds 22 of its 23 clips"):
        TokenCache.open(tmp_path / "cache")
    shard.write_bytes(b"")
    with pytest.raises(CacheError, match=r"tokens-00000-of-00001\.arrow cannot be read"):
        TokenCache.open(tmp_path / "cache")


def test_tokens_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tokens, rows = some_tokens(4), torch.arange(4)
    holes = tokens.keep.clone()
    holes[0, 0, 1] = False
    writer = TokenCacheWriter(tmp_path, INFO)
    with writer.shard(0) as shard:
        with pytest.raises(CacheError, match="tokens inside a block were dropped"):
            shard.add(replace(tokens, keep=holes), rows, rows, [""] * 4)
        with pytest.raises(CacheError, match="codes run from 100 to 100, outside the codebook of 100"):
            shard.add(replace(tokens, codes=torch.full_like(tokens.codes, 100)), rows, rows, [""] * 4)
        with pytest.raises(CacheError, match="2 blocks of 6 tokens, got 1 of 6"):
            shard.add(BlockTokens(tokens.keep[:, :1], codes=tokens.codes[:, :1]), rows, rows, [""] * 4)
        with pytest.raises(CacheError, match="a continuous tokenizer has none"):
            shard.add(BlockTokens(tokens.keep), rows, rows, [""] * 4)
    with pytest.raises(CacheError, match="no clip was written"):
        writer.finish()
