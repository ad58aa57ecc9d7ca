"""`genvid evaluate` and `genvid report`: published protocols by name, and tables of their reports."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from genvid import config as configuration
from genvid.allocation import Allocator
from genvid.allocation.budget import GROUP_SIZE
from genvid.ar.row_model import RowModel
from genvid.checkpoint import load_model, model_name
from genvid.cli.coding import BudgetOptions, open_tokenizer
from genvid.cli.evaluation_options import EvaluateOptions, ReportOptions
from genvid.cli.video_models import PredictedTokens, Sampling, codebook_of, hashes
from genvid.data.sources.base import SourceConfig
from genvid.device import device
from genvid.eval.evaluation import Candidate, Evaluation, Execution, Measures, VideoModel
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.features.loading import WHERE_I3D_IS, load_features, load_i3d
from genvid.eval.features.mirrored import mirrored
from genvid.eval.metrics.fidelity import (
    SMALLEST_MS_SSIM,
    ClipFlicker,
    ClipMSSSIM,
    ClipPSNR,
    ClipScore,
    ClipSSIM,
    ClipUniformSSIM,
    MeanPerceptual,
)
from genvid.eval.pages.evaluation_page import comparison_page, evaluation_page
from genvid.eval.protocols import EvaluationProtocol, protocol
from genvid.eval.reconstruction import DECODED, PieceEncoder, Reconstruction, Refinement, SizedReconstruction
from genvid.eval.report import Provenance, Report, compare
from genvid.eval.samples import VideoFiles, open_samples
from genvid.eval.selection import protocol_clips
from genvid.eval.sources import protocol_source, unseen_source
from genvid.eval.summary import Summary
from genvid.generation.pipeline import check_match, trained_allocator, trained_cut
from genvid.perceptual import LPIPS
from genvid.tokenizer.refinement import check_refined, refine_clips
from genvid.tokens import ResizableTokenizer, VideoTokenizer
from genvid.train.accelerator import make_state

SAMPLED = 128
"""Clips sampled at a time: two for each batch slot of the engine, so that another row replaces a finished one."""


def evaluate(options: EvaluateOptions) -> None:
    """Run a published evaluation protocol: one report, or one for each token budget."""
    state, record = make_state(), protocol(options.protocol)
    if options.count is not None:
        record = record.adapted(count=options.count)
    features = _features(options, record)
    models = _models(options, record)
    codebook = codebook_of(options.tokenizer) if options.probe and options.tokenizer is not None else None
    record = _with_frames_of(options, record, models[0])
    if features is not None:
        features = mirrored(features, record.frames)
    evaluation = _evaluation(options, record, features, models[0])
    for model in models:
        if isinstance(model, Sampling | PredictedTokens):
            model.number_classes(evaluation.clips.dataset.classes)
    budgets = [budget.tokens for budget in options.budgets]
    candidates = [_candidate(options, tokens, model) for tokens, model in zip(budgets, models, strict=True)]
    evaluation.measure(*candidates)
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    made_from = {"features": features.weights} if features is not None and features.weights else {}
    reports = []
    for tokens, candidate in zip(budgets, candidates, strict=True):
        summary = Summary(evaluation, candidate, codebook=codebook)
        provenance = Provenance.now({**_weights(candidate.model), **made_from})
        remarks = [*_remarks(candidate.model), *_groups(options, tokens)]
        reports.append(summary.report(provenance, remarks))
        _write(candidate.folder, reports[-1], summary, html=options.html)
    if len(reports) > 1 and options.html:
        comparison_page(reports).write(options.output / "comparison.html")


def _evaluation(
    options: EvaluateOptions, record: EvaluationProtocol, features: FeatureNetwork | None, model: VideoModel
) -> Evaluation:
    """The evaluation of `model` and of others with the same frames."""
    source, unseen, record = _sources(options, record)
    clips = protocol_clips(
        record,
        source,
        features=features,
        test_source=unseen,
        # Samples of another program are one set, of any number of seeds.
        sampler_seeds=1 if options.videos is not None else options.seeds,
        resolution=None if record.any_size else _resolution(model),
        partial=options.partial,
    )
    state = make_state()
    execution = Execution(
        _batch_size(options, model),
        drawn_groups=bool(options.tokens) and not options.published,
        workers=options.workers,
        device=device(),
        rank=state.process_index,
        world_size=state.num_processes,
    )
    return Evaluation(clips, Measures(features, _fidelity(options, model, record), options.probe), execution)


def _candidate(options: EvaluateOptions, tokens: int | None, model: VideoModel) -> Candidate:
    source = options.tokenizer if isinstance(model, PredictedTokens) else options.model or options.tokenizer
    title = options.title or model_name(source or str(options.videos))
    if options.refine:
        title = f"{title}, refined by {options.refine} steps"
    if tokens is None:
        return Candidate(title, model, options.output)
    return Candidate(f"{title} @ {tokens}", model, options.output / f"tokens{tokens}")


def report(options: ReportOptions) -> None:
    """Compare the reports of evaluations in a Markdown table."""
    reports = [Report.load(path) for path in options.reports]
    print(compare(reports))
    if options.html is not None:
        comparison_page(reports).write(options.html)


def _features(options: EvaluateOptions, record: EvaluationProtocol) -> FeatureNetwork | None:
    if options.i3d is not None:
        return load_i3d(options.i3d)
    if options.features == "none" or not record.features:
        return None
    if options.features is None:
        raise ValueError(f"{record.name} needs {record.features}: {WHERE_I3D_IS}, or choose --features")
    return load_features(options.features)


def _sources(
    options: EvaluateOptions, record: EvaluationProtocol
) -> tuple[SourceConfig, SourceConfig | None, EvaluationProtocol]:
    """Real clips, held-out ones where the data set has any, and the protocol with the data set in use."""
    if options.source is None:
        assert options.data is not None
        source = protocol_source(record, options.data, options.lists)
        return source, unseen_source(record, options.data, options.lists), record
    if not options.partial:
        raise ValueError(f"{record.name} is a protocol on {record.dataset}: --source needs --partial")
    data = configuration.read(options.source)
    source = configuration.decode(SourceConfig, data, source=str(options.source))
    dataset, split = options.source.stem, source.split_name()
    return source, None, record.adapted(dataset=dataset, split=split, videos=None, names="")


def _models(options: EvaluateOptions, record: EvaluationProtocol) -> Sequence[VideoModel]:
    """A model for each budget."""
    if options.videos is not None:
        return [open_samples(options.videos, record)]
    assert options.tokenizer is not None
    tokenizer = open_tokenizer(options.tokenizer)
    if record.any_size:
        return [_sized(options, record, tokenizer, budget) for budget in options.budgets]
    if isinstance(tokenizer, ResizableTokenizer):
        with suppress(ValueError):  # of a fixed size: another than the protocol's needs --partial
            tokenizer = tokenizer.at((record.resolution, record.resolution))
    if record.task != "reconstruction":
        return [_sampling(options, record, tokenizer, budget) for budget in options.budgets]
    encoder, refine, models = PieceEncoder(tokenizer), _refinement(options, tokenizer), []
    for budget in options.budgets:
        models.append(Reconstruction(encoder, budget.build(tokenizer), _about(options, budget), refine=refine))
    if options.model is None:
        return models
    predictor = load_model(options.model, RowModel).to(device())
    return [PredictedTokens(model, predictor, hashes(model=options.model)) for model in models]


def _sized(
    options: EvaluateOptions, record: EvaluationProtocol, tokenizer: VideoTokenizer, budget: BudgetOptions
) -> SizedReconstruction:
    """Reconstructions of videos of any frame size; ValueError for a tokenizer of one size."""
    if not isinstance(tokenizer, ResizableTokenizer):
        raise ValueError(f"{record.name} has frames of several sizes, and {options.tokenizer} takes a single one")
    about = _about(options, budget)

    def at(size: tuple[int, int]) -> Reconstruction:
        sized = tokenizer.at(size)
        return Reconstruction(PieceEncoder(sized), budget.build(sized), about, refine=_refinement(options, sized))

    return SizedReconstruction(at, (record.resolution, record.resolution))


def _refinement(options: EvaluateOptions, tokenizer: VideoTokenizer) -> Refinement | None:
    """ValueError for a tokenizer whose tokens cannot be refined."""
    check_refined(tokenizer, options.refine)
    if not options.refine:
        return None
    return lambda video, tokens: refine_clips(tokenizer, video, tokens, options.refine, DECODED)


def _about(options: EvaluateOptions, budget: BudgetOptions) -> dict[str, Any]:
    """Everything that a reconstruction depends on."""
    weights = hashes(tokenizer=options.tokenizer, scorer=options.scorer)
    refined = {"refine": options.refine} if options.refine else {}
    return {**weights, "tokens": budget.tokens, "published": budget.published, **refined}


def _sampling(
    options: EvaluateOptions, record: EvaluationProtocol, tokenizer: VideoTokenizer, budget: BudgetOptions
) -> Sampling:
    assert options.model is not None
    model, task = load_model(options.model, RowModel), record.task
    check_match(model, tokenizer)
    if bool(model.config.context_blocks) != (task == "prediction"):
        raise ValueError(f"{record.name} measures {task}, which {options.model} was not trained for")
    context = _context(options, model, tokenizer, budget) if task == "prediction" else None
    weights = hashes(model=options.model, tokenizer=options.tokenizer, scorer=options.scorer)
    settings = {} if context is None else {"tokens": budget.tokens}
    return Sampling(model.to(device()), tokenizer, options.sampling, weights | settings, context=context)


def _with_frames_of(options: EvaluateOptions, record: EvaluationProtocol, model: VideoModel) -> EvaluationProtocol:
    """The protocol with the frames that the model generates and reads: no more than the fewest frames of a prompt."""
    if not isinstance(model, Sampling):
        return record
    rows, spec = model.model, model.tokenizer.spec
    adapted = record.adapted(frames=rows.video_frames(spec), condition_frames=rows.prompt_frames(spec))
    if adapted != record and not options.partial:
        raise ValueError(f"this would not be {record.name} but '{adapted.name}'; --partial runs it under that name")
    return adapted


def _context(
    options: EvaluateOptions, model: RowModel, tokenizer: VideoTokenizer, budget: BudgetOptions
) -> Allocator | None:
    """The allocator of the prompt, as in the rows that the model was trained on; None: all tokens are kept."""
    cut = budget.build(tokenizer)
    if model.fixed_prompt and cut is not None:
        raise ValueError("published models read their prompt uncut: leave out --scorer, --tokens and --published")
    if cut is None:
        return trained_cut(model, None)
    tokens = trained_allocator(model).get("tokens_per_video")
    if tokens is not None and budget.tokens is not None and abs(budget.tokens - tokens) >= 1:
        raise ValueError(f"{options.model} was trained on clips of {tokens:g} tokens: give --tokens {tokens:g}")
    return cut.allocator(model.config.context_blocks)


def _fidelity(options: EvaluateOptions, model: VideoModel, record: EvaluationProtocol) -> list[ClipScore]:
    lpips = [MeanPerceptual(LPIPS(net, options.lpips_weights)) for net in options.lpips]
    if record.uniform_ssim:
        return [ClipPSNR(), ClipUniformSSIM(), ClipFlicker(), *lpips]
    side = _resolution(model) or record.resolution
    scales = [ClipMSSSIM()] if side >= SMALLEST_MS_SSIM else []
    return [ClipPSNR(), ClipSSIM(), *scales, ClipFlicker(), *lpips]


def _batch_size(options: EvaluateOptions, model: VideoModel) -> int:
    if options.tokens:
        return GROUP_SIZE
    if options.batch_size is not None:
        return options.batch_size
    return SAMPLED if isinstance(model, Sampling) else 16


def _resolution(model: VideoModel) -> int | None:
    if model.spec is None:
        return None
    height, width = model.spec.resolution
    if height != width:
        raise ValueError(f"protocols have square frames, this tokenizer takes {height}x{width}")
    return height


def _weights(model: VideoModel) -> dict[str, str]:
    return {role: value for role, value in model.describe().items() if isinstance(value, str)}


def _remarks(model: VideoModel) -> list[str]:
    settings = {key: value for key, value in model.describe().items() if not isinstance(value, str)}
    remarks = [f"{key}: {value}" for key, value in settings.items() if value not in (None, False)]
    if isinstance(model, VideoFiles):
        remarks.append("samples were read from video files: if these are lossy, their compression is measured too")
    return remarks


def _groups(options: EvaluateOptions, budget: int | None) -> list[str]:
    """Remark on the clips that share a budget."""
    if budget is None or options.scorer is None:
        return []
    order = "in the order of the data set, as published," if options.published else "drawn over the data set"
    return [f"groups of {GROUP_SIZE} clips {order} share the budget"]


def _write(folder: Path, report: Report, summary: Summary, *, html: bool) -> None:
    report.save(folder / "report.json")
    summary.write_clips(folder / "clips.csv")
    summary.write_classes(folder / "classes.csv")
    if html:
        evaluation_page(report, summary).write(folder / "page.html")
    for number in report.numbers:
        print(f"{number.name}: {number.text(f'{number.value:.6g}')}   [{number.protocol.name}, {number.count:,} clips]")
    print(report.markdown_row())
