"""Sample from an autoregressive model and score the samples: accelerate launch recipes/generate.py CONFIG.yaml [...]

A model of classes gives samples of every class; a model of frame prediction continues held-out clips. Any number of
processes samples and scores. A run that was killed goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genvid import config as configuration
from genvid import noise
from genvid.ar.classes import class_names
from genvid.ar.draft import DraftHeads
from genvid.ar.row_model import RowModel
from genvid.batch import Batch
from genvid.checkpoint import fingerprint, load_model, model_name, resolve
from genvid.command import command
from genvid.data.dataset import VideoData
from genvid.data.loader import one_pass
from genvid.device import device
from genvid.eval.evaluation import Candidate, Evaluation, Execution, Measures, Output
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.features.classifier import VideoClassifier
from genvid.eval.features.loading import ClassifierFeatures, load_features
from genvid.eval.metrics.frechet import FEWEST_REAL, frechet_name
from genvid.eval.pages.page import Page
from genvid.eval.protocols import check_held_out, data_protocol
from genvid.eval.report import Number, Provenance, Report
from genvid.eval.selection import ClassRequests, EvaluationClips, Selection
from genvid.eval.summary import Summary
from genvid.files import json_digest
from genvid.generation.budget import BudgetConfig, groups, with_budget
from genvid.generation.engine.scheduler import Engine
from genvid.generation.folder import SampleFolder, SampleWriter, fill
from genvid.generation.pipeline import Generated, Job, check_match, class_job, prediction_job
from genvid.generation.sampler import SamplingConfig
from genvid.precision import PRECISIONS, Precision
from genvid.provenance import class_numbers
from genvid.recipes.samples_page import Samples, add_samples
from genvid.tokenizer.adaptok.loading import AllocatedTokenizer
from genvid.tokens import BlockTokens, TokenizerSpec
from genvid.tokens.coding import decode
from genvid.train.accelerator import make_state


@dataclass(frozen=True, kw_only=True)
class GenerationRun:
    """Models, sampling settings, and the real clips that samples are compared with."""

    output_dir: str
    model: str
    tokens: AllocatedTokenizer
    """The tokenizer, and the rule that cuts prompts of frame prediction."""
    classifier: str
    """Trained on real clips: gives the class of a sample, and the features of the Frechet distance."""
    data: VideoData
    """Real, held-out clips."""
    draft: str | None = None
    """Draft heads of the model (task `ar_draft`): the same distribution in fewer steps."""
    features: str | None = None
    """Feature network of another Frechet distance: a file or a model folder."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """Token budget of the generated blocks."""
    count: int = 128
    balanced: bool = True
    """Every class as often as any other; false: as often as among the real clips, whose distance it then is."""
    slots: int = 64
    """Rows in flight: memory and speed, not results."""
    precision: Precision = "fp32"
    """Of the autoregressive model, on any device, as in `genvid sample` and `genvid evaluate`."""
    batch_size: int = 64
    """Clips decoded and classified at a time: memory, not results."""
    seed: int = 0
    format: str = "mp4"
    """Files of the samples: mp4, npz or png."""
    fps: float = 8.0
    workers: int = 2
    protocol: str = "samples against clips of the source"

    def __post_init__(self) -> None:
        configuration.check_counts(self, "count", "slots", "batch_size")
        check_held_out(self.protocol, self.data)


SHOWN = 128
"""First samples that are shown on the page."""
SCORED = 16
"""Clips scored at a time."""
PROMPTS = 16
"""Prompts that are read and encoded at a time: fixed, because their allocator shares its budget among them."""
CONTINUED = "generated tokens per clip"
"""Name of the number of `continued`."""
FEATURES = "video classifier of the same data"
"""Name of the feature network of the distance."""


class GenerationSession:
    """A run with its models, data and folder open, after all checks."""

    def __init__(self, run: GenerationRun) -> None:
        self.run, self.state = run, make_state()
        model, classifier = load_model(run.model, RowModel), load_model(run.classifier, VideoClassifier)
        self.model, self.classifier = model.to(device()), classifier.to(device())
        self.dataset = run.data.open()
        self.dataset.strict = True  # another clip in the place of one that fails would be another set
        self.tokenizer, self.allocator, _ = run.tokens.build(run.data.clip.frames, device())
        check_match(model, self.tokenizer)
        self.draft = None if run.draft is None else load_model(run.draft, DraftHeads)
        classes = self.dataset.classes
        self.classified = torch.tensor(class_numbers(classifier.folder, classifier.origin.classes, classes))
        """Number in the classifier of each class of the data."""
        self.sampled = self.classified
        """Number in the autoregressive model of each class of the data."""
        if not self.context_frames:
            self.sampled = torch.tensor(class_numbers(model.folder, class_names(model), classes))
        drawn = noise.permutation(run.seed, "prompts", len(self.dataset))[: run.count]
        self.prompts = drawn.sort().values.tolist() if self.context_frames else []
        """Items of the held-out clips that are continued, drawn among all of them."""
        if 0 < len(self.prompts) < run.count and self.state.is_main_process:
            print(f"{len(self.prompts)} clips can be continued, so there are as many samples, not {run.count}")
        self.labels = torch.tensor(self.dataset.source.labels)[self.prompts]
        if not self.context_frames:
            self.labels = self._classes()
        self._check_counts()
        own = ClassifierFeatures(self.classifier, FEATURES, fingerprint(resolve(run.classifier)))
        self.evaluation = self._evaluation(own)
        self.by_features = None if run.features is None else self._evaluation(load_features(run.features))
        self.fingerprint = fingerprint(resolve(run.tokens.tokenizer))
        self.about = self._about()
        self.folder = SampleFolder(Path(run.output_dir) / "samples", self.about, part=self.state.process_index)
        maker = model_name(run.tokens.tokenizer), self.fingerprint
        self.writer = SampleWriter(maker, self.tokenizer.spec, run.fps, run.format)

    def _about(self) -> dict[str, Any]:
        """Settings that the samples depend on."""
        run = self.run
        about = {"model": fingerprint(resolve(run.model)), "tokenizer": self.fingerprint, "seed": run.seed}
        about["precision"] = run.precision
        if run.draft is not None:
            about["draft"] = fingerprint(resolve(run.draft))
        chosen = {
            "sampling": run.sampling,
            "budget": run.budget,
            "tokens": run.tokens if self.model.config.context_blocks else None,
            "data": run.data if self.model.config.context_blocks else None,
        }
        about |= {"count": run.count} | {name: configuration.encode(part) for name, part in chosen.items()}
        if self.prompts:
            about["prompts"] = json_digest(self.prompts)[:16]
        if not run.balanced:
            about["classes"] = json_digest(self.labels.tolist())[:16]
        return about | {"made_from": self._made_from()}

    def _made_from(self) -> dict[str, Any]:
        """Fingerprints of the models and data of the samples (genvid.provenance): paths alone hide changes."""
        prompts = self.run.tokens.made_from() | {"data": self.dataset.describe()}
        return prompts if self.model.config.context_blocks else {"class list": self.dataset.classes}

    def _classes(self) -> Tensor:
        """(N,) class of each sample, for a model of classes."""
        run, count = self.run, torch.arange(self.run.count)
        if run.balanced:
            return count % self.dataset.num_classes
        real = torch.tensor(self.dataset.source.labels).sort().values
        even = real[(count * len(real) + len(real) // 2) // run.count]
        return even[noise.permutation(run.seed, "classes", run.count)]

    @property
    def context_frames(self) -> int:
        return self.tokenizer.spec.longest_clip(self.model.config.context_blocks)

    def _check_counts(self) -> None:
        """ValueError, before anything is sampled, where there are too few clips for a distance and its floor."""
        if self.context_frames and not self.run.balanced:
            raise ValueError("balanced is for samples of classes, and this model continues clips: leave it out")
        real, made = len(self.dataset), len(self.labels)
        if real < FEWEST_REAL or made < 2:
            raise ValueError(
                f"a Frechet distance and its floor need at least {FEWEST_REAL} real clips and 2 samples, "
                f"got {real} and {made}: hold out more videos, or raise count"
            )

    def _evaluation(self, features: FeatureNetwork) -> Evaluation:
        """Of the samples beside the real clips."""
        run, state, frames = self.run, self.state, self.context_frames
        protocol = data_protocol(run.data, run.protocol, "prediction" if frames else "generation", len(self.labels))
        protocol = replace(protocol, seed=run.seed, condition_frames=frames, features=features.name)
        real = Selection(self.dataset, [(index, index) for index in range(len(self.dataset))])
        clips = EvaluationClips(protocol, protocol, real, ClassRequests(self.labels.tolist()))
        execution = Execution(
            SCORED, workers=run.workers, device=device(), rank=state.process_index, world_size=state.num_processes
        )
        return Evaluation(clips, Measures(features, examples=0), execution)

    def real(self, items: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Held-out clips in batches, read as they are needed."""
        return one_pass(self.dataset, batch_size=batch_size, items=items, workers=self.run.workers, device=device())

    def sample(self) -> None:
        """Sample the missing videos, each process its part."""
        done = self.folder.samples()
        self.state.wait_for_everyone()  # all list the missing videos before any of them adds one
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
        slots = min(run.slots, len(job.requests))
        engine = Engine(self.model, run.sampling, slots=slots, dtype=PRECISIONS[run.precision], draft=self.draft)
        job = replace(job, requests=with_budget(engine, job.requests, run.budget))
        missing = [group for group in groups(job.requests) if not done.issuperset(group)]
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
            job.only(numbers),
            numbers=numbers,
            conditions=conditions,
            batch_size=run.batch_size,
            quiet=not state.is_main_process,
        )
        if engine.slots.most > 1 and state.is_main_process:
            steps = f"{engine.row_steps / len(numbers):.1f} steps a video"
            print(f"{engine.tokens / engine.row_steps:.2f} tokens a step, {steps}")

    def decoded(self, numbers: Sequence[int]) -> Generated:
        """Samples of the folder, decoded from their tokens."""
        spec = self.tokenizer.spec
        parts = [self.folder.tokens(number, spec, tokenizer=self.fingerprint) for number in numbers]
        tokens = BlockTokens.concatenate(parts)
        return Generated(decode(self.tokenizer, tokens.to(device()), self.run.batch_size).float(), tokens)

    def shown(self) -> tuple[Generated, Tensor]:
        """The first samples, and the real clips that they continue (none where they continue none); on the CPU."""
        made = self.decoded(range(min(len(self.labels), SHOWN)))
        real = [batch["video"].cpu() for batch in self.real(self.prompts[:SHOWN], self.run.batch_size)]
        return Generated(made.videos.cpu(), made.tokens), torch.cat(real) if real else made.videos[:0].cpu()


