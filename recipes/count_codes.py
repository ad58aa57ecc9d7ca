"""Count the codes of a token cache: python recipes/count_codes.py CACHE TOKENIZER

Writes code_counts.safetensors into the tokenizer's folder; `genvid encode` then codes its files by these counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.command import command
from genvid.tokens import VideoTokenizer
from genvid.tokens.cache import TokenCache
from genvid.tokens.code_counts import FILE, CodeCounts


def count_codes(cache: Path, tokenizer: Path) -> CodeCounts:
    """Counts over all clips of a cache that this tokenizer made."""
    clips = TokenCache.open(cache, tokenizer=fingerprint(tokenizer))
    counts = CodeCounts.zeros(load_model(tokenizer, VideoTokenizer).spec)
    for number in tqdm(range(len(clips)), desc="counting", unit="clip"):
        clip = clips[number]
        counts.add([codes[:length].numpy() for codes, length in zip(clip["codes"], clip["lengths"], strict=True)])
    return counts


@command
def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise ValueError("usage: python recipes/count_codes.py CACHE TOKENIZER")
    folder = resolve(argv[1])
    counts = count_codes(Path(argv[0]), folder)
    counts.save(folder)
    shares = counts.counts.sum(0) / max(1, counts.counts.sum())
    bits = -float((shares * np.log2(np.where(shares > 0, shares, 1))).sum())
    print(f"{int(counts.counts.sum())} codes counted into {folder / FILE}: {bits:.2f} bits a code at any position")


if __name__ == "__main__":
    main(sys.argv[1:])
