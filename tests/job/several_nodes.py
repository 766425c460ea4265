"""A cluster of several Ray nodes on this machine, and a run on it. Ray starts nodes in the main thread only."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redif_ray.cluster import connect  # before Ray: the environment that it reads

import ray  # isort: skip
from ray.cluster_utils import Cluster  # isort: skip
from rich.console import Console

from redif_ray.config import Config
from redif_ray.interrupt import StopRequest
from redif_ray.job.distill import run_part


@contextmanager
def head(**about: Any) -> Iterator[Cluster]:
    """A cluster of a head alone, joined by this process."""
    (Path(tempfile.gettempdir()) / "ray").mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            **about,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
            "object_store_memory": 200 * 10**6,
        },
    )
    ray.init(
        address=nodes.address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": connect.ENVIRONMENT}
    )
    yield nodes
    ray.shutdown()
    nodes.shutdown()


class Run:
    """A run in a thread of its own."""

    def __init__(self, config: Config, *, until: int | None = None, resume: bool = False) -> None:
        self.config, self.until, self.resume = config, until, resume
        self.failure = list[BaseException]()
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self) -> None:
        try:
            run_part(self.config, StopRequest(), until=self.until, resume=self.resume, console=Console())
        except BaseException as error:
            self.failure.append(error)

    def wait(self, point: Callable[[], bool] = lambda: False) -> None:
        """Until `point`, or the end of the run. Raises the error that ended it."""
        while self.thread.is_alive() and not point():
            time.sleep(0.05)
        if self.failure:
            raise self.failure[0]
