"""Clips from files, folders, published data sets and generators; batches of them; and the cache of their tokens."""

from genvid.data.balanced import BalancedConfig
from genvid.data.clips import ClipConfig, to_float, to_uint8
from genvid.data.dataset import ClipDataset
from genvid.data.davis import DavisConfig
from genvid.data.folders import FolderConfig
from genvid.data.hub import HuggingFaceConfig
from genvid.data.joined import JoinedConfig
from genvid.data.kinetics import Kinetics600Config
from genvid.data.loader import StepSampler, load_batches, one_pass, step_batches
from genvid.data.procedural import ProceduralConfig
from genvid.data.source import SourceConfig
from genvid.data.synthetic import SyntheticConfig
from genvid.data.ucf101 import Ucf101Config
from genvid.data.video import VideoError, probe, read_clip, video_bytes, write_video

__all__ = [
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
