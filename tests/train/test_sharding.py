"""Weights that FSDP2 gathers."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from genvid.train.sharding import keep_addresses


@pytest.mark.gpu
def test_weights_are_gathered_at_the_same_addresses(gpu: torch.device) -> None:
    torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    widths = [64, 600, 2048, 2048, 1500, 8]
    model = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(widths))).to(gpu)
    fully_shard(model)
    keep_addresses(model)
    addresses: list[list[int]] = []
    model[-1].register_forward_hook(lambda *_: addresses.append([p.data_ptr() for p in model.parameters()]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    others = []
    for step in range(8):
        model(torch.rand(4, 64, device=gpu)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        others.append(torch.empty(step * 1_000_000, device=gpu))  # may take memory that the weights had
    torch.distributed.destroy_process_group()
    assert addresses[3:] == 5 * [addresses[3]]
