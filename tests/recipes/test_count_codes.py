"""Counting the codes of a cache into the folder of its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genvid.checkpoint import fingerprint
from genvid.recipes import count_codes
from genvid.tokenizer.adaptok.config import AdapTokConfig
from genvid.tokenizer.adaptok.model import AdapTok
from genvid.tokenizer.layers import StackConfig
from genvid.tokenizer.quantizer import VQConfig
from genvid.tokens import BlockTokens
from genvid.tokens.cache import TokenCacheWriter
from genvid.tokens.cache_info import CacheInfo
from genvid.tokens.code_counts import CodeCounts


def test_codes_of_a_cache_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = StackConfig(16, 1, 2)
    config = AdapTokConfig(4, (16, 16), (2, 8, 8), 6, stack, stack, VQConfig(codebook_size=20, code_dim=4))
    folder = tmp_path / "tokenizer"
    AdapTok(config).save(folder)
    shape = {"num_blocks": 2, "block_capacity": 6, "sizes": [*range(7)], "codebook_size": 20, "frames": 4}
    made = {"tokenizer": fingerprint(folder), "allocator": {}, "data": "x", "group_size": 1, "classes": ["a"]}
    writer = TokenCacheWriter(tmp_path / "cache", CacheInfo(**shape, **made))
    codes = torch.randint(20, (5, 2, 6), generator=torch.Generator().manual_seed(0))
    tokens = BlockTokens(torch.ones(5, 2, 6, dtype=torch.bool), codes).tail_drop(torch.tensor([[6, 3]] * 5))
    writer.begin()
    with writer.shard(0) as shard:
        shard.add(tokens, torch.zeros(5, dtype=torch.int64), torch.arange(5), ["a"] * 5)
    writer.finish()
    count_codes.main([str(tmp_path / "cache"), str(folder)])
    assert "45 codes counted" in capsys.readouterr().out
    counts = CodeCounts.load(folder, AdapTok(config).spec)
    assert counts is not None
    assert counts.counts.sum(1).tolist() == [10, 10, 15, 10]  # positions 0, 1, 2 and 3, 4 and 5
    assert counts.counts[0].tolist() == codes[:, :, 0].flatten().bincount(minlength=20).tolist()
    for words in ([], [str(tmp_path / "cache"), str(tmp_path)]):
        with pytest.raises(SystemExit):
            count_codes.main(words)
