"""Fast paths by capability: cards and Tritons that lack a feature go the plain way."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from genvid import hardware as module
from genvid.hardware import Hardware, hardware, has_dependent_launch, has_flash


@pytest.mark.parametrize(
    ("found", "flash", "kernels", "overlap"),
    [
        (Hardware(None), False, False, False),
        (Hardware(None, True), False, False, False),
        (Hardware((7, 0), True), False, False, False),
        (Hardware((7, 5), True), False, False, False),
        (Hardware((8, 0), False), True, False, False),
        (Hardware((8, 6), True), True, True, False),
        (Hardware((9, 0), False), True, False, False),
        (Hardware((9, 0), True), True, True, True),
        (Hardware((12, 0), True), True, True, True),
    ],
    ids=str,
)
def test_a_fast_path_is_taken_where_its_parts_are(found, flash, kernels, overlap):
    assert (found.flash, found.kernels, found.overlap) == (flash, kernels, overlap)


@pytest.mark.parametrize("hip", ["6.4", None])
def test_rocm_is_not_taken_for_cuda(hip, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    monkeypatch.setattr(module, "has_dependent_launch", lambda: True)
    found = hardware.__wrapped__(torch.device("cuda"))
    assert found == (Hardware((9, 4), True) if hip is None else Hardware(None))
    assert hardware.__wrapped__(torch.device("cpu")) == Hardware(None)


@pytest.mark.parametrize("has_it", [True, False])
def test_an_older_triton_is_seen_by_what_it_lacks(has_it, monkeypatch):
    cuda = ModuleType("triton.language.extra.cuda")
    if has_it:
        cuda.gdc_wait = None
    for name in ("triton", "triton.language", "triton.language.extra"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, cuda.__name__, cuda)
    assert has_dependent_launch() is has_it


def test_no_triton_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("triton.language", "triton.language.extra", "triton.language.extra.cuda"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert not has_dependent_launch()


def test_flash_attention_takes_half_precision_and_heads_of_a_multiple_of_8(monkeypatch):
    device = torch.device("cpu")
    assert not has_flash(device, torch.bfloat16, 64)
    monkeypatch.setattr(module, "hardware", lambda device: Hardware((8, 0)))
    assert has_flash(device, torch.bfloat16, 64)
    assert has_flash(device, torch.float16, 256)
    assert not has_flash(device, torch.float32, 64)
    assert not has_flash(device, torch.bfloat16, 60)
    assert not has_flash(device, torch.bfloat16, 264)
