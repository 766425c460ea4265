"""Ranks without GPUs find each other where Ray finds their nodes.

By itself gloo takes the address that the machine's own name leads to: on Debian 127.0.1.1, in a container perhaps none.
Ranks on two machines would not meet there.
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
    """Of Ray Train's process group."""

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
    """Have gloo use the network interface whose address is this node's, unless the environment names one."""
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault(INTERFACE, name)