class FolderSamples:
    """A `VideoModel`: the finished samples of a run."""

    def __init__(self, session: GenerationSession) -> None:
        self.session = session
        self.spec: TokenizerSpec | None = session.tokenizer.spec

    def describe(self) -> Mapping[str, Any]:
        return self.session.about

    def __call__(self, conditioning: Batch, seeds: Tensor, /) -> Output:
        made = self.session.decoded(conditioning["position"].tolist())
        return Output(made.videos, made.tokens)


def generate(run: GenerationRun) -> Samples:
    """Sample and score, in any number of processes."""
    session = GenerationSession(run)
    session.sample()
    report = score(session)
    generated, real = session.shown()
    labels, classes = session.labels[:SHOWN], session.dataset.classes
    return Samples(generated, labels, real, classes, session.context_frames, report)


def score(session: GenerationSession) -> Report:
    """Frechet distance and its floor, agreement with the class, and tokens spent."""
    run, evaluation = session.run, session.evaluation
    weights = {"model": run.model, "tokenizer": run.tokens.tokenizer, "classifier": run.classifier}
    weights |= {} if run.draft is None else {"draft": run.draft}
    prints = {role: fingerprint(resolve(folder)) for role, folder in weights.items()}
    title = "frame prediction" if session.context_frames else "class-conditional"
    candidate = Candidate(title, FolderSamples(session), Path(run.output_dir))
    evaluation.measure(candidate)
    session.state.wait_for_everyone()
    summary = Summary(evaluation, candidate)
    report = summary.report(Provenance.now(prints))
    return replace(
        report, numbers=[*report.numbers, *continued(session), *distances(session), *agreement(session, summary)]
    )


