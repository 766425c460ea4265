"""The plan of a search (see `trials.plan`).

The trials of each N run in stages: the starts (every named schedule, and GITS), scored on the whole bank; shapes of a
base; single increments around the best trial; the network's timesteps at the best levels. Trials of different N
alternate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from redif_ray import config
from redif_ray.diffusion.levels import NoiseProcess
from redif_ray.diffusion.schedules import NAMES, Schedule, Times, explicit
from redif_ray.search import space
from redif_ray.trials import plan
from redif_ray.trials.samplers import propose
from redif_ray.trials.space import Params

Stage = Literal["start", "shape", "refine", "network_timesteps"]
STAGES: tuple[Stage, ...] = ("start", "shape", "refine", "network_timesteps")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for trial `number`, which is the `index`-th of its stage at N = `steps`."""

    number: int
    steps: int
    stage: Stage
    index: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A finished trial.

    timesteps: the schedule's levels [N], noisiest first; scores: the objective on the noises up to each rung; error:
    the reason of a failure; network_timesteps: [N]; None: the network is called with the levels' own timesteps.
    """

    number: int
    steps: int
    stage: Stage
    params: dict[str, float | str]
    timesteps: list[float]
    scores: list[float]
    error: str | None = None
    network_timesteps: list[float] | None = None

    @property
    def times(self) -> Times:
        return Times(tuple(self.timesteps), None if self.network_timesteps is None else tuple(self.network_timesteps))

    def row(self) -> dict[str, Any]:
        return asdict(self)


class Plan(plan.Plan[Slot, Trial]):
    """The plan of a search. starts: by N, the start schedules by name."""

    def __init__(
        self, settings: config.Search, seed: int, process: NoiseProcess, starts: Mapping[int, Mapping[str, Schedule]]
    ) -> None:
        self.settings, self.seed, self.process, self.starts = settings, seed, process, starts
        super().__init__(self._slots(), settings.concurrent)

    def _slots(self) -> list[Slot]:
        wanted: list[tuple[int, Stage, int]] = []
        s = self.settings
        counts = {"shape": s.shape_trials, "refine": s.refine_trials, "network_timesteps": s.network_timestep_trials}
        for stage in STAGES:
            each = {n: len(named) if stage == "start" else counts[stage] for n, named in self.starts.items()}
            wanted += [(n, stage, i) for i in range(max(each.values())) for n in self.starts if i < each[n]]
        return [Slot(number, *rest) for number, rest in enumerate(wanted)]

    def ready(self, slot: Slot) -> bool:
        return slot.stage == "start" or super().ready(slot)

    def known(self, slot: Slot) -> list[Trial]:
        """Return the successful trials of the same N that the trial of `slot` may depend on, by number."""
        before = self.known_before(slot)
        return [t for n, t in sorted(self.trials.items()) if n < before and t.steps == slot.steps and t.error is None]

    def proposal(self, slot: Slot) -> dict[str, Any]:
        """Return the trial's parameters and schedule under "params", "timesteps" and "network_timesteps"."""
        params, schedule = self._proposed(slot)
        levels, network_timesteps = schedule.times
        return {"params": params, "timesteps": list(levels), "network_timesteps": network_timesteps}

    def _proposed(self, slot: Slot) -> tuple[dict[str, float | str], Schedule]:
        named = self.starts[slot.steps]
        if slot.stage == "start":
            name = list(named)[slot.index]
            return {"start": name}, named[name]
        known, s = self.known(slot), self.settings
        scored = [(t, t.scores[-1] + offset) for t in known for offset in [self._offset(known)[len(t.scores)]]]
        observed: list[tuple[Params, float]]
        if slot.stage == "shape":
            bases = s.bases or tuple(name for name in named if name in NAMES)
            observed = [(self._shape(t), value) for t, value in scored if t.params.get("start", bases[0]) in bases]
            domain, budget = space.shape_space(bases, slot.steps), s.shape_trials
        else:
            refine = slot.stage == "refine"
            domain, budget = space.refine_space(slot.steps), s.refine_trials
            if not refine:
                domain, budget = space.shift_space(slot.steps), s.network_timestep_trials
            observed = [(dict.fromkeys(domain, 0.0), self._centre(slot).scores[-1])]
            observed += [(t.params, value) for t, value in scored if t.stage == slot.stage]
        params = dict(
            propose(s.sampler, domain, observed, seed=self.seed, number=slot.number, index=slot.index, budget=budget)
        )
        if slot.stage == "shape":
            return params, space.shaped(self.process, slot.steps, params)
        centre = explicit(self.process, self._centre(slot).timesteps)
        return params, (space.refined if refine else space.shifted)(self.process, centre, params)

    @staticmethod
    def _shape(trial: Trial) -> Params:
        """Return the point of the shape's space that a trial stands for; a start is its own base, unwarped."""
        return trial.params if trial.stage == "shape" else {"base": str(trial.params["start"]), "tilt": 0.0, "bow": 0.0}

    def over(self, slot: Slot, proposal: Mapping[str, Any], scores: list[float], error: str | None) -> Trial:
        network_timesteps = None if proposal["network_timesteps"] is None else list(proposal["network_timesteps"])
        params, timesteps = proposal["params"], proposal["timesteps"]
        return Trial(slot.number, slot.steps, slot.stage, params, timesteps, scores, error, network_timesteps)

    def restored(self, row: Mapping[str, Any]) -> Trial:
        return Trial(**row)

    def _centre(self, slot: Slot) -> Trial:
        """Return the trial that `slot` varies: the best of the stages before."""
        before = STAGES[: STAGES.index(slot.stage)]
        return self._best([t for t in self.known(slot) if t.stage in before], slot.steps)

    def _offset(self, known: list[Trial]) -> dict[int, float]:
        """Return, by number of rungs, the best start's score on the whole bank minus its score on these rungs.

        All trials see the same noises in the same order, so adding the offset makes a score on the first rungs
        comparable with a score on the whole bank.
        """
        start = self._best([t for t in known if t.stage == "start"], known[0].steps if known else 0)
        return {i + 1: start.scores[-1] - score for i, score in enumerate(start.scores)}

    def goes_on(self, slot: Slot, scores: list[float]) -> bool:
        """Tell whether a trial continues after the last of `scores`.

        A start continues to the last rung. Another trial continues if its score is among the best 1 / `reduction` of
        the scores at its rung of all trials that it may depend on.
        """
        if len(scores) == len(self.settings.rungs):
            return False
        if slot.stage == "start":
            return True
        others = [t.scores[len(scores) - 1] for t in self.known(slot)]
        return scores[-1] <= float(np.quantile(others, 1 / self.settings.reduction))

    def best(self, steps: int, *, other: bool = False) -> Trial:
        """Return the best trial on the whole bank at N = `steps`. Raises ValueError if there is none.

        other: consider trials with network timesteps of their own; False: the trials without.
        """
        return self._best([t for t in self.trials.values() if (t.network_timesteps is not None) == other], steps)

    def _best(self, trials: list[Trial], steps: int) -> Trial:
        whole = [
            t for t in trials if t.steps == steps and t.error is None and len(t.scores) == len(self.settings.rungs)
        ]
        if not whole:
            raise ValueError(f"no trial at {steps} steps has seen the whole bank")
        return min(whole, key=lambda t: (t.scores[-1], t.number))
