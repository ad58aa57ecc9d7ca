"""Frozen networks follow their owner and are no part of it."""

import torch
from torch import nn

from genvid.frozen import Frozen


def test_a_frozen_network_follows_its_owner_and_is_no_part_of_it():
    owner, network = nn.Module(), nn.Linear(2, 2).eval()
    owner.held = Frozen(network)
    owner.to(torch.float64)
    assert network.weight.dtype == torch.float64
    assert owner.train().held.network is network
    assert not network.training
    assert not list(owner.parameters())
    assert not owner.state_dict()
