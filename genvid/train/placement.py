"""Weights of a task from their creation to the devices. Those that FSDP2 shards are created on the first process alone.

accelerate's own `fsdp_cpu_ram_efficient_loading` takes buffers for sharded parameters and fails on them
(huggingface/accelerate issue 3898), and would empty frozen networks.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator, init_empty_weights
from accelerate.utils import broadcast
from torch import Tensor

from genvid.train.accelerator import flag
from genvid.train.sharding import local_part, split
from genvid.train.task import TrainingTask


def trained_weights() -> AbstractContextManager[None]:
    """Context in which a run creates the networks that it trains.

    With `fsdp_cpu_ram_efficient_loading` in the launch file, parameters have values on the first process only and are
    on the meta device on all others: a host holds them once, not once a process. Buffers have values everywhere.
    """
    once = flag("ACCELERATE_USE_FSDP") and flag("FSDP_CPU_RAM_EFFICIENT_LOADING")
    first = os.environ.get("RANK", "0") == "0"
    return init_empty_weights(include_buffers=False) if once and not first else nullcontext()


def place(task: TrainingTask, accelerator: Accelerator) -> dict[str, Tensor]:
    """Move a task to the device; before `Accelerator.prepare`.

    Under FSDP2 its parameters stay in host memory, from where `prepare` shards them as they will be gathered: all at
    once, or layer by layer, so that no GPU holds all of them at any time. They are returned by name, for `share`; on
    other processes than the first their memory is reserved and never touched. Otherwise nothing is returned.
    """
    device = accelerator.device
    if not accelerator.is_fsdp2:
        task.to(device)
        return {}
    trained = set(task.parameters())
    task._apply(lambda tensor: _on_host(tensor) if tensor in trained else tensor.to(device))  # type: ignore[no-untyped-call]
    return {name: parameter.detach() for name, parameter in task.named_parameters()}


@torch.no_grad()
def share(complete: dict[str, Tensor], task: TrainingTask, accelerator: Accelerator) -> None:
    """Fill the sharded parameters of a task with the first process's `complete` ones, one at a time, which are removed.

    All processes must call it, after `Accelerator.prepare`.
    """
    parameters = dict(task.named_parameters())
    for name in list(complete):
        value = broadcast(complete.pop(name).to(accelerator.device))
        local_part(parameters[name]).copy_(split(value, parameters[name]))


def _on_host(parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter, device="cpu") if parameter.is_meta else parameter.cpu()
