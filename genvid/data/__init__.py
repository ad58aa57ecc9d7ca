"""Clips from files, folders, published data sets and generators, and batches of them."""

from pathlib import Path

from genvid.data.clips import ClipConfig, to_float, to_uint8
from genvid.data.dataset import ClipDataset
from genvid.data.loader import StepSampler, load_batches, one_pass, step_batches
from genvid.data.sources.balanced import BalancedConfig
from genvid.data.sources.base import SourceConfig
from genvid.data.sources.davis import DavisConfig
from genvid.data.sources.files import FolderConfig
from genvid.data.sources.huggingface import HuggingFaceConfig
from genvid.data.sources.joined import JoinedConfig
from genvid.data.sources.kinetics import Kinetics600Config
from genvid.data.sources.procedural import ProceduralConfig
from genvid.data.sources.synthetic import SyntheticConfig
from genvid.data.sources.ucf101 import Ucf101Config
from genvid.data.video import VideoError, probe, read_clip, video_bytes, write_video

EXAMPLE_VIDEO = Path(__file__).parent / "examples" / "robot.mp4"
"""A real video of 64 frames at 128x128, in the public domain (examples/README.md)."""

__all__ = [
    "EXAMPLE_VIDEO",
    "BalancedConfig",
    "ClipConfig",
    "ClipDataset",
    "DavisConfig",
    "FolderConfig",
    "HuggingFaceConfig",
    "JoinedConfig",
    "Kinetics600Config",
    "ProceduralConfig",
    "SourceConfig",
    "StepSampler",
    "SyntheticConfig",
    "Ucf101Config",
    "VideoError",
    "load_batches",
    "one_pass",
    "probe",
    "read_clip",
    "step_batches",
    "to_float",
    "to_uint8",
    "video_bytes",
    "write_video",
]
