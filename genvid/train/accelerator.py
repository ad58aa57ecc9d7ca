"""Accelerators with the same meaning on CPU and GPU; accelerate's silent fall-backs are errors."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.utils.checkpoint import checkpoint

from genvid.train.config import TrainConfig
from genvid.train.task import StepOutput, TrainingTask

torch.export.register_dataclass(StepOutput)
"""FSDP2 finds tensors, the loss among them, in registered classes alone."""


class LaunchError(ValueError):
    """Processes started in a way in which the run cannot train."""


def make_accelerator(
    folder: str | Path,
    *,
    precision: str = "fp32",
    accumulation: int = 1,
    trackers: Sequence[str] = (),
    find_unused_parameters: bool = False,
) -> Accelerator:
    """Start accelerate for a run in `folder`.

    accelerate may start one process on a CPU instead of several, and trains FSDP on a CPU without synchronising
    gradients; both are errors here. DeepSpeed on a CPU needs the gloo backend.
    """
    cuda = torch.cuda.is_available()
    deepspeed, fsdp = flag("ACCELERATE_USE_DEEPSPEED"), flag("ACCELERATE_USE_FSDP")
    if fsdp:
        _check_fsdp()
    handlers: list[object] = []
    if deepspeed and not cuda:
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    # Gradients live in DDP's buckets, which saves one copy of them.
    handlers.append(
        DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=find_unused_parameters)
    )
    accelerator = Accelerator(
        cpu=not cuda and not deepspeed and not fsdp,
        # DeepSpeed's own bf16 would turn every weight and running statistic into bf16; `adapt` sets autocast instead.
        mixed_precision="no" if deepspeed or precision == "fp32" else precision,
        gradient_accumulation_steps=accumulation,
        log_with=_installed(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        kwargs_handlers=handlers,
    )
    _check_world(accelerator)
    return accelerator


def adapt(accelerator: Accelerator, task: TrainingTask, config: TrainConfig) -> None:
    """Configure FSDP2 and DeepSpeed for a task; call it before `prepare`. LaunchError if they cannot train it.

    Precision, clipping and accumulation of the recipe override those of the launch file.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        # Each layer is gathered by itself, or all weights at once. They stay in full precision under autocast, as with
        # DDP: FSDP's own mixed precision would round codebooks, targets and losses to bf16.
        layers = () if gathers_at_once(accelerator, task, config) else task.layers()
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})
        plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        plugin.cpu_ram_efficient_loading = False  # genvid.train.placement does it
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        name = type(task).__name__
        if len(task.phases) > 1:
            raise LaunchError(f"{name} trains two networks in turn, which DeepSpeed cannot; launch with DDP or FSDP2")
        if task.replaces_weights:
            raise LaunchError(
                f"{name} replaces weights (objective.restart), and DeepSpeed would restore its copies of them; launch "
                "with DDP or FSDP2, or set objective.restart to null"
            )
        settings = config.optimizers[task.phases[0]]
        if settings.muon:
            raise LaunchError(f"{name} is trained with Muon, which needs complete matrices: launch with DDP or FSDP2")
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": config.batch_size // (accelerator.num_processes * config.accumulation),
            "gradient_accumulation_steps": config.accumulation,
            "gradient_clipping": settings.clip_norm or 0.0,
            "torch_autocast": {
                "enabled": config.precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW on the CPU is vectorised, and needs no compiler
        }


def gathers_at_once(accelerator: Accelerator, task: TrainingTask, config: TrainConfig) -> bool:
    """Whether FSDP2 gathers all weights before a forward pass, as compiled parts of the task span layers."""
    return accelerator.is_fsdp2 and config.compile and not config.compile_layers and task.compiled_across_layers


def replays_graphs(accelerator: Accelerator, task: TrainingTask, config: TrainConfig) -> bool:
    """Whether parts of the task are replayed as CUDA graphs: the next replay overwrites results and gradients.

    FSDP2 adds gradients of later micro-batches to those of the first, wherever these are.
    """
    if not config.compile or config.compile_layers or not task.compiled_across_layers:
        return False
    return config.accumulation == 1 if gathers_at_once(accelerator, task, config) else not _hooked(accelerator)


def prepare_layers(accelerator: Accelerator, task: TrainingTask, config: TrainConfig) -> None:
    """Set up activation checkpointing and compilation as configured; before `Accelerator.prepare`, on the device.

    Where hooks of FSDP2 and DeepSpeed run between the layers, layers are compiled one by one.
    """
    if config.activation_checkpointing:
        for layer in task.layers():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    if not (config.compile or config.compile_layers):
        return
    # Once for each shape of a batch, and each stack of layers or scored block.
    torch._dynamo.config.recompile_limit = 64
    if config.compile_layers or (_hooked(accelerator) and not gathers_at_once(accelerator, task, config)):
        task.compile_layers()
    else:
        # DDP would cut every compiled part where its buckets end, into pieces of 25 MB of weights.
        torch._dynamo.config.optimize_ddp = False
        # Results of matrix products, attention and convolutions are kept for the backward pass, and most of all that is
        # computed between them is computed again: half the memory.
        torch._functorch.config.ban_recompute_used_far_apart = False
        torch._functorch.config.ban_recompute_materialized_backward = False
        # The compiler would give all tensors before a convolution the layout of its input, and copy attended values for
        # it. Convolutions of perceptual distances have that layout by their weights.
        torch._inductor.config.layout_optimization = False
        task.use_compiler("reduce-overhead" if replays_graphs(accelerator, task, config) else None)


def _hooked(accelerator: Accelerator) -> bool:
    """Whether hooks of FSDP2 or DeepSpeed run between layers."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def make_state() -> PartialState:
    """The processes of a launch that does not train; LaunchError if accelerate does not count all of them."""
    state = PartialState(cpu=not torch.cuda.is_available())
    _check_world(state)
    return state


def _check_fsdp() -> None:
    if not torch.cuda.is_available():
        raise LaunchError("accelerate cannot run FSDP on a CPU; launch with recipes/configs/accelerate/ddp.yaml")
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise LaunchError("only FSDP2 is supported: set fsdp_version: 2, as recipes/configs/accelerate/fsdp2.yaml does")


def _check_world(state: Accelerator | PartialState) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    alone = state.distributed_type == DistributedType.NO
    if state.num_processes != world or (world > 1 and alone):
        raise LaunchError(
            f"{world} processes were launched but accelerate counts {state.num_processes} "
            f"({state.distributed_type}); see recipes/README.md for launch files that work"
        )


def flag(name: str) -> bool:
    """Whether the launch file sets this variable of the environment."""
    return os.environ.get(name, "false").lower() == "true"


def _installed(trackers: Sequence[str]) -> list[str]:
    """The trackers that can be imported, with a warning for each missing one."""
    found = []
    for tracker in trackers:
        if importlib.util.find_spec(tracker) is None:
            warnings.warn(f"tracker {tracker} is not installed; logging to metrics.jsonl only", stacklevel=3)
        else:
            found.append(tracker)
    return found
