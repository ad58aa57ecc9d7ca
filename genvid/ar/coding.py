"""Entropy coding of codes by the probabilities of an autoregressive model.

Logits are rounded to steps of 1/8 nat, and the frequency of a code is an entry of a table of integers. The encoder
marks each code before which a logit lies within `MARGIN` of a rounding boundary, and codes it without the model. A
decoder whose logits differ by less than that thus has the frequencies of the encoder, on any device and in any batch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genvid.ar.exact import ExactNetwork
from genvid.ar.row_model import RowModel
from genvid.tokens.entropy import CodeModel, Decoder, Encoder, EntropyError, Integers

STEPS = 8
"""Of a nat."""
MARGIN = 2.0**-24
"""Least distance, in steps, between a rounding boundary and a logit that is used."""
TABLE = np.array([math.floor(2**20 * math.exp(-step / STEPS) + 0.5) for step in range(14 * STEPS)] + [0])
"""Frequency of a code by the steps from its logit up to the greatest."""
_MARKS = np.array([2**12 - 1, 1])
"""Frequencies of codes that the model codes, and of those that it does not."""
_CACHE_BYTES = 2**30


class ARCodes(CodeModel):
    """Codes by a model of rows, which begin without a class. A segment has at most the blocks of a row."""

    def __init__(self, model: RowModel, fingerprint: str) -> None:
        if model.fixed_prompt and model.config.context_blocks:
            raise ValueError("a published frame predictor cannot code the first frames of a video: give another model")
        self.fingerprint = fingerprint
        self.layout, self.codebook_size = model.layout, model.layout.codebook_size
        self.network = ExactNetwork(model)
        self.most_blocks, self.most_tokens = self.layout.num_blocks, self.layout.largest
        first = self.layout.frame_prediction_id if model.config.context_blocks else self.layout.null_id
        self.start = self.layout.start_ids(torch.tensor([first]))[0].numpy()
        self.side_by_side = max(1, min(64, _CACHE_BYTES // (self.network.position_bytes * self.layout.longest_row)))

    @property
    def record(self) -> dict[str, str]:
        return {"type": "autoregressive", "fingerprint": self.fingerprint}

    @torch.no_grad()
    def encode(self, encoder: Encoder, codes: Sequence[Integers]) -> None:
        row, is_code = self._row([len(block) for block in codes])
        kept: Integers = np.concatenate(codes)
        row[is_code] = kept
        if not len(kept):
            return
        inputs = torch.from_numpy(row[None, :-1]).to(self.network.device)
        logits = self.network.logits(inputs, self.network.new_cache(1, len(row)), 0)[0]
        steps, marked = self._steps(logits[torch.from_numpy(is_code[1:])])
        encoder.put(marked.astype(np.int32), _MARKS)
        for code, own, alone in zip(kept, steps, marked, strict=True):
            if alone:
                encoder.put_uniform(code[None], self.codebook_size)
            else:
                encoder.put(code[None], TABLE[own])
        encoder.put_uniform(np.array([_checksum(kept)]), 2**8)

    @torch.no_grad()
    def decode(self, decoders: Sequence[Decoder], lengths: Sequence[Sequence[int]]) -> list[list[Integers]]:
        rows, is_code = zip(*map(self._row, lengths), strict=True)
        longest = max(map(len, rows))
        ids = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
        waits = np.stack([np.pad(mask, (0, longest - len(mask))) for mask in is_code])
        marks = [iter(decoder.get(_MARKS, int(mask.sum()))) for decoder, mask in zip(decoders, waits, strict=True)]
        cache = self.network.new_cache(len(rows), longest)
        for place in range(1, longest):
            inputs = torch.from_numpy(ids[:, place - 1 : place]).to(self.network.device)
            steps, _ = self._steps(self.network.logits(inputs, cache, place - 1)[:, 0])
            for number in waits[:, place].nonzero()[0].tolist():
                if next(marks[number]):
                    code = decoders[number].get_uniform(self.codebook_size, 1)
                else:
                    code = decoders[number].get(TABLE[steps[number]], 1)
                ids[number, place] = code[0]
        return [self._checked(*part) for part in zip(decoders, ids, waits, lengths, strict=True)]

    def _row(self, lengths: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The ids of a row with 0 in place of its codes, and which places are codes.

        A length that is none of the layout's sizes is replaced by the next larger size.
        """
        layout = self.layout
        if len(lengths) > layout.num_blocks or max(lengths) > layout.largest:
            raise EntropyError(
                f"{len(lengths)} blocks of up to {max(lengths)} tokens do not fit the rows of the autoregressive "
                f"model, which have {layout.num_blocks} of at most {layout.largest}"
            )
        parts, code = [self.start], [np.zeros(len(self.start), bool)]
        for length in lengths:
            known = np.searchsorted(layout.sizes, length) if layout.framing == "length" else 0
            frame, own = np.array([layout.codebook_size + known]), np.zeros(length, np.int64)
            order = [frame, own] if layout.framing == "length" else [own, frame]
            parts += order
            code += [np.full(len(part), part is own) for part in order]
        return np.concatenate(parts), np.concatenate(code)

    def _steps(self, logits: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """(N, num_outputs) -> (N, codebook_size) steps below the greatest logit of a code; which rows are marked."""
        scaled = logits[:, : self.codebook_size] * STEPS
        rounded = scaled.round()
        steps = (rounded.amax(-1, keepdim=True) - rounded).clamp(max=len(TABLE) - 1).nan_to_num(0)
        near = ((scaled - scaled.floor() - 0.5).abs() < MARGIN) | ~scaled.isfinite()
        marked = near.any(-1)
        return steps.byte().cpu().numpy(), marked.cpu().numpy()

    def _checked(
        self, decoder: Decoder, ids: NDArray[np.int64], is_code: NDArray[np.bool_], lengths: Sequence[int]
    ) -> list[Integers]:
        """The codes of each block; EntropyError where they are not those that were encoded."""
        codes = ids[is_code]
        if len(codes) and decoder.get_uniform(2**8, 1)[0] != _checksum(codes):
            raise EntropyError(
                "the autoregressive model computes other probabilities here than where the file was encoded"
            )
        return np.split(codes, np.cumsum(lengths)[:-1])


def _checksum(codes: Integers) -> int:
    return zlib.crc32(codes.astype("<i4").tobytes()) & 0xFF
