"""Sample from an autoregressive model and score the samples: python recipes/generate.py CONFIG.yaml [...]

A model of classes gives samples of every class; a model of frame prediction continues held-out clips. One process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from genvid import config as configuration
from genvid import noise
from genvid.ar.model import RowModel
from genvid.checkpoint import fingerprint, load_model, resolve
from genvid.data.clips import to_uint8
from genvid.data.loader import one_pass
from genvid.data.video import video_bytes
from genvid.eval.classifier import VideoClassifier
from genvid.eval.features import ClassifierFeatures
from genvid.eval.generation import class_accuracy, evaluate_generation
from genvid.eval.page import Clip, Page, Section
from genvid.eval.protocols import Protocol
from genvid.eval.report import Number, Provenance, Report
from genvid.generation.pipeline import Generated, generate_classes, predict_frames
from genvid.generation.sampler import SamplingConfig
from genvid.recipes.allocated import AllocatedTokenizer
from genvid.recipes.command import command
from genvid.recipes.loading import WINDOWS, VideoData, device


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
    count: int = 128
    batch_size: int = 64
    seed: int = 0
    workers: int = 2
    protocol: str = "samples against held-out clips"


@dataclass(frozen=True)
class Samples:
    """Generated clips beside the real ones that they are compared with."""

    generated: Generated
    labels: Tensor
    real: Tensor
    real_labels: Tensor
    classes: list[str]
    context_frames: int
    report: Report


@torch.no_grad()
def generate(run: GenerationRun) -> Samples:
    """Sample and score."""
    model, classifier = load_model(run.model), load_model(run.classifier)
    if not isinstance(model, RowModel):
        raise ValueError(f"{run.model} holds a {model.model_type} model, but an autoregressive one is needed")
    if not isinstance(classifier, VideoClassifier):
        raise ValueError(f"{run.classifier} holds a {classifier.model_type} model, but a video classifier is needed")
    model, classifier = model.to(device()), classifier.to(device())
    dataset = run.data.open()
    loaded = list(one_pass(dataset, batch_size=run.batch_size, workers=run.workers))
    real, real_labels = torch.cat([b["video"] for b in loaded]), torch.cat([b["label"] for b in loaded])
    context_blocks = model.config.context_blocks
    labels = real_labels[: run.count] if context_blocks else torch.arange(run.count) % dataset.num_classes
    tokenizer, allocator, _ = run.tokens.build(run.data.clip.frames)
    context_frames = context_blocks * tokenizer.spec.frames_per_block
    seeds = noise.sample_seeds(run.seed, "samples", torch.arange(len(labels)))
    with tqdm(total=len(labels), desc="sampling", unit="video") as bar:

        def progress(done: int, _: int) -> None:
            bar.update(done - bar.n)

        if context_frames:
            prompts = real[: run.count, :, :context_frames]
            made = predict_frames(
                model, tokenizer, allocator, prompts, seeds, run.sampling, batch_size=run.batch_size, progress=progress
            )
        else:
            made = generate_classes(
                model, tokenizer, labels, seeds, run.sampling, batch_size=run.batch_size, progress=progress
            )
    numbers = score(run, classifier, made, labels, real, real_labels, context_frames)
    weights = {"model": run.model, "tokenizer": run.tokens.tokenizer, "classifier": run.classifier}
    provenance = Provenance.now({role: fingerprint(resolve(folder)) for role, folder in weights.items()})
    title = "frame prediction" if context_frames else "class-conditional"
    report = Report(title, numbers, provenance)
    return Samples(made, labels, real, real_labels, dataset.classes, context_frames, report)


def score(
    run: GenerationRun,
    classifier: VideoClassifier,
    made: Generated,
    labels: Tensor,
    real: Tensor,
    real_labels: Tensor,
    context_frames: int,
) -> list[Number]:
    """Frechet distance and its floor, agreement with the class, and tokens spent."""
    features, clip = ClassifierFeatures(classifier, "video classifier of the same data"), run.data.clip
    count = len(made.videos)
    protocol = Protocol(
        name=run.protocol,
        task="prediction" if context_frames else "generation",
        dataset=str(configuration.encode(run.data.source)),
        split="held out",
        frames=clip.frames,
        clips=WINDOWS[clip.window],
        count=count,
        resolution=min(clip.resolution),
        seed=run.seed,
        condition_frames=context_frames,
        features=features.name,
    )

    def parts(tensor: Tensor) -> list[Tensor]:
        return [part.to(device()) for part in torch.split(tensor, run.batch_size)]

    distances = evaluate_generation(parts(real), parts(made.videos), features=features, protocol=protocol)
    frechet = next(iter(distances))
    judged = class_accuracy(classifier, zip(parts(made.videos), parts(labels), strict=True))
    truth = class_accuracy(classifier, zip(parts(real), parts(real_labels), strict=True))
    tokens = float(made.tokens.lengths.sum(1).double().mean())
    return [
        *(
            Number(name, value, protocol, count, better="lower" if name == frechet else "neither")
            for name, value in distances.items()
        ),
        Number("class as asked", judged["class as asked"], protocol, count, better="higher"),
        Number("classifier on real clips", truth["class as asked"], protocol, len(real)),
        Number("tokens per clip", tokens, protocol, count),
    ]


def add_to_page(section: Section, samples: Samples, *, per_class: int, fps: float, capacity: int) -> None:
    """Samples per class, or predictions beside the truth."""
    scale = max(1, 128 // samples.real.shape[-1])
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
        section.text(f"**{name}**").clips([clip(row) for row in chosen])


@command
def main(argv: Sequence[str]) -> None:
    usage = "python recipes/generate.py CONFIG.yaml [--key value ...]"
    run = configuration.parse(GenerationRun, argv, usage=usage)
    samples = generate(run)
    folder = Path(run.output_dir)
    samples.report.save(folder / "report.json")
    page = Page("Samples", lead=run.protocol)
    capacity = samples.generated.tokens.keep.shape[-1]
    add_to_page(page.section(samples.report.title), samples, per_class=8, fps=8, capacity=capacity)
    page.write(folder / "page.html")
    print(f"wrote {folder / 'page.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
