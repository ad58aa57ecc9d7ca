"""`genvid evaluate` and `genvid report`: published protocols by name, and tables of their reports."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

from genvid import config as configuration
from genvid.allocation import Allocator, UniformAllocator
from genvid.allocation.budget import GROUP_SIZE
from genvid.ar.model import RowModel
from genvid.checkpoint import load_model
from genvid.cli.coding import BudgetOptions, open_tokenizer
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
    MeanPerceptual,
)
from genvid.eval.pages.evaluation_page import comparison_page, evaluation_page
from genvid.eval.protocols import EvaluationProtocol, protocol
from genvid.eval.reconstruction import PieceEncoder, Reconstruction
from genvid.eval.report import Provenance, Report, compare
from genvid.eval.samples import VideoFiles, open_samples
from genvid.eval.selection import protocol_clips
from genvid.eval.sources import protocol_source, unseen_source
from genvid.eval.summary import Summary
from genvid.generation.pipeline import check_match
from genvid.generation.sampler import SamplingConfig
from genvid.perceptual import LPIPS
from genvid.tokens import ResizableTokenizer, VideoTokenizer
from genvid.train.accelerator import make_state

SAMPLED = 128
"""Clips sampled at a time: two for each batch slot of the engine, so that another row replaces a finished one."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`."""

    protocol: str
    """Name of a protocol, from the list below."""
    _: KW_ONLY
    output: Path
    """Folder for report.json and clips.csv. The same command resumes there."""
    data: Path | None = None
    """Data set of the protocol, as it is distributed."""
    lists: Path | None = None
    """List of the split: ucfTrainTestlist, the CSV of Kinetics-600, or a list of DAVIS."""
    source: Path | None = None
    """Other data: YAML file with the `source` of a recipe (needs --partial)."""
    tokenizer: str | None = None
    """Model folder or Hub id."""
    tokens: tuple[int, ...] = ()
    """Token budgets, each of which gives a report. AdapTok: mean tokens of a clip (needs --scorer). LIT: tokens of each
    clip."""
    scorer: str | None = None
    """Scorer of the AdapTok tokenizer: model folder or Hub id."""
    published: bool = False
    """Share --tokens among the blocks of a clip as the published evaluation of AdapTok does."""
    model: str | None = None
    """Autoregressive model: model folder or Hub id. Of a reconstruction protocol: the bits of the tokens under it are
    measured too."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    probe: bool = False
    """Measure too how well a linear map of the first tokens of each block gives the class of a reconstructed clip."""
    seeds: int | None = None
    """Number of sampler seeds (default: that of the protocol)."""
    videos: Path | None = None
    """Samples of another program: a folder of videos or of .npz files, or one .npz file."""
    i3d: Path | None = None
    """Weights of the FVD network: either of the two published files."""
    features: str | None = None
    """Another feature network, or `none` (needs --partial)."""
    lpips: tuple[Literal["vgg", "alex"], ...] = ()
    """Networks of LPIPS, which is measured too."""
    lpips_weights: Path | None = None
    """Weights of the trunk of LPIPS, as torchvision publishes them (default: those in the cache of torch.hub)."""
    count: int | None = None
    """Fewer clips than the protocol has; the name of each number includes it."""
    partial: bool = False
    """Run less than the complete protocol, under another name."""
    batch_size: int | None = None
    """Clips at a time (default: 16, when sampling 128)."""
    workers: int = 2
    """Processes that decode videos."""
    title: str | None = None
    """Title of the report (default: the name of the model's folder)."""
    html: bool = False
    """Write page.html too."""

    def __post_init__(self) -> None:
        """ValueError for numbers out of range, and for options that are missing, exclude each other or have no use."""
        for name in ("count", "seeds", "batch_size"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"--{name.replace('_', '-')} is at least 1, got {number}")
        if self.i3d is not None and self.features is not None:
            raise ValueError("give --i3d or --features, not both")
        if (self.data is None) == (self.source is None):
            raise ValueError("give --data, the folder of the protocol's data set, or --source, a YAML file")
        record = protocol(self.protocol)
        self._check_used(record)
        self._check_models(record)

    def _check_models(self, record: EvaluationProtocol) -> None:
        task = record.task
        if self.videos is not None:
            if task != "generation" or self.model or self.tokenizer:
                raise ValueError(
                    "--videos takes samples of class-conditional generation, without --model and --tokenizer"
                )
        elif self.tokenizer is None or (self.model is None and task != "reconstruction"):
            needed = "--tokenizer" if task == "reconstruction" else "--model and --tokenizer (or --videos)"
            raise ValueError(f"{record.name} measures {task}: give {needed}")
        if task == "prediction" and self.sampling.guided:
            raise ValueError(f"{record.name} is without guidance: leave out --guidance")

    def _check_used(self, record: EvaluationProtocol) -> None:
        """ValueError for an option that would change nothing."""
        budget = bool(self.tokens) or self.scorer is not None or self.published
        sampling = self.sampling != SamplingConfig()
        grouped = self.tokens and self.batch_size
        unused = {
            "--tokens, --scorer and --published cut the input of a model": budget and record.task == "generation",
            "--probe is of reconstructed clips of equal length": self.probe
            and (record.task != "reconstruction" or record.frames is None),
            "a --model measures the tokens of clips of equal length": self.model and record.frames is None,
            "--guidance, --temperature, --top-k and --top-p are of samples of a --model": sampling
            and (not self.model or record.task == "reconstruction"),
            "--lpips compares reconstructions with their originals": self.lpips and record.task != "reconstruction",
            "--lpips-weights is the trunk of --lpips": self.lpips_weights and not self.lpips,
            "--seeds is of samples of a --model": self.seeds and (not self.model or record.task == "reconstruction"),
            "--lists belongs to --data": self.lists and self.source,
            f"clips share --tokens in groups of {GROUP_SIZE}, whatever the --batch-size": grouped,
        }
        for reason, given in unused.items():
            if given:
                raise ValueError(f"{reason}: it would change nothing in {record.name} as it is run here; leave it out")

    @property
    def budgets(self) -> list[BudgetOptions]:
        """One for each report."""
        return [BudgetOptions(tokens, self.scorer, self.published) for tokens in self.tokens or (None,)]


@dataclass(frozen=True)
class ReportOptions:
    """Options of `report`."""

    reports: tuple[Path, ...]
    """report.json of an evaluation."""
    html: Path | None = field(default=None, kw_only=True)
    """Page to write too, with rate-distortion curves and BD-rate."""


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
        resolution=_resolution(model),
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
    title = options.title or Path(source or str(options.videos)).name
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
    if isinstance(tokenizer, ResizableTokenizer):
        with suppress(ValueError):  # of a fixed size: another than the protocol's needs --partial
            tokenizer = tokenizer.at((record.resolution, record.resolution))
    if record.task != "reconstruction":
        return [_sampling(options, record, tokenizer, budget) for budget in options.budgets]
    encoder, models = PieceEncoder(tokenizer), []
    for budget in options.budgets:
        cut = budget.build(tokenizer)
        weights = hashes(tokenizer=options.tokenizer, scorer=options.scorer)
        about = {**weights, "tokens": budget.tokens, "published": budget.published}
        models.append(Reconstruction(encoder, cut, about))
    if options.model is None:
        return models
    predictor = load_model(options.model, RowModel).to(device())
    return [PredictedTokens(model, predictor, hashes(model=options.model)) for model in models]


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
    layout, trained = model.layout, model.origin.made_from.get("cache", {}).get("allocator", {})
    tokens = trained.get("tokens_per_video", layout.largest * layout.num_blocks)
    if cut is not None:
        if budget.tokens is not None and abs(budget.tokens - tokens) >= 1 and trained:
            raise ValueError(f"{options.model} was trained on clips of {tokens:g} tokens: give --tokens {tokens:g}")
        return cut.allocator(model.config.context_blocks)
    if trained.get("type") == "uniform":
        return UniformAllocator(max(size for size in layout.sizes if size <= tokens / layout.num_blocks))
    if tokens < layout.block_capacity * layout.num_blocks:
        raise ValueError(
            f"{options.model} was trained on clips of at most {tokens:g} tokens: give --scorer and --tokens as in "
            "training, since the prompt is cut in the same way"
        )
    return None


def _fidelity(options: EvaluateOptions, model: VideoModel, record: EvaluationProtocol) -> list[ClipScore]:
    side = _resolution(model) or record.resolution
    lpips = [MeanPerceptual(LPIPS(net, options.lpips_weights)) for net in options.lpips]
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
