"""From rows of measurements to the numbers of a report: means, distances, their floor, their spread."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from genvid.eval.evaluation import BITS, BLOCKS, CODES, Candidate, Evaluation
from genvid.eval.metrics.codebook import codebook_usage
from genvid.eval.metrics.frechet import FEWEST_REAL, frechet_distance, frechet_interval, frechet_name, real_halves
from genvid.eval.metrics.probe import prefix_vectors, probe_accuracy
from genvid.eval.protocols import EvaluationProtocol
from genvid.eval.report import Better, Number, Provenance, Report
from genvid.eval.selection import Selection
from genvid.files import write_atomically

_RATES = ("tokens per clip", "bits per clip")
PROBED = (16, 4, 1)
"""A probe reads 1/16, 1/4 and all of the tokens of a block."""


class Summary:
    """All measurements of one candidate, once every process is done."""

    def __init__(
        self, evaluation: Evaluation, candidate: Candidate, *, resamples: int = 100, codebook: Tensor | None = None
    ) -> None:
        """`resamples`: draws of the bootstrap; 0: no interval of distances. `codebook` (codebook size, C): vectors of
        the codes, for a linear probe of the class."""
        self.codebook = codebook
        self.evaluation, self.clips, self.candidate = evaluation, evaluation.clips, candidate
        self.resamples = resamples
        count = len(self.clips.conditioning)
        seeds = range(self.clips.protocol.sampler_seeds)
        self.seeds = [evaluation.output_table(candidate, seed).load(count) for seed in seeds]

    def report(self, provenance: Provenance, remarks: Sequence[str] = ()) -> Report:
        """All numbers, with notes for the reader."""
        left_out = self.clips.dataset.source.left_out
        missing = (
            [f"{len(left_out)} videos of the data set were missing or unusable: {left_out[0]}"] if left_out else []
        )
        numbers = [*self._means(), *self._distances(), *self._codebook(), *self._probes()]
        return Report(self.candidate.title, numbers, provenance, [*missing, *remarks])

    def classes(self) -> dict[str, dict[str, float]]:
        """Class -> name -> mean, over the clips and seeds of the class, with its count of clips."""
        names, labels = self.clips.dataset.classes, self.clips.conditioning.labels()
        found = {}
        for label in sorted(set(labels.tolist())):
            chosen = labels == label
            means = {name: float(values[:, chosen].mean()) for name, values in self._columns().items()}
            found[names[label]] = {"clips": int(chosen.sum()), **means}
        return found

    def lengths(self) -> dict[str, list[int]]:
        """Block -> its tokens in every clip, of the first seed; empty where videos differ in length."""
        blocks = self.seeds[0].get(BLOCKS)
        return {} if blocks is None else {f"block {g}": column.tolist() for g, column in enumerate(blocks.T)}

    def token_bits(self) -> Tensor | None:
        """(G, L) mean bits of the tokens at each place of each block, of the first seed; NaN where none was kept."""
        bits = self.seeds[0].get(BITS)
        return None if bits is None else bits.nanmean(0)

    def class_lengths(self) -> dict[str, list[int]]:
        """Class -> tokens of each of its clips, of the first seed, costliest class first; empty without tokens."""
        tokens, labels = self.seeds[0].get("tokens per clip"), self.clips.conditioning.labels()
        if tokens is None:
            return {}
        found = {
            self.clips.dataset.classes[label]: tokens[labels == label].tolist()
            for label in sorted(set(labels.tolist()))
        }
        return dict(sorted(found.items(), key=lambda item: -statistics.fmean(item[1])))

    def write_classes(self, path: str | Path) -> None:
        """A CSV file of `classes`."""
        with write_atomically(path) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["class", "clips", *self._columns()])
            writer.writerows([name, *values.values()] for name, values in self.classes().items())

    def write_clips(self, path: str | Path) -> None:
        """A CSV file with a row for each clip and seed: name, class, and its measurements."""
        columns, classes = self._columns(), self.clips.dataset.classes
        names, labels = self.clips.conditioning.names(), self.clips.conditioning.labels().tolist()
        with write_atomically(path) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["clip", "class", "seed", *columns])
            for seed in range(len(self.seeds)):
                for row, (name, label) in enumerate(zip(names, labels, strict=True)):
                    values = [float(values[seed, row]) for values in columns.values()]
                    writer.writerow([name, classes[label], seed, *values])

    def _columns(self) -> dict[str, Tensor]:
        """Name -> (seeds, N) of everything that is one number a clip."""
        first, named = self.seeds[0], [metric.name for metric in self.evaluation.fidelity]
        known = [*named, *_RATES]
        further = [name for name in first if name not in (*known, "features", BITS, BLOCKS, CODES)]
        chosen = [name for name in (*known, *further) if name in first]
        return {name: torch.stack([seed[name].double() for seed in self.seeds]) for name in chosen}

    def _means(self) -> list[Number]:
        evaluation, numbers = self.evaluation, []
        directions = {metric.name: metric for metric in evaluation.fidelity}
        for name, values in self._columns().items():
            metric = directions.get(name)
            better: Better = "neither" if metric is None else metric.better
            unit = "" if metric is None else metric.unit
            mean = float(values.mean())
            half = 1.96 * float(values.mean(0).std()) / math.sqrt(values.shape[1]) if values.shape[1] > 1 else 0.0
            numbers.append(
                Number(
                    name,
                    mean,
                    self.clips.pixel_protocol,
                    values.shape[1],
                    unit=unit,
                    better=better,
                    spread=_spread(values.mean(1).tolist()),
                    interval=(mean - half, mean + half),
                )
            )
        return numbers

    def _codebook(self) -> list[Number]:
        """Usage of the codebook over all clips of the first seed."""
        codes, spec = self.seeds[0].get(CODES), self.candidate.model.spec
        if codes is None or spec is None or spec.codebook_size is None:
            return []
        usage = codebook_usage(codes[codes >= 0], spec.codebook_size)
        return [Number(name, value, self.clips.pixel_protocol, len(codes)) for name, value in usage.items()]

    def _probes(self) -> list[Number]:
        """Accuracy of a linear probe of the class from the first tokens of each block."""
        codes, labels = self.seeds[0].get(CODES), self.clips.conditioning.labels()
        if codes is None or self.codebook is None:
            return []
        capacity, vectors, numbers = codes.shape[2], self.codebook.cpu(), []
        for count in dict.fromkeys(max(1, capacity // part) for part in PROBED):
            accuracy = probe_accuracy(prefix_vectors(codes, vectors, count), labels)
            name = f"class by a linear probe, first {count} of {capacity} tokens of a block"
            numbers.append(Number(name, accuracy, self.clips.pixel_protocol, len(codes), better="higher"))
        return numbers

    def _distances(self) -> list[Number]:
        evaluation, clips = self.evaluation, self.clips
        if evaluation.features is None:
            return []
        name, protocol = frechet_name(evaluation.features), clips.protocol
        real = self.real_features(clips.real)
        numbers = [self._distance(name, real, protocol)]
        if clips.others is not None:
            again = self.real_features(clips.others)
            floor = frechet_distance(real, again, ddof=protocol.ddof)
            numbers.append(Number(f"{name}, real against real", floor, protocol, len(real)))
        elif len(real) >= FEWEST_REAL:
            halves = protocol.adapted(count=len(real) // 2)
            floor = frechet_distance(*real_halves(real), ddof=protocol.ddof)
            numbers.append(Number(f"{name}, real against real", floor, halves, len(real) // 2))
        if clips.test is not None:
            unseen = self.real_features(clips.test)
            against = protocol.adapted(split="test", count=len(unseen))
            numbers.append(self._distance(f"{name}, test split", unseen, against))
        return numbers

    def _distance(self, name: str, real: Tensor, protocol: EvaluationProtocol) -> Number:
        """Mean over sampler seeds; the interval is of the first seed's samples, moved to the mean."""
        made = [seed["features"].to(real) for seed in self.seeds]
        values = [frechet_distance(real, features, ddof=protocol.ddof) for features in made]
        mean, interval = statistics.fmean(values), None
        if self.resamples:
            paired = protocol.task == "reconstruction"
            low, high = frechet_interval(real, made[0], ddof=protocol.ddof, paired=paired, resamples=self.resamples)
            interval = (max(0.0, low + mean - values[0]), high + mean - values[0])
        return Number(
            name,
            mean,
            protocol,
            len(made[0]),
            better="lower",
            spread=_spread(values),
            interval=interval,
        )

    def real_features(self, selection: Selection) -> Tensor:
        """(N, F) float64."""
        features = self.evaluation.real_table(selection).load(len(selection))["features"]
        return features.to(self.evaluation.device).double()


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
