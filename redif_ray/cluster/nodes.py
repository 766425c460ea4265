"""The machines of a cluster with their GPUs and memory, asked before a run starts."""

from __future__ import annotations

import logging
import re
import subprocess
from typing import Any

import psutil

from redif_ray.cluster.connect import in_own_cluster, join, private_cpus
from redif_ray.config import Config
from redif_ray.planning.nodes import Node

import ray  # isort: skip  # after `connect`, which sets the environment that Ray reads
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip

log = logging.getLogger(__name__)
MIB = 2**20 / 1e6  # MB
STORE_SHARE = 0.3  # of the free memory that Ray gives a private cluster's object store
ASK_SECONDS = 60  # time for all nodes to say which GPUs they have


def nodes(config: Config) -> list[Node]:
    """Return the machines that a run may be placed on: those of the cluster that it joins, or this one alone.

    Nodes that an autoscaler could add are not among them. Raises ConfigError where the cluster cannot be joined.
    """
    if ray.is_initialized() and not in_own_cluster():
        return _asked()
    if config.ray.address == "local":
        return [_here(config)]
    join(config.ray.address)
    try:
        return _asked()
    finally:
        ray.shutdown()


def gpus() -> tuple[tuple[str, float], ...]:
    """Return name and memory in MB of each GPU of this machine as nvidia-smi lists them, also those hidden from torch.

    Empty without nvidia-smi, and without a GPU whose memory it tells.
    """
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=ASK_SECONDS / 2).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = (re.fullmatch(r"(.+), *(\d+)", line.strip()) for line in listed.splitlines())
    return tuple((row[1], MIB * int(row[2])) for row in rows if row)


def _here(config: Config) -> Node:
    """Return this machine as a private cluster has it."""
    import torch  # here, since the import takes seconds that other users of this module need not spend

    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    free = psutil.virtual_memory().available / 1e6
    return Node(
        resources={"CPU": private_cpus(config), "GPU": len(cards)},
        labels={},
        gpus=tuple((card.name, card.total_memory / 1e6) for card in cards),
        memory=free,
        store=config.ray.object_store_mb or STORE_SHARE * free,
        driver=True,
    )


def _asked() -> list[Node]:
    """Return the nodes of the cluster that this process has joined. A task on each node with GPUs looks at them.

    Main memory is what Ray counts: what was free as the node started, or its container's, less the object store.
    """
    up = [node for node in ray.nodes() if node["Alive"]]
    here, seen = ray.get_runtime_context().get_node_id(), _gpus_of(up)
    return [
        Node(
            resources=node["Resources"],
            labels=node["Labels"],
            gpus=seen.get(node["NodeID"], ()),
            memory=node["Resources"].get("memory", 0) / 1e6,
            store=node["Resources"].get("object_store_memory", 0) / 1e6,
            driver=node["NodeID"] == here,
        )
        for node in up
    ]


def _gpus_of(up: list[dict[str, Any]]) -> dict[str, tuple[tuple[str, float], ...]]:
    """Return the GPUs of each node that has any, by the node's id; a node that does not answer is left out, and named.

    The tasks ask for no GPU, so that they need not wait for those that others use.
    """
    asked = {}
    for node in up:
        if node["Resources"].get("GPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look = ray.remote(gpus).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            asked[node["NodeID"]] = look.remote(), node["NodeManagerAddress"]
    references = [reference for reference, _ in asked.values()]
    if references:
        ray.wait(references, num_returns=len(references), timeout=ASK_SECONDS)
    found = {}
    for name, (reference, address) in asked.items():
        try:
            found[name] = ray.get(reference, timeout=0)
        except ray.exceptions.RayError as error:
            ray.cancel(reference, force=True)
            log.warning("node %s did not say which GPUs it has: %s", address, str(error).strip().splitlines()[-1])
    return found
