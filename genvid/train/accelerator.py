"""An Accelerator that means the same on CPU and GPU, and refuses accelerate's silent fall-backs."""

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
"""So that FSDP2 finds the loss in it."""


class LaunchError(RuntimeError):
    """The processes were not started as asked."""


def make_accelerator(
    folder: str | Path,
    *,
    precision: str = "fp32",
    accumulation: int = 1,
    trackers: Sequence[str] = (),
    find_unused_parameters: bool = False,
) -> Accelerator:
    """Start accelerate for a run in `folder`.

    accelerate starts one process where several were asked for on a CPU, and trains FSDP on a CPU without ever
    synchronising gradients; both are errors here. DeepSpeed on a CPU needs the gloo backend named.
    """
    cuda = torch.cuda.is_available()
    deepspeed, fsdp = _flag("ACCELERATE_USE_DEEPSPEED"), _flag("ACCELERATE_USE_FSDP")
    if fsdp:
        _check_fsdp()
    handlers: list[object] = []
    if deepspeed and not cuda:
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    # Gradients live in DDP's buckets: a copy of all of them less.
    handlers.append(
        DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=find_unused_parameters)
    )
    accelerator = Accelerator(
        cpu=not cuda and not deepspeed and not fsdp,
        # DeepSpeed's own bf16 would turn every weight and running statistic into bf16: it is told to autocast instead.
        mixed_precision="no" if deepspeed or precision == "fp32" else precision,
        gradient_accumulation_steps=accumulation,
        log_with=_installed(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        kwargs_handlers=handlers,
    )
    _check_world(accelerator)
    return accelerator


def adapt(accelerator: Accelerator, task: TrainingTask, config: TrainConfig) -> None:
    """Tell FSDP2 and DeepSpeed what a launch file cannot know; call it before `prepare`.

    The recipe decides on precision, clipping and accumulation, whatever a launch file says of them. LaunchError where
    a task cannot be trained this way.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        # Each layer is gathered by itself. Weights stay in full precision and autocast decides, as under DDP: FSDP's
        # own mixed precision would round codebooks, targets and losses to bf16.
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in task.layers()})
        plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        name = type(task).__name__
        if len(task.phases) > 1:
            raise LaunchError(f"{name} trains two networks in turn, which DeepSpeed cannot; launch with DDP or FSDP2")
        settings = config.optimizers[task.phases[0]]
        if settings.muon:
            raise LaunchError(f"{name} is trained with Muon, which needs whole matrices: launch with DDP or FSDP2")
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


def prepare_layers(accelerator: Accelerator, task: TrainingTask, config: TrainConfig) -> None:
    """Activation checkpointing and compilation, as the config says; before `Accelerator.prepare`, on the device.

    Under FSDP2 and DeepSpeed, whose hooks run between the layers, layers are compiled one by one.
    """
    if config.activation_checkpointing:
        for layer in task.layers():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    if not config.compile:
        return
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        task.compile_layers()
    else:
        # DDP would cut every compiled part where its buckets end, into pieces of 25 MB of weights.
        torch._dynamo.config.optimize_ddp = False
        task.use_compiler("reduce-overhead" if config.accumulation == 1 else None)


def make_state() -> PartialState:
    """The processes of a launch that does not train; LaunchError where accelerate does not see all of them."""
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
            f"{world} processes were launched but accelerate sees {state.num_processes} "
            f"({state.distributed_type}); see recipes/README.md for launch files that work"
        )


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def _installed(trackers: Sequence[str]) -> list[str]:
    """The trackers that can be imported; a missing one costs a warning, never the run."""
    found = []
    for tracker in trackers:
        if importlib.util.find_spec(tracker) is None:
            warnings.warn(f"tracker {tracker} is not installed; logging to metrics.jsonl only", stacklevel=3)
        else:
            found.append(tracker)
    return found
