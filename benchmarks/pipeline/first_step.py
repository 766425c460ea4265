"""Measure the gain of siblings that share their first step: rollout and update with it, and with a step for each."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.short_runs import recipe
from benchmarks.suite import Part
from redif_ray.config import Anchor, Regulariser
from redif_ray.diffusion import noise, solvers
from redif_ray.diffusion.rollout import rollout
from redif_ray.interrupt import StopRequest
from redif_ray.learning.batch import RoundBatch
from redif_ray.learning.exploration import explored_stds
from redif_ray.learning.rounding import ratio_tolerance
from redif_ray.learning.update import Updater
from redif_ray.models.protocol import repeated
from redif_ray.models.student import get_weights, set_weights, trainable
from redif_ray.planning import factory
from redif_ray.planning.rounds import RoundPlan

STEP = 1e2  # so long that moves are far above the rounding of the weights
HEAD = ["", "network calls, shared", "plain", "seconds, shared", "plain", "times faster"]


def first_step(
    root: Path,
    stop: StopRequest,
    console: Console,
    *,
    repeats: int = 5,
    base: str = "fashion_mnist",
    overrides: tuple[str, ...] = (),
) -> Part:
    case = _Case(root, base, overrides)
    seconds: dict[tuple[str, bool], list[float]] = {}
    calls: dict[tuple[str, bool], float] = {}
    moved: dict[bool, torch.Tensor] = {}
    for repeat in range(repeats + 1):
        for shared in (True, False):
            stop.check()
            for name, (took, count) in case.round(shared, moved).items():
                calls[name, shared] = count
                if repeat:  # the first warms up
                    seconds.setdefault((name, shared), []).append(took)
    medians = {key: float(np.median(values)) for key, values in seconds.items()}
    rows = [
        [
            name,
            f"{calls[name, True]:.0f}",
            f"{calls[name, False]:.0f}",
            f"{medians[name, True]:.2f}",
            f"{medians[name, False]:.2f}",
            f"{medians[name, False] / medians[name, True]:.2f}",
        ]
        for name in ("rollout", "update")
    ]
    whole = {shared: medians["rollout", shared] + medians["update", shared] for shared in (True, False)}
    error = float((moved[True] - moved[False]).abs().max() / moved[False].abs().max())
    r = case.config.rollout
    return Part(
        "first_step",
        "The first step, shared by siblings",
        HEAD,
        rows,
        {"speedup": whole[False] / whole[True], "error": error},
        [
            f"{r.groups} groups of {r.siblings}, N = {case.config.student.steps}, one thread, medians of {repeats}. "
            f"Both together {whole[False] / whole[True]:.2f} times faster. After one step of plain gradient descent, "
            f"no weight has moved differently by more than {error:.1e} of the largest move."
        ],
    )


class _Case:
    """One round of a recipe, in this process."""

    def __init__(self, root: Path, base: str, overrides: tuple[str, ...]) -> None:
        torch.set_num_threads(1)
        config = recipe(root, "first-step", *overrides, base=base)
        one_unit = f"rollout.unit_groups={config.rollout.groups}"
        self.config = config = recipe(root, "first-step", *overrides, one_unit, base=base)
        teacher = factory.teacher(config, "cpu")
        self.student = factory.student(config, teacher)
        self.schedule = factory.student_schedule(self.student, config.student)
        self.stds = explored_stds(self.schedule, config.exploration, 0)
        self.start = get_weights(self.student)
        (self.unit,) = RoundPlan(config, factory.conditions(config, teacher)).units(0)
        self.once = self.student.encode(self.unit.conditions)
        self.each = repeated(self.once, config.rollout.siblings)
        shape, stream = self.student.latent_shape, self.unit.stream
        unit_noise = noise.initial_noise(self.unit.groups, shape, seed=config.run.seed, stream=stream)
        self.x = solvers.initial(self.schedule, unit_noise.repeat_interleave(config.rollout.siblings, 0))

    def round(self, shared: bool, moved: dict[bool, torch.Tensor]) -> dict[str, tuple[float, float]]:
        """(seconds, network calls) of both halves; `moved[shared]`: how far the weights went, flat."""
        config, siblings, rows = self.config, self.config.rollout.siblings, len(self.x)
        set_weights(self.student, self.start)
        guidance = config.student.guidance
        options: dict[str, Any] = {}
        if shared:
            options = {"once": self.student.predictor(self.once, guidance), "siblings": siblings}
        began = time.perf_counter()
        predict = self.student.predictor(self.each, guidance)
        episode = rollout(predict, self.x, self.schedule, self.stds, self._draw, **options)
        rolled = time.perf_counter() - began
        steps = self.schedule.steps
        states = self.unit.predictions(steps) if shared else rows * steps
        batch = RoundBatch(
            torch.arange(rows),
            rows,
            episode.latents,
            episode.means,
            episode.log_probs,
            advantages=torch.linspace(-1, 1, rows),
            encoded=self.each,
            origin=torch.arange(rows) // siblings * siblings if shared else None,
        )
        alone = {"anchor": Anchor(), "regulariser": Regulariser(), "minibatch": None}
        learner = config.learner.model_copy(update=alone)
        optimizer = torch.optim.SGD(trainable(self.student).values(), lr=1.0)
        updater = Updater(
            partial(self.student.predict, guidance=guidance),
            optimizer,
            self.schedule,
            self.stds,
            learner,
            ratio_tolerance=ratio_tolerance(config),
        )
        metrics = updater.run(batch, round=0, seed=config.run.seed, lr=STEP)
        change = [(w - self.start[name]).reshape(-1) for name, w in get_weights(self.student).items()]
        moved[shared] = torch.cat(change)
        return {"rollout": (rolled, states), "update": (metrics["seconds"], metrics["network_calls_forward"])}

    def _draw(self, step: int) -> torch.Tensor:
        groups, siblings, _ = self.unit.per_row()
        shape, seed = self.student.latent_shape, self.config.run.seed
        return noise.exploration_noise(groups, siblings, shape, seed=seed, round=0, step=step)
