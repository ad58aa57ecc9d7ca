"""Parameters that are spread over processes by FSDP2 or ZeRO-3: the part that this process holds, and the whole.

For all others (one process, DDP, ZeRO-1 and -2) the part is the whole, and nothing is communicated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def local_part(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter, detached, in the parameter's own memory."""
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3: an equal share of the flattened and padded tensor
        share: Tensor = parameter.ds_tensor
        return share.detach()
    if isinstance(parameter, DTensor):
        return parameter.to_local().detach()
    return parameter.detach()


def gather(part: Tensor, parameter: Tensor) -> Tensor:
    """A tensor spread like `parameter`, whole. All processes must call it."""
    if hasattr(parameter, "ds_tensor"):
        whole = part.new_empty(part.numel() * torch.distributed.get_world_size(), device=parameter.device)
        torch.distributed.all_gather_into_tensor(whole, part.to(parameter.device))
        zero: Any = parameter
        return whole[: zero.ds_numel].view(zero.ds_shape)
    if isinstance(parameter, DTensor):
        part = part.to(parameter.device_mesh.device_type)
        spread = DTensor.from_local(
            part,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        return spread.full_tensor()
    return part


def split(whole: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a tensor that is to be spread like `parameter`: undoes `gather`."""
    if hasattr(parameter, "ds_tensor"):
        size = parameter.ds_tensor.numel()
        first = size * torch.distributed.get_rank()
        part = whole.flatten()[first : first + size]
        return nn.functional.pad(part, (0, size - part.numel()))
    if isinstance(parameter, DTensor):
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
    return whole


def reshard(model: nn.Module) -> None:
    """Free the gathered weights of FSDP2 layers, which a forward pass without a backward pass may leave gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model folder, by name: what `state_dict` has, as the objects that they are."""
    everything: Iterable[tuple[str, Any]] = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    kept = model.state_dict(keep_vars=True)
    return {name: value for name, value in everything if name in kept}


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """`state_dict` with whole tensors, on the CPU. All processes must call it."""
    with torch.no_grad():
        return {name: gather(local_part(value), value).cpu() for name, value in named_weights(model).items()}
