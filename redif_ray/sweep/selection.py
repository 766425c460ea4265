"""The unchanged recipe and trials with other settings, proposed by a sampler and cut where they fall behind.

Cuts are those of successive halving (ASHA, Li et al., arXiv 1810.05934): after each rung a trial continues if it is
among the best 1 / `sweep.reduction` of the trials known at this rung.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from redif_ray.config import Config, ConfigError
from redif_ray.errors import UserError
from redif_ray.planning.rounds import Phases
from redif_ray.sweep.plan import Plan, Run, Slot, Trial
from redif_ray.sweep.space import configured, current
from redif_ray.trials.samplers import propose
from redif_ray.trials.space import Params, Space, inside

RECIPE, TRIAL = "recipe", "trial"
LENGTHS = ("learner.rounds", "warm_start.rounds", "method")


class Selection(Plan):
    """A plan of the recipe and `sweep.trials` trials. The best trial is never worse than the recipe, which competes."""

    def __init__(self, config: Config, space: Space) -> None:
        self.config, self.space, self.settings = config, space, config.sweep
        if config.sweep.rungs and (length := next((key for key in space if key in LENGTHS), None)):
            raise ConfigError(
                f"sweep.space.{length}: trials that sweep.rungs cuts must be of equal length, which this key changes; "
                "take it out of sweep.space, or set sweep.scheduler=none and sweep.rungs=[]"
            )
        if config.sweep.rungs and config.sweep.rungs[-1] >= Phases(config).rounds:
            raise ConfigError(
                f"sweep.rungs={list(config.sweep.rungs)}: expected rounds below those of a run, {Phases(config).rounds}"
            )
        slots = [Slot(0, RECIPE, 0), *(Slot(1 + i, TRIAL, i) for i in range(config.sweep.trials))]
        super().__init__(slots, config.sweep.concurrent)

    def run(self, slot: Slot) -> Run:
        if slot.stage == RECIPE:
            return self._run(RECIPE, {})
        settings = propose(
            self.settings.sampler,
            self.space,
            self._seen(slot),
            seed=self.config.run.seed,
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
        """Return the known trials for the sampler: (settings, minus the score at the end of the run).

        A cut trial's score at the end is estimated as its last score plus the recipe's gain from that rung to the end.
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
        """Return the best trial among those that ran to the end. Raises UserError where no trial did."""
        whole = [t for t in self.finished() if len(t.scores) > len(self.settings.rungs)]
        if not whole:
            failed = [t.error for t in self.trials.values() if t.error is not None]
            raise UserError(
                f"no trial of the sweep ran to its end; {len(failed)} failed, the first one with {failed[0]}"
            )
        return max(whole, key=lambda t: (t.score, -t.number))

    def history(self) -> list[tuple[int, dict[str, object]]]:
        """Return [(last round, settings)] of the best trial, which is one part."""
        settings = dict(self.best().settings)
        return [(self._rounds(settings), settings)]
