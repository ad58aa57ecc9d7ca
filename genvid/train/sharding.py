"""Parameters sharded over processes by FSDP2 or ZeRO-3: the local part, and the gathered tensor.

For all others (one process, DDP, ZeRO-1 and -2) the local part is the complete tensor, and nothing is communicated.
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
    """The part of a parameter that this process holds, detached, sharing the parameter's memory."""
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3: an equal share of the flattened and padded tensor
        share: Tensor = parameter.ds_tensor
        return share.detach()
    if isinstance(parameter, DTensor):
        return parameter.to_local().detach()
    return parameter.detach()


def gather(part: Tensor, parameter: Tensor) -> Tensor:
    """The complete tensor of a `part` that is sharded as `parameter` is. All processes must call it."""
    if hasattr(parameter, "ds_tensor"):
        gathered = part.new_empty(part.numel() * torch.distributed.get_world_size(), device=parameter.device)
        torch.distributed.all_gather_into_tensor(gathered, part.to(parameter.device))
        zero: Any = parameter
        return gathered[: zero.ds_numel].view(zero.ds_shape)
    if isinstance(parameter, DTensor):
        part = part.to(parameter.device_mesh.device_type)
        sharded = DTensor.from_local(
            part,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        return sharded.full_tensor()
    return part


def split(complete: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a tensor, sharded as `parameter` is: the inverse of `gather`."""
    if hasattr(parameter, "ds_tensor"):
        size = parameter.ds_tensor.numel()
        first = size * torch.distributed.get_rank()
        part = complete.flatten()[first : first + size]
        return nn.functional.pad(part, (0, size - part.numel()))
    if isinstance(parameter, DTensor):
        return distribute_tensor(complete, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
    return complete


def reshard(model: nn.Module) -> None:
    """Free the gathered weights of FSDP2 layers, which a forward pass without a backward pass may leave gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def keep_addresses(model: nn.Module) -> None:
    """Gather all weights of an FSDP2 model at the same addresses in every step, where CUDA graphs read them.

    The memory pool in which they are gathered before a forward pass is free by then, and the same sizes are allocated
    from it in the same order: once it has stopped growing, after two or three steps, each weight has its address.
    """
    pool = torch.cuda.MemPool()

    def unshard(module: nn.Module, _: object) -> None:
        assert isinstance(module, FSDPModule)
        with torch.cuda.use_mem_pool(pool):
            module.unshard()

    model.register_forward_pre_hook(unshard, prepend=True)  # before that of FSDP2, which then has nothing to gather


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the `state_dict`, by name, as the objects themselves."""
    everything: Iterable[tuple[str, Any]] = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    kept = model.state_dict(keep_vars=True)
    return {name: value for name, value in everything if name in kept}


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """`state_dict` with gathered tensors, on the CPU. All processes must call it."""
    with torch.no_grad():
        return {name: gather(local_part(value), value).cpu() for name, value in named_weights(model).items()}
