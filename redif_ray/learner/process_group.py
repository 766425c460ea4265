"""The process group of a learner's ranks: which addresses it uses, and where its ranks meet.

Ranks on one node meet in a file, because the store by which torch lets ranks meet over the network listens on all
addresses of the machine and asks for no token. By default gloo uses the address to which the machine's host name
resolves: 127.0.1.1 on Debian, and perhaps none in a container. Ranks on two machines could not reach each other there.
"""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"
TorchBackend: Any = TorchConfig().backend_cls  # Ray Train has no public name for the class


class ProcessGroup(TorchConfig):
    """Configuration of Ray Train's process group, gloo's bound to the interface of Ray's node address."""

    @property
    def backend_cls(self) -> type[Any]:
        return _Meeting


class _Meeting(TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if backend_config.backend == "gloo":
            worker_group.execute(choose_interface)
        if len(set(worker_group.execute(node))) > 1:
            super().on_start(worker_group, backend_config)
            return
        path, ranks = worker_group.execute_single(0, empty_file), len(worker_group)
        options = (backend_config.backend, path, ranks, backend_config.timeout_s)
        ray.get([worker_group.execute_single_async(rank, meet, rank, *options) for rank in range(ranks)])


def node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def empty_file() -> str:
    """Make a file that no other user reads, in TMPDIR, which on a private cluster goes with Ray's session."""
    descriptor, path = tempfile.mkstemp(prefix="redif-ranks-")
    os.close(descriptor)
    return path


def meet(rank: int, backend: str, path: str, ranks: int, timeout_s: int) -> None:
    """Join the process group of `ranks` ranks that meet in the file `path`."""
    timeout = timedelta(seconds=timeout_s)
    store = dist.FileStore(path, ranks)  # a file:// address would end at a # in the path
    store.set_timeout(timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)


def choose_interface() -> None:
    """Make gloo use the network interface that has this node's Ray address, unless GLOO_SOCKET_IFNAME is set."""
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault(INTERFACE, name)
