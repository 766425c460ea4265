"""Accounts of a run's seconds, network calls and FLOPs by component."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from redif_ray.config import LEARNED, Config
from redif_ray.evaluation.compute import ComputeLedger, prediction_flops, update_factor
from redif_ray.faults import Fetched
from redif_ray.models.registry import teacher_outline
from redif_ray.types import Meta

COMPONENTS = {"rollout": "student_rollout"}  # ledger name of a worker's component, where the two differ


class Accounts:
    """Books the work that workers report and the learner's own into a `ComputeLedger`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.flops = prediction_flops(teacher_outline(config.teacher))
        lora, checkpointing = config.student.lora.rank > 0, bool(config.learner.activation_checkpointing)
        self.factor = update_factor(lora=lora, checkpointing=checkpointing)
        self.ledger = ComputeLedger()

    def load(self, state: Mapping[str, Any]) -> None:
        self.ledger = ComputeLedger(state)

    def add_round(self, data: Fetched, metrics: Mapping[str, float]) -> None:
        """Book a round: the workers' reports, the update by its network calls, and a learned reward by its metrics.

        Fixed reward terms are booked in seconds only; the learned one also in FLOPs, for its scoring and training.
        """
        for metas in data.metas:
            self._add(metas)
        forward, backward = (metrics[f"update/network_calls_{way}"] for way in ("forward", "backward"))
        guided = 1 if self.config.student.guidance == 1 else 2
        flops = (forward + backward * (self.factor - 1)) * guided * self.flops
        self.ledger.add("update", seconds=metrics["update/seconds"], nfe=forward * guided, flops=flops)
        if f"{LEARNED}/flops" in metrics:
            self.ledger.add("rewards", seconds=metrics[f"{LEARNED}/seconds"], flops=metrics[f"{LEARNED}/flops"])

    def add_evaluation(self, metas: Iterable[Meta]) -> None:
        """Book all work of `metas` as the component `evaluation`, whichever worker did it."""
        self._add(metas, "evaluation")

    def _add(self, metas: Iterable[Meta], component: str | None = None) -> None:
        for meta in metas:
            for work in meta.work:
                name = component or COMPONENTS.get(work.component, work.component)
                calls = work.network_calls
                self.ledger.add(name, seconds=work.seconds, nfe=calls, flops=calls * self.flops)
