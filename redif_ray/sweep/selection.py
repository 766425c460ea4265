"""The recipe as it is, and trials around it: proposed by a sampler, cut where they fall behind.

Cuts are those of successive halving (ASHA, Li et al., arXiv 1810.05934): after each rung a trial goes on where it is
among the best 1 / `sweep.reduction` of those known there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from redif_ray.config import Config, ConfigError
from redif_ray.planning.rounds import Phases
from redif_ray.sweep.plan import Plan, Run, Slot, Trial
from redif_ray.sweep.space import configured, current
from redif_ray.trials.samplers import propose
from redif_ray.trials.space import Params, Space, inside

RECIPE, TRIAL = "recipe", "trial"
LENGTHS = ("learner.rounds", "warm_start.rounds", "method")


class Selection(Plan):
    """The best of all is `best()`: never worse, by the metric, than the recipe."""

    def __init__(self, config: Config, space: Space) -> None:
        self.config, self.space, self.settings = config, space, config.sweep
        if config.sweep.rungs and (length := next((key for key in space if key in LENGTHS), None)):
            raise ConfigError(f"sweep.space.{length}: trials that sweep.rungs cuts must be of equal length")
        if config.sweep.rungs and config.sweep.rungs[-1] >= Phases(config).rounds:
            raise ConfigError(
                f"sweep.rungs={list(config.sweep.rungs)}: expected rounds below those of a run, {Phases(config).rounds}"
            )
        slots = [Slot(0, RECIPE, 0), *(Slot(1 + i, TRIAL, i) for i in range(config.sweep.trials))]
        super().__init__(slots, config.sweep.concurrent)

    def run(self, slot: Slot) -> Run:
        seed = self.config.run.seed
        if slot.stage == RECIPE:
            return self._run(RECIPE, {})
        settings = propose(
            self.settings.sampler,
            self.space,
            self._seen(slot),
            seed=seed,
            number=slot.number,
            index=slot.index,
            budget=self.settings.trials,
            noisy=True,
        )
        return self._run(f"trial-{slot.index:03d}", dict(settings))

    def _run(self, name: str, settings: dict[str, Any]) -> Run:
        rounds = self._rounds(settings)
        return Run(name, self.config.run.seed, settings, rounds, (*self.settings.rungs, rounds))

    def _rounds(self, settings: Mapping[str, Any]) -> int:
        return Phases(configured(self.config, settings)).rounds

    def known(self, slot: Slot) -> list[Trial]:
        before = self.known_before(slot)
        return [t for t in self.finished() if t.number < before and t.scores]

    def _seen(self, slot: Slot) -> list[tuple[Params, float]]:
        """Trials as the sampler is told them: minus the last score, or minus what a cut trial's would have been.

        What the recipe gained from a rung to its end is what a cut trial is credited with.
        """
        known = self.known(slot)
        recipe = next((t.scores for t in known if t.stage == RECIPE), None)
        seen: list[tuple[Params, float]] = []
        for trial in known:
            missed = recipe[-1] - recipe[len(trial.scores) - 1] if recipe else 0.0
            point = trial.settings if trial.stage == TRIAL else current(self.config, self.space)
            if inside(self.space, point):
                seen.append((point, -(trial.score + missed)))
        return seen

    def goes_on(self, slot: Slot, scores: list[float]) -> bool:
        if len(scores) > len(self.settings.rungs):
            return False
        others = [t.scores[len(scores) - 1] for t in self.known(slot)]
        if slot.stage == RECIPE or len(others) + 1 < self.settings.reduction:
            return True
        return scores[-1] >= float(np.quantile(others, 1 - 1 / self.settings.reduction))

    def best(self) -> Trial:
        """The highest score of those that ran to the end. Raises ValueError where none did."""
        whole = [t for t in self.finished() if len(t.scores) > len(self.settings.rungs)]
        return max(whole, key=lambda t: (t.score, -t.number))

    def history(self) -> list[tuple[int, dict[str, object]]]:
        """(round, settings until then) of the best."""
        settings = dict(self.best().settings)
        return [(self._rounds(settings), settings)]
