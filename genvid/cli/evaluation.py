"""`genvid evaluate` and `genvid report`: a published protocol, run by its name; reports compared."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genvid import config as configuration
from genvid.allocation import Allocator, UniformAllocator
from genvid.ar.model import RowModel
from genvid.checkpoint import load_model
from genvid.cli.coding import GROUP, open_budget, open_tokenizer
from genvid.cli.producers import Reconstruction, Sampling, hashes
from genvid.data.sources.base import SourceConfig
from genvid.device import device
from genvid.eval.evaluation import Evaluation, VideoModel
from genvid.eval.features.base import FeatureNetwork
from genvid.eval.features.loading import WHERE_I3D_IS, load_features, load_i3d
from genvid.eval.metrics.fidelity import SMALLEST_MS_SSIM, ClipMean, ClipMSSSIM, ClipPSNR, ClipSSIM, MeanPerceptual
from genvid.eval.pages.evaluation_page import comparison_page, evaluation_page
from genvid.eval.protocols import PROTOCOLS, EvaluationProtocol, protocol
from genvid.eval.report import Provenance, Report, compare
from genvid.eval.samples import VideoFiles, open_samples
from genvid.eval.sources import protocol_source, unseen_source
from genvid.eval.summary import Summary
from genvid.generation.pipeline import check_match
from genvid.generation.sampler import SamplingConfig
from genvid.perceptual import LPIPS
from genvid.tokenizer.lit.model import LIT
from genvid.tokens import VideoTokenizer
from genvid.train.accelerator import make_state

SAMPLED = 128
"""Clips sampled at a time: two for each slot of the engine, so that a row that ends makes room for another."""


def evaluate(arguments: argparse.Namespace) -> None:
    """Run a protocol: one report, or one for each token budget."""
    for name in ("count", "seeds", "batch_size"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1, got {getattr(arguments, name)}")
    state, record = make_state(), protocol(arguments.protocol)
    _check_used(arguments, record)
    if arguments.count is not None:
        record = record.adapted(count=arguments.count)
    features, budgets = _features(arguments, record), arguments.tokens or [None]
    producers = [_producer(arguments, record, budget) for budget in budgets]
    record = _given_frames(arguments, record, producers[0])
    source, unseen, record = _sources(arguments, record)
    made_from = {"features": features.weights} if features is not None and features.weights else {}
    reports = []
    for budget, producer in zip(budgets, producers, strict=True):
        folder = Path(arguments.output) / (f"tokens{budget}" if budget is not None else "")
        evaluation = Evaluation(
            record,
            source,
            folder,
            features=features,
            fidelity=_fidelity(arguments, producer, record),
            test_source=unseen,
            # Samples made elsewhere are one set, whatever the protocol asks for.
            sampler_seeds=1 if arguments.videos is not None else arguments.seeds,
            resolution=_resolution(producer),
            partial=arguments.partial,
            batch_size=_batch_size(arguments, producer, budget),
            drawn_groups=budget is not None and not arguments.published,
            workers=arguments.workers,
            device=device(),
            rank=state.process_index,
            world_size=state.num_processes,
        )
        if isinstance(producer, Sampling):
            producer.number_classes(evaluation.dataset.classes)
        evaluation.measure(producer)
        state.wait_for_everyone()
        if state.is_main_process:
            title = arguments.title or Path(arguments.model or arguments.tokenizer or arguments.videos).name
            provenance = Provenance.now({**_weights(producer), **made_from})
            summary = Summary(evaluation, producer)
            remarks = [*_remarks(producer), *_groups(arguments, budget)]
            report = summary.report(title if budget is None else f"{title} @ {budget}", provenance, remarks)
            _write(folder, report, summary, html=arguments.html)
            reports.append(report)
    if len(reports) > 1 and arguments.html:
        comparison_page(reports).write(Path(arguments.output) / "comparison.html")


def report(arguments: argparse.Namespace) -> None:
    """Compare reports: a Markdown table, and a page."""
    reports = [Report.load(path) for path in arguments.reports]
    print(compare(reports))
    if arguments.html is not None:
        comparison_page(reports).write(arguments.html)


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Arguments of `genvid evaluate`, but for the models'."""
    parser.epilog = "protocols: " + ", ".join(PROTOCOLS)
    parser.add_argument("--data", metavar="DIR", help="the protocol's data set as it is distributed")
    parser.add_argument("--lists", metavar="PATH", help="ucfTrainTestlist, the CSV of Kinetics-600, or a DAVIS list")
    parser.add_argument("--source", metavar="YAML", help="other data: the `source` of a recipe (needs --partial)")
    parser.add_argument("--output", required=True, metavar="DIR", help="for report.json and clips.csv; resumes there")
    parser.add_argument("--i3d", metavar="FILE", help="weights of the FVD network, either of the two published files")
    parser.add_argument("--features", metavar="F", help="another feature network, or `none` (needs --partial)")
    parser.add_argument("--lpips", choices=("vgg", "alex"), action="append", default=[], help="measure LPIPS too")
    parser.add_argument("--lpips-weights", metavar="FILE", help="torchvision's trunk (torch.hub's cache)")
    parser.add_argument("--model", metavar="AR", help="autoregressive model: model folder or Hub id")
    parser.add_argument(
        "--videos", metavar="PATH", help="samples made elsewhere: folder of videos or .npz files, or one .npz file"
    )
    parser.add_argument("--count", type=int, metavar="N", help="fewer clips: the number's name says so")
    parser.add_argument("--seeds", type=int, metavar="N", help="other than the protocol's number of sampler seeds")
    parser.add_argument("--partial", action="store_true", help="run what is not the whole protocol, under another name")
    parser.add_argument("--batch-size", type=int, metavar="N", help=f"clips at a time (16; {SAMPLED} when sampling)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that decode videos (2)")
    parser.add_argument("--title", help="name of the row (the model's folder)")
    parser.add_argument("--html", action="store_true", help="write page.html too")


