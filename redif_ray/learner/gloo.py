"""A gloo process group, for ranks without GPUs, that uses the network interface of Ray's node address.

By default gloo uses the address to which the machine's host name resolves: 127.0.1.1 on Debian, and perhaps none in a
container. Ranks on two machines could not reach each other there.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"
TorchBackend: Any = TorchConfig().backend_cls  # Ray Train has no public name for the class


class Gloo(TorchConfig):
    """Configuration of Ray Train's process group: gloo, bound to the interface of Ray's node address."""

    def __init__(self) -> None:
        super().__init__(backend="gloo")

    @property
    def backend_cls(self) -> type[Any]:
        return _Meeting


class _Meeting(TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Make gloo use the network interface that has this node's Ray address, unless GLOO_SOCKET_IFNAME is set."""
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault(INTERFACE, name)
