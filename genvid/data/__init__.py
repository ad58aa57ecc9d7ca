"""Clips from files, folders, UCF-101 and a generator; batches of them; and the cache of their tokens."""

from genvid.data.clips import ClipConfig, to_float, to_uint8
from genvid.data.dataset import ClipDataset
from genvid.data.folders import FolderConfig, Ucf101Config
from genvid.data.loader import StepSampler, one_pass, step_batches
from genvid.data.source import SourceConfig
from genvid.data.synthetic import SyntheticConfig
from genvid.data.video import VideoError, probe, read_clip, video_bytes, write_video

__all__ = [
    "ClipConfig",
    "ClipDataset",
    "FolderConfig",
    "SourceConfig",
    "StepSampler",
    "SyntheticConfig",
    "Ucf101Config",
    "VideoError",
    "one_pass",
    "probe",
    "read_clip",
    "step_batches",
    "to_float",
    "to_uint8",
    "video_bytes",
    "write_video",
]