def _check_used(arguments: argparse.Namespace, record: EvaluationProtocol) -> None:
    """ValueError for an option that would change nothing."""
    budget = arguments.tokens is not None or arguments.scorer is not None or arguments.published
    sampling = (arguments.guidance, arguments.temperature, arguments.top_k, arguments.top_p) != (1, 1, 0, 1)
    unused = {
        "--tokens, --scorer and --published cut clips that a model is given": budget and record.task == "generation",
        "--guidance, --temperature, --top-k and --top-p are of samples of a --model": sampling and not arguments.model,
        "--lpips compares reconstructions with their originals": arguments.lpips and record.task != "reconstruction",
        "--lpips-weights is the trunk of --lpips": arguments.lpips_weights and not arguments.lpips,
        "--seeds is of samples of a --model": arguments.seeds and not arguments.model,
        "--lists belongs to --data": arguments.lists and arguments.source,
        f"clips share --tokens in groups of {GROUP}, whatever the --batch-size": arguments.tokens
        and arguments.batch_size,
    }
    for reason, given in unused.items():
        if given:
            raise ValueError(f"{reason}: it would change nothing in {record.name} as it is run here; leave it out")


def _features(arguments: argparse.Namespace, record: EvaluationProtocol) -> FeatureNetwork | None:
    if arguments.i3d is not None:
        if arguments.features is not None:
            raise ValueError("give --i3d or --features, not both")
        return load_i3d(arguments.i3d)
    if arguments.features == "none" or not record.features:
        return None
    if arguments.features is None:
        raise ValueError(f"{record.name} needs {record.features}: {WHERE_I3D_IS}, or choose --features")
    return load_features(arguments.features)


def _sources(
    arguments: argparse.Namespace, record: EvaluationProtocol
) -> tuple[SourceConfig, SourceConfig | None, EvaluationProtocol]:
    """Real clips, unseen ones where there are any, and the protocol with the data set that is really used."""
    if (arguments.data is None) == (arguments.source is None):
        raise ValueError("give --data, the folder of the protocol's data set, or --source, a YAML file")
    if arguments.source is None:
        source = protocol_source(record, arguments.data, arguments.lists)
        return source, unseen_source(record, arguments.data, arguments.lists), record
    if not arguments.partial:
        raise ValueError(f"{record.name} is a protocol on {record.dataset}: --source needs --partial")
    data = configuration.read(arguments.source)
    source = configuration.decode(SourceConfig, data, source=arguments.source)
    dataset, split = Path(arguments.source).stem, source.split_name()
    return source, None, record.adapted(dataset=dataset, split=split, videos=None, names="")


def _producer(arguments: argparse.Namespace, record: EvaluationProtocol, budget: int | None) -> VideoModel:
    task = record.task
    if arguments.videos is not None:
        if task != "generation" or arguments.model or arguments.tokenizer:
            raise ValueError("--videos takes samples of class-conditional generation, without --model and --tokenizer")
        return open_samples(arguments.videos, record)
    if arguments.tokenizer is None or (arguments.model is None) != (task == "reconstruction"):
        needed = "--tokenizer" if task == "reconstruction" else "--model and --tokenizer (or --videos)"
        raise ValueError(f"{record.name} measures {task}: give {needed}")
    tokenizer = open_tokenizer(arguments.tokenizer)
    if isinstance(tokenizer, LIT):  # which takes frames of any size
        tokenizer = tokenizer.at((record.resolution, record.resolution))
    if task == "reconstruction":
        cut = open_budget(argparse.Namespace(**{**vars(arguments), "tokens": budget}), tokenizer)
        settings = {"tokens": budget, "published": arguments.published}
        about = {**hashes(tokenizer=arguments.tokenizer, scorer=arguments.scorer), **settings}
        return Reconstruction(tokenizer, cut, about)
    model = load_model(arguments.model, RowModel)
    check_match(model, tokenizer)
    if bool(model.config.context_blocks) != (task == "prediction"):
        raise ValueError(f"{record.name} measures {task}, which {arguments.model} was not made for")
    if task == "prediction" and arguments.guidance != 1:
        raise ValueError(f"{record.name} is without guidance, got --guidance {arguments.guidance:g}")
    context = _context(arguments, model, tokenizer, budget) if task == "prediction" else None
    config = SamplingConfig(arguments.temperature, arguments.top_k, arguments.top_p, arguments.guidance)
    weights = hashes(model=arguments.model, tokenizer=arguments.tokenizer, scorer=arguments.scorer)
    settings = {} if context is None else {"tokens": budget}
    return Sampling(model.to(device()), tokenizer, config, weights | settings, context=context)


