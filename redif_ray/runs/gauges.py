"""The metrics `ray_redif_...` of a run for Ray's dashboard and Prometheus, each with the tag `run`.

Setting a metric takes microseconds and never blocks; the node's agent collects the values. Without Ray's dashboard the
values are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from redif_ray.runs.timeline import Span

WAITS = {"round": "seconds/round", "gather": "seconds/gather", "fetch": "seconds/fetch"}  # stages without work


class RoundGauges:
    """The metrics that the learner sets after each round."""

    def __init__(self, run: str) -> None:
        self.round = _gauge(run, "round", "rounds done")
        self.rounds = _gauge(run, "rounds_per_second", "1 / seconds of the last round")
        self.groups = _gauge(run, "groups_per_second", "groups of the last round, a second")
        self.staleness = _gauge(run, "staleness", "policy versions between rollout and update of the last round")
        self.seconds = _gauge(run, "stage_seconds", "seconds of a stage in the last round, sums over workers", "stage")
        self.memory = _gauge(
            run, "gpu_memory_bytes", "GPU memory of the learner's first rank, as torch counts it", "kind"
        )

    def set(self, row: Mapping[str, Any], spans: Iterable[Span]) -> None:
        """Set the metrics of a round. row: the round's row of metrics.jsonl; spans: the work done for the round."""
        import torch  # the coordinator, which uses this module too, does not need torch

        self.round.set(row["round"] + 1)
        self.rounds.set(1 / row["seconds/round"])
        self.groups.set(row["groups_per_second"])
        self.staleness.set(row["staleness"])
        stages = {stage: row[key] for stage, key in WAITS.items()}
        for span in spans:
            stages[span["stage"]] = stages.get(span["stage"], 0.0) + span["seconds"]
        for stage, seconds in stages.items():
            self.seconds.set(seconds, {"stage": stage})
        if torch.cuda.is_available():
            for kind in ("allocated", "reserved"):
                self.memory.set(getattr(torch.cuda, f"memory_{kind}")(), {"kind": kind})


class PoolGauges:
    """The metrics that the coordinator sets for each role."""

    def __init__(self, run: str) -> None:
        self.queue = _gauge(run, "queue", "work units that wait for a worker", "role")
        self.busy = _gauge(run, "in_flight", "work units that a worker has", "role")
        self.workers = _gauge(run, "workers", "running workers", "role")
        self.lost = Counter("redif_lost", "repeated work units and lost workers, by what was lost", ("run", "what"))
        self.lost.set_default_tags({"run": run})

    def set(self, role: str, waiting: int, busy: int, workers: int) -> None:
        self.queue.set(waiting, {"role": role})
        self.busy.set(busy, {"role": role})
        self.workers.set(workers, {"role": role})

    def count(self, what: str) -> None:
        self.lost.inc(1, {"what": what})


def _gauge(run: str, name: str, text: str, *tags: str) -> Gauge:
    gauge = Gauge(f"redif_{name}", text, ("run", *tags))
    gauge.set_default_tags({"run": run})
    return gauge
