"""A protocol, run: real clips in, the clips made of them or for them out, a row of measurements for each.

    evaluation = Evaluation(protocol("ucf101-rfvd-first"), source, "out", features=load_features("i3d.pt"))
    evaluation.measure(model)        # in every process; what was measured before an interruption is not repeated
    report = evaluation.report("my model", Provenance.now({...}))        # in one process, after all have measured

A model sees what the protocol gives to a model and nothing else: the whole clip to reconstruct, the first frames to
continue, or the class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from genvid import noise
from genvid.batch import Batch
from genvid.data.clips import to_uint8
from genvid.data.dataset import ClipDataset
from genvid.data.loader import load_batches
from genvid.data.sources.base import SourceConfig
from genvid.data.sources.video_index import cache_folder
from genvid.data.video import write_video
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.listings import listed
from genvid.eval.metrics.fidelity import ClipMean
from genvid.eval.pixels import as_scored
from genvid.eval.protocols import PREPARED, EvaluationProtocol
from genvid.eval.table import ClipTable
from genvid.tokens import BlockTokens, TokenizerSpec

_FEATURE_BATCH = 16
"""Clips in a pass of the feature network: fixed, so that features do not depend on the batches they came in."""


@dataclass(frozen=True)
class Output:
    """What a model made: videos (B, 3, T, H, W) in [-1, 1], and the tokens they were decoded from, if any."""

    video: Tensor
    tokens: BlockTokens | None = None


class VideoModel(Protocol):
    """A model under evaluation."""

    spec: TokenizerSpec | None
    """Of its tokens, for their cost in bits."""

    def describe(self) -> Mapping[str, Any]:
        """What its videos depend on (weights, sampling, budget): measurements of another model are not resumed."""
        ...

    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        """`conditioning` has "label" (B,), "position" (B,) among the clips and, where the task shows frames, "video"
        (B, 3, T, H, W); `seeds` is (B,) int64."""
        ...


@dataclass(frozen=True)
class Selection:
    """The clips of a data set that are compared: item and clip seed of each position."""

    dataset: ClipDataset
    items: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.items)

    def labels(self) -> Tensor:
        return torch.tensor([self.dataset.source.labels[index] for index, _ in self.items])

    def names(self) -> list[str]:
        return [self.dataset.name(index) for index, _ in self.items]


class Evaluation:
    """One protocol on one data set, measured into one folder."""

    def __init__(
        self,
        protocol: EvaluationProtocol,
        source: SourceConfig,
        folder: str | Path,
        *,
        features: FeatureNetwork | None,
        fidelity: Sequence[ClipMean] = (),
        test_source: SourceConfig | None = None,
        sampler_seeds: int | None = None,
        resolution: int | None = None,
        partial: bool = False,
        batch_size: int = 16,
        drawn_groups: bool = False,
        workers: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`test_source`: real clips that no model was trained on; samples are compared with them too.
        `resolution`: side of the model's frames. `drawn_groups`: batches are drawn over the data set, not neighbours in
        its order, which are of one class or of one file; for models that spend a budget over a batch.

        ValueError when the data, the features, the seeds or the resolution are not what the protocol says, unless
        `partial`: then the numbers bear a name that says what differs.
        """
        self.folder, self.device = Path(folder), torch.device(device)
        self.features = None if features is None else features.to(self.device)
        on_gpu = self.device.type == "cuda"
        self._aside = torch.cuda.Stream(self.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self.fidelity = list(fidelity) if protocol.task == "reconstruction" else []
        self.batch_size = batch_size if protocol.frames is not None else 1
        self.drawn_groups = drawn_groups
        self.workers, self.rank, self.world_size = workers, rank, world_size
        sized = protocol.adapted(resolution=resolution or protocol.resolution)
        dataset = _open(source, sized)
        self.pixel_protocol = sized.adapted(
            videos=dataset.source.videos if protocol.videos is not None else None,
            names=listed(protocol.names, dataset.source.names),
            sampler_seeds=sampler_seeds or protocol.sampler_seeds,
            resize=PREPARED if dataset.source.prepared else protocol.resize,
        )
        """Of numbers that no feature network has a part in."""
        followed = self.pixel_protocol.adapted(features="" if features is None else features.name)
        if not partial and followed != protocol:
            raise ValueError(
                f"this would not be {protocol.name} but '{followed.name}'; pass `partial` (--partial) to run it under "
                "that name"
            )
        self.protocol, self.dataset = followed, dataset
        self.real = _select(followed, dataset, followed.draw(len(dataset)))
        if features is not None:
            _check_features(features, followed, len(self.real))
        others = followed.draw_others(len(dataset), [index for index, _ in self.real.items])
        self.others = _select(followed, dataset, others)
        self.test: Selection | None = None
        if test_source is not None and features is not None:
            unseen = _open(test_source, sized)
            count = min(len(self.real), len(unseen))
            self.test = _select(followed, unseen, replace(followed, count=count).draw(len(unseen)))

    def measure(self, model: VideoModel) -> None:
        """Measure this process's share of all that is not on disk yet."""
        for seed in range(self.protocol.sampler_seeds):
            self._measure_made(model, seed)
        if self.features is not None:
            for what, selection in (("real", self.real), ("real, again", self.others), ("real, test", self.test)):
                if selection:
                    self._measure_real(selection, what)

    def made_table(self, model: VideoModel, seed: int) -> ClipTable:
        """Measurements of what a model made with one sampler seed."""
        what = {
            "protocol": self._scoring(),
            "clips": _hash(self.real),
            "features": self._network(),
            "fidelity": [metric.name for metric in self.fidelity],
            "producer": dict(model.describe()),
            "batch size": self.batch_size,
        }
        if self.drawn_groups:
            what["batches"] = "drawn"
        return ClipTable(self.folder / "measured" / f"seed{seed}", what)

    def real_table(self, selection: Selection) -> ClipTable:
        """Features of real clips, kept for all evaluations by what they depend on."""
        what = {"protocol": self._scoring(), "clips": _hash(selection), "features": self._network()}
        key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
        return ClipTable(cache_folder() / "real" / key, what)

    @torch.no_grad()
    def _measure_made(self, model: VideoModel, seed: int) -> None:
        table, protocol = self.made_table(model, seed), self.protocol
        sees_video = protocol.task != "generation"
        real = self.real_table(self.real) if sees_video and self.features is not None else None
        known = set() if real is None else real.done()
        described = "samples" if protocol.sampler_seeds == 1 else f"samples of seed {seed}"
        for positions, batch in self._batches(self.real, described, [table, real], with_video=sees_video):
            seeds = noise.sample_seeds(protocol.seed, f"sampler {seed}", positions).to(self.device)
            made = model(_conditioning(batch, protocol), seeds)
            video = made.video.to(self.device)
            truth = as_scored(batch["video"], protocol) if sees_video else None
            table.add(positions, self._columns(as_scored(video, protocol), truth, made.tokens, model.spec))
            if real is not None and truth is not None and not known.issuperset(positions.tolist()):
                real.add(positions, {"features": self._extract(truth)})
            if seed == 0:
                self._keep_samples(positions, video)

    @torch.no_grad()
    def _measure_real(self, selection: Selection, what: str) -> None:
        table = self.real_table(selection)
        for positions, batch in self._batches(selection, what, [table], with_video=True):
            table.add(positions, {"features": self._extract(as_scored(batch["video"], self.protocol))})

    def _columns(
        self, video: Tensor, truth: Tensor | None, tokens: BlockTokens | None, spec: TokenizerSpec | None
    ) -> dict[str, Tensor]:
        """Measurements of videos that were made, beside the real ones where the task shows these; both as scored."""
        columns = {}
        if self.features is not None:
            columns["features"] = self._extract(video)
        if truth is not None:
            columns |= {m.name: m.to(self.device).score(video, truth).double() for m in self.fidelity}
        if tokens is not None and spec is not None:
            columns["tokens per clip"] = tokens.keep.sum((1, 2))
            columns["bits per clip"] = spec.clip_bits(tokens)
            if self.protocol.frames is not None:
                columns["tokens of each block"] = tokens.lengths
        return columns

    def _extract(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, num_features). A GPU computes them in a stream of their own, beside what loads or
        makes the next clips; `ClipTable.flush` waits for them."""
        assert self.features is not None
        self.features.check(video)
        if self._aside is not None:
            self._aside.wait_stream(torch.cuda.current_stream(self.device))
            video.record_stream(self._aside)
        with torch.cuda.stream(self._aside):  # None: no stream
            return torch.cat([self.features(part) for part in torch.split(video, _FEATURE_BATCH)])

    def _batches(
        self, selection: Selection, what: str, tables: Sequence[ClipTable | None], *, with_video: bool
    ) -> Iterator[tuple[Tensor, Batch]]:
        """This process's batches of positions that the first table lacks; in the end all tables are on disk.

        Batches are the same for any number of processes and after any interruption. Whose a batch is does not depend on
        what is done: processes look at different moments.
        """
        wanted, fed = tables[0], [table for table in tables if table is not None]
        assert wanted is not None
        done = wanted.done()
        count = len(selection)
        order = noise.permutation(self.protocol.seed, "groups", count) if self.drawn_groups else torch.arange(count)
        share = torch.split(order, self.batch_size)[self.rank :: self.world_size]
        mine = [part for part in share if not done.issuperset(part.tolist())]
        batches = self._load(selection, mine) if with_video else self._labels(selection, mine)
        try:
            with tqdm(total=sum(map(len, mine)), desc=what, unit="clip", disable=self.rank != 0) as bar:
                for part, batch in zip(mine, batches, strict=True):
                    yield part, {**batch, "position": part}
                    bar.update(len(part))
        finally:
            for table in fed:
                table.flush()

    def _load(self, selection: Selection, parts: Sequence[Tensor]) -> Iterator[Batch]:
        wanted = [[selection.items[i] for i in part.tolist()] for part in parts]
        return load_batches(selection.dataset, wanted, workers=self.workers, device=self.device)

    def _labels(self, selection: Selection, parts: Sequence[Tensor]) -> Iterator[Batch]:
        labels = selection.labels()
        return ({"label": labels[part].to(self.device)} for part in parts)

    def _keep_samples(self, positions: Tensor, video: Tensor) -> None:
        for position, clip in zip(positions.tolist(), video, strict=True):
            if position < SHOWN:
                write_video(self.folder / "samples" / f"{position:04d}.mp4", to_uint8(clip).cpu(), fps=25)

    def _scoring(self) -> dict[str, Any]:
        """What features of a clip depend on."""
        fields = asdict(self.protocol)
        return {key: fields[key] for key in ("frames", "resolution", "resize", "scored_resolution", "quantize")}

    def _network(self) -> str:
        return "" if self.features is None else f"{self.features.name} {self.features.weights}"


SHOWN = 16
"""First clips whose videos are kept for the page."""


def _open(source: SourceConfig, protocol: EvaluationProtocol) -> ClipDataset:
    """Files that cannot be used are left out and counted when they are listed; one that fails later is an error,
    because another in its place would be another set of clips."""
    dataset = ClipDataset(source, protocol.clip_rule())
    dataset.strict = True
    return dataset


def _select(protocol: EvaluationProtocol, dataset: ClipDataset, indices: Sequence[int]) -> Selection:
    return Selection(dataset, list(zip(indices, protocol.clip_seeds(indices), strict=True)))


def _check_features(features: FeatureNetwork, protocol: EvaluationProtocol, clips: int) -> None:
    """ValueError, before anything is made, where a Frechet distance could not be computed afterwards."""
    if clips < 2:
        raise ValueError(f"a Frechet distance needs at least 2 clips, got {clips}: compare more, or features none")
    side = protocol.scored_resolution or protocol.resolution
    if protocol.frames is not None:
        features.check(torch.empty(1, 3, protocol.frames, side, side, device="meta"))


def _conditioning(batch: Batch, protocol: EvaluationProtocol) -> Batch:
    """What the task shows of a clip."""
    if protocol.task == "prediction":
        return {**batch, "video": batch["video"][:, :, : protocol.condition_frames]}
    return batch


def _hash(selection: Selection) -> str:
    return hashlib.sha256(json.dumps([selection.dataset.fingerprint(), selection.items]).encode()).hexdigest()[:24]