def continued(session: GenerationSession) -> list[Number]:
    """The mean number of tokens after the context, which budgets count; nothing for samples of classes."""
    if not session.context_frames:
        return []
    context, protocol = session.model.config.context_blocks, session.evaluation.clips.protocol
    spent = [sum(line["tokens"][context:]) for line in session.folder.samples().values()]
    return [Number(CONTINUED, sum(spent) / len(spent), protocol, len(spent))]


def distances(session: GenerationSession) -> list[Number]:
    """The Frechet distances of `features`; none where no network is named."""
    evaluation = session.by_features
    if evaluation is None or evaluation.features is None:
        return []
    candidate = Candidate("samples", FolderSamples(session), Path(session.run.output_dir) / "features")
    evaluation.measure(candidate)
    session.state.wait_for_everyone()
    numbers = Summary(evaluation, candidate).report(Provenance.now({})).numbers
    return [number for number in numbers if number.name.startswith(frechet_name(evaluation.features))]


@torch.no_grad()
def agreement(session: GenerationSession, summary: Summary) -> list[Number]:
    """The part of samples and of real clips that the classifier puts into their class, with the counts of both."""
    clips, head = summary.clips, session.classifier.head

    def share(features: Tensor, labels: Tensor) -> float:
        found = head(features.to(head.weight)).argmax(-1).cpu()
        return float((found == session.classified[labels]).double().mean())

    real, count = len(clips.real), len(clips.conditioning)
    asked = share(summary.seeds[0]["features"], clips.conditioning.labels())
    truth = share(summary.real_features(clips.real), clips.real.labels())
    return [
        Number("real clips", real, clips.protocol, real),
        Number("generated clips", count, clips.protocol, count),
        Number("class as asked", asked, clips.protocol, count, better="higher"),
        Number("classifier on real clips", truth, clips.protocol, real),
    ]


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
    add_samples(page.section(samples.report.title), samples, per_class=8, fps=run.fps, capacity=capacity)
    print(f"wrote {page.write(folder / 'page.html')}")


if __name__ == "__main__":
    main(sys.argv[1:])
