"""Evaluation of models by a protocol: a row of measurements for each output.

    network = load_features("i3d.pt")
    clips = protocol_clips(protocol("ucf101-rfvd-first"), source, features=network)
    evaluation, candidate = Evaluation(clips, Measures(network)), Candidate("my model", model, Path("out"))
    evaluation.measure(candidate)       # in every process; finished rows are not measured again
    Summary(evaluation, candidate).report(Provenance.now({...}))    # in one process, after all have measured

Several candidates are measured side by side: each clip is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from genvid import noise
from genvid.batch import Batch
from genvid.checkpoint import weights_hash
from genvid.data.clips import to_uint8
from genvid.data.sources.video_index import cache_folder
from genvid.data.video import write_video
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.metrics.fidelity import ClipScore
from genvid.eval.pixels import as_scored, as_seen
from genvid.eval.selection import ClassRequests, EvaluationClips, Selection
from genvid.eval.table import ClipTable
from genvid.files import json_digest
from genvid.tokens import BlockTokens, TokenizerSpec

BLOCKS = "tokens of each block"
CODES = "codes, -1 where dropped"
BITS = "bits of each token, NaN where dropped"
_PART = 16
"""Clips that are measured together: fixed, so that features do not depend on the batches they came in."""


@dataclass(frozen=True)
class Output:
    """Videos of a model (B, 3, T, H, W) in [-1, 1], and the tokens that they were decoded from, if any."""

    video: Tensor
    tokens: BlockTokens | None = None
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    """Further numbers of each video by name, (B,)."""
    spec: TokenizerSpec | None = None
    """Of these tokens, where the model's own is of another frame size."""


class VideoModel(Protocol):
    """A model under evaluation."""

    spec: TokenizerSpec | None
    """Of its tokens, for their cost in bits."""

    def describe(self) -> Mapping[str, Any]:
        """Everything its videos depend on (weights, sampling, budget): rows of another description are not resumed."""
        ...

    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        """`conditioning` has "label" (B,), "position" (B,) among the clips and, where the task shows frames, "video"
        (B, 3, T, H, W): the whole clip to reconstruct, or the first frames to continue. `seeds` is (B,) int64."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A model under evaluation, the title of its report and the folder of its measurements."""

    title: str
    model: VideoModel
    folder: Path


@dataclass(frozen=True)
class Measures:
    """Measurements of every output."""

    features: FeatureNetwork | None = None
    """Of the Frechet distance; None: there is none."""
    fidelity: Sequence[ClipScore] = ()
    """Scores of a reconstruction against its original; other tasks have none."""
    codebook: bool = False
    """Keeps the kept codes of every clip: for the usage of the codebook, and for a probe of their class."""
    examples: int = 16
    """First clips whose outputs are kept as videos, for the page."""


@dataclass(frozen=True)
class Execution:
    """Batches of an evaluation, and the process that computes them."""

    batch_size: int = 16
    """Clips in a call of a model; whole videos come one by one."""
    drawn_groups: bool = False
    """Batches are drawn over the clips. Neighbours are of one class or of one file: for models that spend a budget over
    a batch."""
    workers: int = 0
    """Processes that decode videos."""
    device: torch.device | str = "cpu"
    rank: int = 0
    world_size: int = 1


