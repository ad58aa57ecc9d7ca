"""Whether a device runs more than plain torch: by compute capability, platform and Triton, never by name.

ROCm calls its devices "cuda" too. Where an answer is no, plain torch serves.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch

HALF = (torch.bfloat16, torch.float16)
"""Half precision."""


@dataclass(frozen=True)
class Hardware:
    """The properties of a device on which fast paths depend."""

    capability: tuple[int, int] | None
    """CUDA compute capability; None: no NVIDIA GPU."""
    dependent_launch: bool = False
    """The installed Triton has `gdc_wait` (3.4 and later)."""

    @property
    def flash(self) -> bool:
        """Torch's flash attention over rows of any length."""
        return self.capability is not None and self.capability >= (8, 0)

    @property
    def kernels(self) -> bool:
        """genvid's Triton kernels, and the compiler, which needs Triton too."""
        return self.flash and self.dependent_launch

    @property
    def overlap(self) -> bool:
        """Programmatic dependent launch: a kernel starts while the one before it runs."""
        return self.kernels and self.capability is not None and self.capability >= (9, 0)


@cache
def hardware(device: torch.device) -> Hardware:
    """Capabilities of a device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return Hardware(None)
    return Hardware(torch.cuda.get_device_capability(device), has_dependent_launch())


def on(device: torch.device) -> AbstractContextManager[object]:
    """A context in which a GPU is the current one: there alone Triton's kernels and CUDA graphs are launched."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def has_flash(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether flash attention over rows of any length takes heads of `channels` in `dtype` on a device."""
    return dtype in HALF and channels % 8 == 0 and channels <= 256 and hardware(device).flash


def has_dependent_launch() -> bool:
    """Whether the installed Triton, if there is one, can launch dependent kernels."""
    try:
        return hasattr(importlib.import_module("triton.language.extra.cuda"), "gdc_wait")
    except ImportError:
        return False
