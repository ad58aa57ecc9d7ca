"""Options of `genvid evaluate` and `genvid report`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from genvid.allocation.budget import GROUP_SIZE
from genvid.cli.coding import BudgetOptions
from genvid.eval.protocols import PROTOCOLS, EvaluationProtocol, protocol
from genvid.generation.sampler import SamplingConfig


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`."""

    EPILOG: ClassVar[str] = "protocols: " + ", ".join(PROTOCOLS)
    """Last words of the help."""

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
    refine: int = 0
    """Gradient steps that refine the kept tokens before they are decoded."""
    model: str | None = None
    """Autoregressive model: model folder or Hub id. With a reconstruction protocol, the bits of the tokens under it are
    measured too."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    probe: bool = False
    """Also measure how well a linear map of the first tokens of each block gives the class of a reconstructed clip."""
    seeds: int | None = None
    """Number of sampler seeds (default: that of the protocol)."""
    videos: Path | None = None
    """Samples of another program: a folder of videos or of .npz files, or one .npz file."""
    i3d: Path | None = None
    """Weights of the FVD network: either of the two published files."""
    features: str | None = None
    """Another feature network, or `none` (needs --partial)."""
    lpips: tuple[Literal["vgg", "alex"], ...] = ()
    """Also measure LPIPS, with these networks."""
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
    """Title of the report (default: the name of the model's folder, or of its run)."""
    html: bool = False
    """Also write page.html."""

    def __post_init__(self) -> None:
        """ValueError for numbers out of range, and for options that are missing, exclude each other or have no use."""
        for name in ("count", "seeds", "batch_size"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"--{name.replace('_', '-')} is at least 1, got {number}")
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError(f"--tokens are budgets that differ, got {', '.join(map(str, self.tokens))}")
        if self.workers < 0:
            raise ValueError(f"--workers is at least 0, got {self.workers}")
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
            "--refine changes the tokens of reconstructed clips": self.refine and record.task != "reconstruction",
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
