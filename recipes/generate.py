"""Sample from an autoregressive model and score the samples: accelerate launch recipes/generate.py CONFIG.yaml [...]

A model of classes gives samples of every class; a model of frame prediction continues held-out clips. Any number of
processes samples; one of them scores. A run that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genvid import config as configuration
from genvid import noise
from genvid.ar.classes import class_names
from genvid.ar.model import RowModel
from genvid.batch import Batch
from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.command import command
from genvid.data.clips import to_uint8
from genvid.data.dataset import VideoData
from genvid.data.loader import one_pass
from genvid.data.video import video_bytes
from genvid.device import device
from genvid.eval.features.classifier import VideoClassifier
from genvid.eval.features.loading import ClassifierFeatures
from genvid.eval.generation import ClassAccuracy, evaluate_generation
from genvid.eval.metrics.frechet import FEWEST_REAL
from genvid.eval.pages.page import Clip, Page, Section
from genvid.eval.protocols import check_held_out, data_protocol
from genvid.eval.report import Number, Provenance, Report
from genvid.generation.budget import BudgetConfig, groups, with_budget
from genvid.generation.engine.scheduler import PRECISIONS, Engine, Precision
from genvid.generation.folder import SampleFolder, SampleWriter, fill
from genvid.generation.pipeline import Generated, Job, check_match, class_job, prediction_job
from genvid.generation.sampler import SamplingConfig
from genvid.provenance import class_numbers
from genvid.tokenizer.adaptok.loading import AllocatedTokenizer
from genvid.tokens import BlockTokens
from genvid.tokens.coding import decode
from genvid.train.accelerator import make_state


@dataclass(frozen=True, kw_only=True)
class GenerationRun:
    """What is sampled, how, and what the samples are compared with."""

    output_dir: str
    model: str
    tokens: AllocatedTokenizer
    """The tokenizer, and the rule that cuts prompts of frame prediction."""
    classifier: str
    """Trained on real clips: judges the class, and its features are those of the Frechet distance."""
    data: VideoData
    """Real, held-out clips."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """What the generated blocks may cost."""
    count: int = 128
    slots: int = 64
    """Rows in flight: memory and speed, not results."""
    precision: Precision = "fp32"
    """Of the autoregressive model, on any device, as in `genvid sample` and `genvid evaluate`."""
    batch_size: int = 64
    """Clips decoded and judged at a time: memory, not results."""
    seed: int = 0
    format: str = "mp4"
    """Files of the samples: mp4, npz or png."""
    fps: float = 8.0
    workers: int = 2
    protocol: str = "samples against clips of the source"

    def __post_init__(self) -> None:
        check_held_out(self.protocol, self.data)


SHOWN = 128
"""First samples of a process that are kept as videos, for the page."""
PROMPTS = 16
"""Prompts that are read and encoded at a time: fixed, because they share what their allocator may spend."""


@dataclass(frozen=True)
class Samples:
    """The first generated clips, with the real ones that they continue, and the report of all."""

    generated: Generated
    labels: Tensor
    real: Tensor
    """Empty where the model generates classes."""
    classes: list[str]
    context_frames: int
    report: Report


class GenerationSession:
    """A run with its models, data and folder open: everything that can be wrong has been looked at."""

    def __init__(self, run: GenerationRun) -> None:
        self.run, self.state = run, make_state()
        model, classifier = load_model(run.model, RowModel), load_model(run.classifier, VideoClassifier)
        self.model, self.classifier = model.to(device()), classifier.to(device())
        self.dataset = run.data.open()
        self.dataset.strict = True  # another clip in the place of one that fails would be another set
        self.real_labels = torch.tensor(self.dataset.source.labels)
        self.tokenizer, self.allocator, _ = run.tokens.build(run.data.clip.frames, device())
        check_match(model, self.tokenizer)
        classes = self.dataset.classes
        self.judged = torch.tensor(class_numbers(classifier.folder, classifier.origin.classes, classes))
        """Number in the classifier of each class of the data."""
        self.sampled = self.judged
        """Number in the autoregressive model of each class of the data."""
        if not self.context_frames:
            self.sampled = torch.tensor(class_numbers(model.folder, class_names(model), classes))
        drawn = noise.permutation(run.seed, "prompts", len(self.dataset))[: run.count]
        self.prompts = drawn.sort().values.tolist() if self.context_frames else []
        """Items of the held-out clips that are continued, drawn among all of them."""
        self.labels = (
            self.real_labels[self.prompts]
            if self.context_frames
            else torch.arange(run.count) % self.dataset.num_classes
        )
        self._check_counts()
        self.fingerprint = fingerprint(resolve(run.tokens.tokenizer))
        self.folder = SampleFolder(Path(run.output_dir) / "samples", self._about(), part=self.state.process_index)
        self.writer = SampleWriter(self.fingerprint, model.layout.codebook_size, run.fps, run.format)

    def _about(self) -> dict[str, Any]:
        """What the samples depend on."""
        run = self.run
        about = {"model": fingerprint(resolve(run.model)), "tokenizer": self.fingerprint, "seed": run.seed}
        about["precision"] = run.precision
        chosen = {
            "sampling": run.sampling,
            "budget": run.budget,
            "tokens": run.tokens if self.model.config.context_blocks else None,
            "data": run.data if self.model.config.context_blocks else None,
        }
        about |= {"count": run.count} | {name: configuration.encode(part) for name, part in chosen.items()}
        if self.prompts:
            about["prompts"] = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()[:16]
        return about | {"made_from": self._made_from()}

    def _made_from(self) -> dict[str, Any]:
        """Records of what the samples depend on (genvid.provenance), where the paths in `_about` may hide a change."""
        prompts = self.run.tokens.made_from() | {"data": self.dataset.describe()}
        return prompts if self.model.config.context_blocks else {"class list": self.dataset.classes}

    @property
    def context_frames(self) -> int:
        return self.model.config.context_blocks * self.tokenizer.spec.frames_per_block

    def _check_counts(self) -> None:
        """ValueError, before anything is sampled, where there are too few clips for a distance and its floor."""
        real, made, processes = len(self.real_labels), len(self.labels), self.state.num_processes
        if real < FEWEST_REAL or made < 2:
            raise ValueError(
                f"a Frechet distance and its floor need at least {FEWEST_REAL} real clips and 2 samples, "
                f"got {real} and {made}"
            )
        for count in (real, made):
            if count <= (processes - 1) * -(-count // processes):
                raise ValueError(f"{count} clips are too few to be scored by {processes} processes")

    def real(self, items: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Held-out clips in batches, read as they are needed."""
        return one_pass(self.dataset, batch_size=batch_size, items=items, workers=self.run.workers, device=device())

    def sample(self) -> None:
        """Fill the folder, each process its part of what is missing."""
        done = self.folder.samples()
        self.state.wait_for_everyone()  # all have seen what is missing before any of them adds to it
        if not all(number in done for number in range(len(self.labels))):
            self._fill(self._job(), set(done))
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            self.folder.finish()
        self.state.wait_for_everyone()

    def _job(self) -> Job:
        count = len(self.labels)
        seeds = noise.sample_seeds(self.run.seed, "samples", torch.arange(count))
        if not self.context_frames:
            return class_job(self.model, self.sampled[self.labels], seeds)
        parts = [
            prediction_job(self.model, self.tokenizer, self.allocator, batch["video"][:, :, : self.context_frames], own)
            for batch, own in zip(self.real(self.prompts, PROMPTS), torch.split(seeds, PROMPTS), strict=True)
        ]
        return Job([request for part in parts for request in part.requests], parts[0].unpack)

    def _fill(self, job: Job, done: set[int]) -> None:
        run, state, labels = self.run, self.state, self.labels
        dtype = PRECISIONS[run.precision]
        engine = Engine(self.model, run.sampling, slots=min(run.slots, len(job.requests)), dtype=dtype)
        requests = with_budget(engine, job.requests, run.budget)
        missing = [group for group in groups(requests) if not done.issuperset(group)]
        numbers = [number for group in missing[state.process_index :: state.num_processes] for number in group]
        if not numbers:
            return
        budget = run.budget.tokens_per_video or run.budget.total
        conditions = [
            {"class": self.dataset.classes[int(labels[number])], "label": int(labels[number]), "budget": budget}
            for number in numbers
        ]
        fill(
            self.folder,
            self.writer,
            engine,
            self.tokenizer,
            Job([requests[number] for number in numbers], lambda i, row: job.unpack(numbers[i], row)),
            numbers=numbers,
            conditions=conditions,
            batch_size=run.batch_size,
            quiet=not state.is_main_process,
        )

    def part(self, count: int) -> slice:
        """The part of `count` clips that this process scores: metrics join the parts."""
        share = -(-count // self.state.num_processes)
        start = self.state.process_index * share
        return slice(start, min(start + share, count))

    def made(self, chosen: slice) -> Iterator[Generated]:
        """Samples of the folder in batches, decoded from their tokens as they are needed."""
        spec, size = self.tokenizer.spec, self.run.batch_size
        for start in range(chosen.start, chosen.stop, size):
            numbers = range(start, min(start + size, chosen.stop))
            parts = [self.folder.tokens(number, spec, tokenizer=self.fingerprint) for number in numbers]
            tokens = BlockTokens.concatenate(parts)
            yield Generated(decode(self.tokenizer, tokens.to(device()), size).float(), tokens)

    def shown(self, chosen: slice) -> tuple[Generated, Tensor]:
        """The first samples of a part, and the real clips that they continue (none where they continue none)."""
        first = slice(chosen.start, min(chosen.stop, chosen.start + SHOWN))
        made = list(self.made(first))
        videos = torch.cat([part.videos.cpu() for part in made])
        real = [batch["video"].cpu() for batch in self.real(self.prompts[first], self.run.batch_size)]
        tokens = BlockTokens.concatenate([part.tokens for part in made])
        return Generated(videos, tokens), torch.cat(real) if real else videos[:0]


def generate(run: GenerationRun) -> Samples:
    """Sample and score. Each of several processes has its own part of the samples, and the report of all."""
    session = GenerationSession(run)
    session.sample()
    ours, frames = session.part(len(session.labels)), session.context_frames
    numbers = score(session, ours, session.part(len(session.real_labels)))
    weights = {"model": run.model, "tokenizer": run.tokens.tokenizer, "classifier": run.classifier}
    provenance = Provenance.now({role: fingerprint(resolve(folder)) for role, folder in weights.items()})
    report = Report("frame prediction" if frames else "class-conditional", numbers, provenance)
    generated, real = session.shown(ours)
    return Samples(generated, session.labels[ours][:SHOWN], real, session.dataset.classes, frames, report)


@torch.no_grad()
def score(session: GenerationSession, ours: slice, held_out: slice) -> list[Number]:
    """Frechet distance and its floor, agreement with the class, and tokens spent, over all processes.

    This process scores the samples `ours` and the real clips `held_out`, a batch at a time.
    """
    run, classifier, frames = session.run, session.classifier, session.context_frames
    features, count, real = ClassifierFeatures(classifier, FEATURES), len(session.labels), len(session.real_labels)
    protocol = replace(
        data_protocol(run.data, run.protocol, "prediction" if frames else "generation", count),
        seed=run.seed,
        condition_frames=frames,
        features=features.name,
    )
    agreement, truth = ClassAccuracy(classifier), ClassAccuracy(classifier)
    labels = torch.split(session.judged[session.labels[ours]].to(device()), run.batch_size)
    made = zip((part.videos for part in session.made(ours)), labels, strict=True)
    clips = (
        (batch["video"], session.judged.to(device())[batch["label"]])
        for batch in session.real(range(held_out.start, held_out.stop), run.batch_size)
    )
    distances = evaluate_generation(
        truth.counted(clips), agreement.counted(made), features=features, protocol=protocol, start=held_out.start
    )
    frechet, floor, *_ = distances
    tokens = sum(sum(line["tokens"]) for line in session.folder.samples().values()) / count
    halves = protocol.adapted(count=real // 2)
    return [
        Number(frechet, distances[frechet], protocol, count, better="lower"),
        Number(floor, distances[floor], halves, real // 2),
        Number("real clips", real, protocol, real),
        Number("generated clips", count, protocol, count),
        Number("class as asked", agreement.compute()["class as asked"], protocol, count, better="higher"),
        Number("classifier on real clips", truth.compute()["class as asked"], protocol, real),
        Number("tokens per clip", tokens, protocol, count),
    ]


FEATURES = "video classifier of the same data"
"""Name of the feature network of the distance."""


def add_to_page(section: Section, samples: Samples, *, per_class: int, fps: float, capacity: int) -> None:
    """Samples per class, or predictions beside the truth."""
    scale = max(1, 128 // samples.generated.videos.shape[-1])
    section.numbers([samples.report])

    def clip(row: int) -> Clip:
        video = video_bytes(to_uint8(samples.generated.videos[row]), fps, scale=scale)
        return Clip(video, "", samples.generated.tokens.lengths[row].tolist(), capacity)

    if samples.context_frames:
        rows = {}
        for row in range(min(per_class, len(samples.labels))):
            truth = Clip(video_bytes(to_uint8(samples.real[row]), fps, scale=scale))
            rows[f"{samples.classes[int(samples.labels[row])]} ({row})"] = [truth, clip(row)]
        section.comparison(["truth", f"predicted from {samples.context_frames} frames"], rows)
        return
    for label, name in enumerate(samples.classes):
        chosen = (samples.labels == label).nonzero().flatten()[:per_class].tolist()
        if chosen:
            section.heading(name).clips([clip(row) for row in chosen])


@command
def main(argv: Sequence[str]) -> None:
    usage = "accelerate launch recipes/generate.py CONFIG.yaml [--key value ...]"
    run = configuration.parse(GenerationRun, argv, usage=usage)
    samples = generate(run)
    if not make_state().is_main_process:
        return
    folder = Path(run.output_dir)
    samples.report.save(folder / "report.json")
    page = Page("Samples", lead=run.protocol)
    capacity = samples.generated.tokens.keep.shape[-1]
    add_to_page(page.section(samples.report.title), samples, per_class=8, fps=run.fps, capacity=capacity)
    page.write(folder / "page.html")
    print(f"wrote {folder / 'page.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
