"""Networks that are used but not trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Self, TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class Frozen(nn.Module, Generic[Network]):
    """A network that follows the module which owns this holder to its device, and is no part of it otherwise: its
    weights are in no parameters(), no state_dict(), no optimizer and no moving average."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple, nn.Module does not register it

    @property
    def network(self) -> Network:
        return self._network[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(fn)  # type: ignore[no-untyped-call]
        return self
