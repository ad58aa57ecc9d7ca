"""The device of this process."""

from __future__ import annotations

import os

import torch


def device() -> torch.device:
    """The GPU of number LOCAL_RANK, which launchers of several processes set; the CPU where there is no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
