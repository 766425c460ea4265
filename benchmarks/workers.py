"""Rollouts a second of two rollout workers against one's, on the demo's work units; the ratio of runs that alternate.

    python -m benchmarks.workers [--units 16] [--repeats 5]

Needs two idle cores. Work alone is timed: workers have loaded, weights are in place.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import ray

from redif_ray.cluster.connect import connect
from redif_ray.config import load
from redif_ray.coordinator.pool import Pool
from redif_ray.models.registry import load_teacher
from redif_ray.models.student import get_weights, make_student
from redif_ray.planning import factory
from redif_ray.planning.rounds import RoundPlan
from redif_ray.types import WorkUnit
from redif_ray.weights.publisher import Publisher
from redif_ray.weights.store import WeightStore
from redif_ray.workers.actors import RolloutActor

KEY = "policy-0"


async def rate(workers: list[Any], store: Any, units: list[WorkUnit]) -> float:
    """Trajectories a second."""
    pool = Pool("rollout", workers, print)
    started = time.perf_counter()
    await asyncio.gather(*(pool.call((0, 0), "rollout", unit, store, KEY) for unit in units))
    return sum(unit.rows for unit in units) / (time.perf_counter() - started)


async def measure(workers: list[Any], store: Any, units: list[WorkUnit], repeats: int) -> list[tuple[float, float]]:
    await rate(workers, store, units)
    return [(await rate(workers[:1], store, units), await rate(workers, store, units)) for _ in range(repeats)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    config = load("fashion_mnist", ["warm_start.rounds=0", "rollout.max_workers=2"])
    teacher = load_teacher(config.teacher)
    plan = RoundPlan(config, factory.conditions(config, teacher))
    units = [unit for round in range(options.units) for unit in plan.units(round)][: options.units]
    with connect(config):
        store = ray.remote(WeightStore).options(num_cpus=0).remote()
        Publisher(store).publish(KEY, get_weights(make_student(teacher, config.student.lora)))
        seen = Path(__file__)  # stands for the token of a run folder
        workers = [ray.remote(RolloutActor).remote(f"rollout-{i}", config, seen) for i in range(2)]
        ray.get([worker.ready.remote() for worker in workers])
        found = asyncio.run(measure(workers, store, units, options.repeats))
    for one, two in found:
        print(f"one worker {one:6.1f} trajectories/s   two {two:6.1f}   ratio {two / one:.2f}")
    print(f"median ratio {statistics.median(two / one for one, two in found):.2f}")


if __name__ == "__main__":
    main()
