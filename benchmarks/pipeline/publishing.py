"""Measure the way of weights from the learner to its workers: seconds, copies, and room in the object store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console

from benchmarks.short_runs import recipe
from benchmarks.suite import Part
from benchmarks.watch import watching
from redif_ray.cluster.connect import connect
from redif_ray.interrupt import StopRequest
from redif_ray.weights.publisher import Publisher, fetch
from redif_ray.weights.store import WeightStore

TENSORS = 16
PROCESSES = 8
LOOK_SECONDS = 0.02
HEAD = ["weights, MB", "receivers", "published, s", "all have them, s", "object store, MB", "copies in it"]


class Receivers:
    """Workers that fetch weights as a rollout worker does, and read all of them."""

    def receive(self, store: Any, key: str) -> float:
        weights, _ = fetch(store, key)
        return float(sum(w.numel() for w in weights.values()))


def publishing(
    root: Path,
    stop: StopRequest,
    console: Console,
    *,
    megabytes: Sequence[int] = (10, 100, 1000),
    receivers: Sequence[int] = (1, 8, 32),
    threads: int = 1,
) -> Part:
    torch.set_num_threads(threads)
    rows, numbers = [], {}
    with connect(recipe(root, "publishing", f"ray.object_store_mb={5 * max(megabytes) + 300}")):
        store = ray.remote(WeightStore).options(num_cpus=0).remote(keep=1)
        publisher, hosts = Publisher(store), _hosts(max(receivers))
        ray.get([host.receive.remote(store, _warm(publisher)) for host in hosts])
        parts = [(size, count) for size in megabytes for count in receivers]
        for version, (size, count) in enumerate(parts, 1):
            stop.check()
            publisher.forget(before=version)
            weights = {f"w{i}": torch.rand(size * 250_000 // TENSORS) for i in range(TENSORS)}
            began = time.perf_counter()
            peak = _Peak()
            with watching(peak.look, LOOK_SECONDS):
                publisher.publish(f"policy-{version}", weights)
                published = time.perf_counter() - began
                ray.get([hosts[i % len(hosts)].receive.remote(store, f"policy-{version}") for i in range(count)])
                everywhere = time.perf_counter() - began
            rows.append(
                [
                    str(size),
                    str(count),
                    f"{published:.2f}",
                    f"{everywhere:.2f}",
                    f"{peak.megabytes:.0f}",
                    f"{peak.megabytes / size:.1f}",
                ]
            )
            numbers[f"store_{size}_{count}"] = everywhere
    return Part(
        "publishing",
        "Publishing weights",
        HEAD,
        rows,
        numbers,
        [
            f"On one node, whose object store all receivers share; at most {PROCESSES} processes hold them, and each "
            "of these lets one receiver in after the other. The publisher hashes all bytes once; a receiver adds up "
            "the numbers where they lie. The store holds the weights as they arrive from the learner and as the "
            "weight store's own object, which outlives the learner, and until it is let go the version before."
        ],
    )


def _hosts(receivers: int) -> list[Any]:
    kind = ray.remote(Receivers).options(num_cpus=0)
    return [kind.remote() for _ in range(min(PROCESSES, receivers))]


def _warm(publisher: Publisher) -> str:
    publisher.publish("policy-0", {"w": torch.zeros(8)})
    return "policy-0"


class _Peak:
    """The most that the object store of this node held when it was looked at, in MB."""

    def __init__(self) -> None:
        self.megabytes = 0.0
        self.whole = ray.cluster_resources()["object_store_memory"]

    def look(self) -> None:
        used = self.whole - ray.available_resources().get("object_store_memory", 0.0)
        self.megabytes = max(self.megabytes, used / 1e6)
