"""Samples of a model, and their section of a page."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from genvid.data.clips import to_uint8
from genvid.data.video import video_bytes
from genvid.eval.pages.page import Clip, Section
from genvid.eval.report import Report
from genvid.generation.pipeline import Generated


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


def add_samples(section: Section, samples: Samples, *, per_class: int, fps: float, capacity: int) -> None:
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
