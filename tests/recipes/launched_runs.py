"""Several training runs in one launch, each under its own launch file: Python takes long to start.

python -m torch.distributed.run ... launched_runs.py RUNS.json, with RUNS.json = [[launch file, config file], ...]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from genvid.recipes import train
from genvid.train import accelerator

LAUNCH_FILES = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "accelerate"
OF_THE_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
START = dict(os.environ)


def launched_by(name: str) -> None:
    """The environment that `accelerate launch` makes of one of our launch files."""
    os.environ.clear()
    os.environ.update(START)
    file, world = LAUNCH_FILES / f"{name}.yaml", os.environ["WORLD_SIZE"]
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "--num_processes", world, "train.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ""
    zero = arguments.use_deepspeed
    environment = prepare_deepspeed_cmd_env(arguments)[1] if zero else prepare_multi_gpu_env(arguments)
    os.environ.update(environment | {key: START[key] for key in OF_THE_LAUNCH})
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    fsdp_on_cpu(environment.get("ACCELERATE_USE_FSDP") == "true")


PREPARE_BACKEND, SET_DEVICE, CHECK_FSDP, COMPILE = (
    PartialState._prepare_backend,
    PartialState.set_device,
    accelerator._check_fsdp,
    torch.compile,
)


def fsdp_on_cpu(wanted: bool) -> None:
    """accelerate runs FSDP on GPUs only, and silently leaves it out elsewhere: let it take two CPU processes for two
    GPUs. All that it then does with FSDP2 is what it does on GPUs, over gloo; without a compiler's back end and pools
    of GPU memory."""
    if torch.cuda.is_available():
        return
    if not wanted:
        PartialState._prepare_backend, PartialState.set_device = PREPARE_BACKEND, SET_DEVICE
        accelerator._check_fsdp, torch.compile = CHECK_FSDP, COMPILE
        return
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    accelerator._check_fsdp = lambda: None
    torch.compile = lambda function, **_: COMPILE(function, backend="aot_eager")
    torch.cuda.MemPool, torch.cuda.use_mem_pool = object, nullcontext


def run_all(runs: Sequence[tuple[str, Callable[[], object]]]) -> None:
    """(launch file, what to do under it), one after another."""
    if any(launch.startswith("zero") for launch, _ in runs):
        import deepspeed.ops

        # Compiling this takes a minute on every new machine, for a faster all-reduce on a CPU.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for launch, work in runs:
        launched_by(launch)
        work()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_all([(launch, partial(train.main, [config])) for launch, config in json.loads(Path(sys.argv[1]).read_text())])