class Evaluation:
    """Clips and measures; rows of measurements are kept in the folder of each candidate."""

    def __init__(self, clips: EvaluationClips, measures: Measures, execution: Execution | None = None) -> None:
        """ValueError, before anything is made, where a Frechet distance could not be computed afterwards."""
        self.clips, self.measures, self.execution = clips, measures, execution or Execution()
        self.device = torch.device(self.execution.device)
        self.features = None if measures.features is None else measures.features.to(self.device)
        if self.features is not None:
            _check_features(self.features, clips)
            self.features.weights = self.features.weights or weights_hash(self.features)
        on_gpu = self.device.type == "cuda"
        self._aside = torch.cuda.Stream(self.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self.fidelity = list(measures.fidelity) if clips.protocol.task == "reconstruction" else []
        self.batch_size = self.execution.batch_size if clips.protocol.frames is not None else 1

    def measure(self, *candidates: Candidate) -> None:
        """Measure the share of this process of all rows that are not on disk yet."""
        for seed in range(self.clips.protocol.sampler_seeds):
            self._measure_outputs(candidates, seed)
        if self.features is not None:
            clips = self.clips
            for what, selection in (("real", clips.real), ("real, again", clips.others), ("real, test", clips.test)):
                if selection is not None:
                    self._measure_real(selection, what)

    def output_table(self, candidate: Candidate, seed: int) -> ClipTable:
        """Measurements of the outputs of a candidate with one sampler seed."""
        what = {
            "protocol": self._scoring(),
            "clips": self.clips.real.fingerprint(),
            "features": self._network(),
            "fidelity": [metric.name for metric in self.fidelity],
            "producer": dict(candidate.model.describe()),
            "batch size": self.batch_size,
        }
        if self.execution.drawn_groups:
            what["batches"] = "drawn"
        if self.clips.requests is not None:
            what["requests"] = self.clips.requests.fingerprint()
        if self.measures.codebook:
            what["codebook"] = True
        return ClipTable(candidate.folder / "measured" / f"seed{seed}", what)

    def real_table(self, selection: Selection) -> ClipTable:
        """Features of real clips, shared by all evaluations of the same clips, pixels and network."""
        what = {"protocol": self._scoring(), "clips": selection.fingerprint(), "features": self._network()}
        key = json_digest(what)[:24]
        return ClipTable(cache_folder() / "real" / key, what)

    @torch.no_grad()
    def _measure_outputs(self, candidates: Sequence[Candidate], seed: int) -> None:
        protocol, conditioning = self.clips.protocol, self.clips.conditioning
        tables = [self.output_table(candidate, seed) for candidate in candidates]
        done = [table.done() for table in tables]
        real = self._originals()
        known = set() if real is None else real.done()
        what = "samples" if protocol.sampler_seeds == 1 else f"samples of seed {seed}"
        with _flushed([*tables, real]), self._bar(what, parts := self._share(len(conditioning), done)) as bar:
            for positions, batch in self._load(conditioning, parts, with_video=self.clips.shows_frames):
                seeds = noise.sample_seeds(protocol.seed, f"sampler {seed}", positions).to(self.device)
                original = as_scored(batch["video"], protocol) if self.clips.shows_frames else None
                shown = self._shown(batch)
                for candidate, table, measured in zip(candidates, tables, done, strict=True):
                    if not measured.issuperset(positions.tolist()):
                        bar.set_postfix_str(candidate.title)
                        output = candidate.model(shown, seeds)
                        spec = output.spec or candidate.model.spec
                        table.add(positions, self._columns(output, original, spec))
                        if seed == 0:
                            self._keep_examples(candidate.folder, positions, output.video)
                if real is not None and original is not None and not known.issuperset(positions.tolist()):
                    real.add(positions, {"features": self._extract(original)})
                bar.update(len(positions))

    @torch.no_grad()
    def _measure_real(self, selection: Selection, what: str) -> None:
        table = self.real_table(selection)
        parts = self._share(len(selection), [table.done()])
        with _flushed([table]), self._bar(what, parts) as bar:
            for positions, batch in self._load(selection, parts, with_video=True):
                table.add(positions, {"features": self._extract(as_scored(batch["video"], self.clips.protocol))})
                bar.update(len(positions))

    def _shown(self, batch: Batch) -> Batch:
        """The batch with the frames that the task shows."""
        if self.clips.shows_frames and self.clips.protocol.task == "prediction":
            return {**batch, "video": batch["video"][:, :, : self.clips.protocol.condition_frames]}
        return batch

    def _originals(self) -> ClipTable | None:
        """Features of the real clips, where these pass through the models anyway."""
        passed = self.clips.shows_frames and self.clips.requests is None
        return self.real_table(self.clips.real) if passed and self.features is not None else None

    def _columns(self, output: Output, original: Tensor | None, spec: TokenizerSpec | None) -> dict[str, Tensor]:
        """Measurements of outputs, beside the original clips (as scored) where the task shows these."""
        video, tokens, protocol = (
            as_scored(output.video.to(self.device), self.clips.protocol),
            output.tokens,
            self.clips.protocol,
        )
        columns = {}
        if self.features is not None:
            columns["features"] = self._extract(video)
        if original is not None:
            columns |= {m.name: in_parts(m.to(self.device).score, video, original).double() for m in self.fidelity}
        if tokens is not None and spec is not None:
            columns["tokens per clip"] = tokens.keep.sum((1, 2))
            columns["bits per clip"] = spec.clip_bits(tokens)
            if protocol.frames is not None:
                columns[BLOCKS] = tokens.lengths
            if self.measures.codebook and tokens.codes is not None:
                columns[CODES] = torch.where(tokens.keep, tokens.codes, -1).int()
        return {**columns, **output.measured}

    def _extract(self, video: Tensor) -> Tensor:
        """Scored pixels (B, 3, T, H, W) -> (B, num_features). A GPU computes them in a stream of their own, while the
        next clips are loaded or sampled; `ClipTable.flush` waits for them."""
        assert self.features is not None
        video = as_seen(video, self.clips.protocol)
        self.features.check(video)
        if self._aside is not None:
            self._aside.wait_stream(torch.cuda.current_stream(self.device))
            video.record_stream(self._aside)
        with torch.cuda.stream(self._aside):  # None: no stream
            return in_parts(self.features, video)

    def _share(self, count: int, done: Sequence[set[int]]) -> list[Tensor]:
        """This process's batches of `count` positions, without those that all tables have `done`.

        Batches are the same for any number of processes and after any interruption. The process of a batch does not
        depend on `done`, which processes read at different moments.
        """
        execution = self.execution
        drawn = execution.drawn_groups
        order = noise.permutation(self.clips.protocol.seed, "groups", count) if drawn else torch.arange(count)
        share = torch.split(order, self.batch_size)[execution.rank :: execution.world_size]
        return [part for part in share if not all(positions.issuperset(part.tolist()) for positions in done)]

    def _load(
        self, selection: Selection | ClassRequests, parts: Sequence[Tensor], *, with_video: bool
    ) -> Iterator[tuple[Tensor, Batch]]:
        """Positions (B,) and their clips, or only their classes."""
        if with_video and isinstance(selection, Selection):
            batches = selection.load(parts, workers=self.execution.workers, device=self.device)
        else:
            labels = selection.labels()
            batches = ({"label": labels[part].to(self.device)} for part in parts)
        for part, batch in zip(parts, batches, strict=True):
            yield part, {**batch, "position": part}

    def _bar(self, what: str, parts: Sequence[Tensor]) -> tqdm[NoReturn]:
        return tqdm(total=sum(map(len, parts)), desc=what, unit="clip", disable=self.execution.rank != 0)

    def _keep_examples(self, folder: Path, positions: Tensor, video: Tensor) -> None:
        for position, clip in zip(positions.tolist(), video, strict=True):
            if position < self.measures.examples:
                write_video(folder / "samples" / f"{position:04d}.mp4", to_uint8(clip).cpu(), fps=25)

    def _scoring(self) -> dict[str, Any]:
        """Fields of the protocol that the features of a clip depend on."""
        fields = asdict(self.clips.protocol)
        found = {key: fields[key] for key in ("frames", "resolution", "resize", "scored_resolution", "quantize")}
        return found | {key: fields[key] for key in ("feature_resolution", "feature_frames") if fields[key]}

    def _network(self) -> str:
        return "" if self.features is None else f"{self.features.name} {self.features.weights}"


def in_parts(measure: Callable[..., Tensor], *videos: Tensor) -> Tensor:
    """A measure of clips (B, 3, T, H, W), a few at a time: a group with one budget may be large."""
    return torch.cat([measure(*parts) for parts in zip(*(torch.split(v, _PART) for v in videos), strict=True)])


@contextmanager
def _flushed(tables: Sequence[ClipTable | None]) -> Iterator[None]:
    """Writes the rows of all tables at the end, also of an interruption."""
    try:
        yield
    finally:
        for table in tables:
            if table is not None:
                table.flush()


def _check_features(features: FeatureNetwork, clips: EvaluationClips) -> None:
    count, protocol = len(clips.real), clips.protocol
    if count < 2:
        raise ValueError(f"a Frechet distance needs at least 2 clips, got {count}: compare more, or features none")
    side = protocol.scored_resolution or protocol.resolution
    if protocol.frames is not None:
        features.check(torch.empty(1, 3, protocol.frames, side, side, device="meta"))
