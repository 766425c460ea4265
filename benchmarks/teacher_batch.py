"""The seconds of a core that the teacher's images take by `teacher.batch`, interleaved in one process.

    python -m benchmarks.teacher_batch [CONFIG] [KEY=VALUE ...] [--batches 2 8 50] [--groups 96] [--repeats 3]

Every batch has a store of its own, so that no images are found.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch

from redif_ray.config import Config, load
from redif_ray.planning import factory
from redif_ray.planning.rounds import RoundPlan
from redif_ray.workers.reward import TeacherRewardWorker


def seconds(config: Config, groups: int, root: Path) -> float:
    """Return the seconds in which a worker makes the images of the policy's first groups, asked unit by unit."""
    teacher = config.teacher.model_copy(update={"store": tempfile.mkdtemp(dir=root)})
    worker = TeacherRewardWorker("reward-0", config.model_copy(update={"teacher": teacher}))
    plan = RoundPlan(config, factory.conditions(config, worker.teacher))
    first, started, made = plan.phases[-1].first_round, time.perf_counter(), 0
    for round in range(first, plan.rounds):
        for unit in plan.units(round):
            if made >= groups:
                return time.perf_counter() - started
            worker.sent_targets(unit, plan.sampled_with(unit))
            made += len(unit.groups)
    raise ValueError(f"the phase has {made} groups; expected at least {groups}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="fashion_mnist")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8, 50])
    parser.add_argument("--groups", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[int, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as root:
        for _ in range(options.repeats):
            for batch in options.batches:
                config = load(options.config, [*options.overrides, f"teacher.batch={batch}"])
                found[batch].append(1e3 * seconds(config, options.groups, Path(root)) / options.groups)
    least = statistics.median(found[options.batches[0]])
    print("| teacher.batch | ms an image | share of the first |\n|---:|---:|---:|")
    for batch, each in found.items():
        middle = statistics.median(each)
        print(f"| {batch} | {middle:.1f} ({min(each):.1f} to {max(each):.1f}) | {middle / least:.2f} |")


if __name__ == "__main__":
    main()