def _given_frames(
    arguments: argparse.Namespace, record: EvaluationProtocol, producer: VideoModel
) -> EvaluationProtocol:
    """The protocol with the frames that the model generates and reads: no more than the fewest frames of a prompt."""
    if not isinstance(producer, Sampling):
        return record
    model, spec = producer.model, producer.tokenizer.spec
    adapted = record.adapted(frames=model.video_frames(spec), condition_frames=model.prompt_frames(spec))
    if adapted != record and not arguments.partial:
        raise ValueError(f"this would not be {record.name} but '{adapted.name}'; --partial runs it under that name")
    return adapted


def _context(
    arguments: argparse.Namespace, model: RowModel, tokenizer: VideoTokenizer, budget: int | None
) -> Allocator | None:
    """The rule that cuts given blocks as those of the rows that the model was trained on; None: they were whole."""
    rule = open_budget(argparse.Namespace(**{**vars(arguments), "tokens": budget}), tokenizer)
    if model.fixed_prompt and rule is not None:
        raise ValueError("published models read given frames uncut: leave out --scorer, --tokens and --published")
    layout, trained = model.layout, model.origin.made_from.get("cache", {}).get("allocator", {})
    tokens = trained.get("tokens_per_video", layout.largest * layout.num_blocks)
    if rule is not None:
        if budget is not None and abs(budget - tokens) >= 1 and trained:
            raise ValueError(f"{arguments.model} was trained on clips of {tokens:g} tokens: give --tokens {tokens:g}")
        return rule(model.config.context_blocks)
    if trained.get("type") == "uniform":
        return UniformAllocator(max(size for size in layout.sizes if size <= tokens / layout.num_blocks))
    if tokens < layout.block_capacity * layout.num_blocks:
        raise ValueError(
            f"{arguments.model} was trained on clips of at most {tokens:g} tokens: give --scorer and --tokens as in "
            "training, for the given frames are cut in the same way"
        )
    return None


def _fidelity(arguments: argparse.Namespace, producer: VideoModel, record: EvaluationProtocol) -> list[ClipMean]:
    side = _resolution(producer) or record.resolution
    lpips = [MeanPerceptual(LPIPS(net, arguments.lpips_weights)) for net in arguments.lpips]
    return [ClipPSNR(), ClipSSIM(), *([ClipMSSSIM()] if side >= SMALLEST_MS_SSIM else []), *lpips]


def _batch_size(arguments: argparse.Namespace, producer: VideoModel, budget: int | None) -> int:
    if budget is not None:
        return GROUP
    if arguments.batch_size is not None:
        return int(arguments.batch_size)
    return SAMPLED if isinstance(producer, Sampling) else 16


def _resolution(producer: VideoModel) -> int | None:
    if producer.spec is None:
        return None
    height, width = producer.spec.resolution
    if height != width:
        raise ValueError(f"protocols are of square frames, this tokenizer takes {height}x{width}")
    return height


def _weights(producer: VideoModel) -> dict[str, str]:
    return {role: value for role, value in producer.describe().items() if isinstance(value, str)}


def _remarks(producer: VideoModel) -> list[str]:
    said: Mapping[str, Any] = producer.describe()
    settings = {key: value for key, value in said.items() if not isinstance(value, str) and value not in (None, False)}
    remarks = [f"{key}: {value}" for key, value in settings.items()]
    if isinstance(producer, VideoFiles):
        remarks.append("samples were read from video files: where these are lossy, their compression is measured too")
    return remarks


def _groups(arguments: argparse.Namespace, budget: int | None) -> list[str]:
    """Which clips share a budget: part of what a reader must know of it."""
    if budget is None or arguments.scorer is None:
        return []
    order = "in the order of the data set, as published," if arguments.published else "drawn over the data set"
    return [f"groups of {GROUP} clips {order} share the budget"]


def _write(folder: Path, report: Report, summary: Summary, *, html: bool) -> None:
    report.save(folder / "report.json")
    summary.write_clips(folder / "clips.csv")
    summary.write_classes(folder / "classes.csv")
    if html:
        evaluation_page(report, summary).write(folder / "page.html")
    for number in report.numbers:
        print(f"{number.name}: {number.text(f'{number.value:.6g}')}   [{number.protocol.name}, {number.count:,} clips]")
    print(report.markdown_row())
