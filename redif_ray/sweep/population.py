"""Population based training (Jaderberg et al., arXiv 1711.09846): settings change while runs train.

A population trains for a generation; then each member of the worst quarter continues from the checkpoint of a member of
the best quarter, with slightly changed settings. A generation waits for all of the generation before, so that the
copies depend only on scores and the seed. Each member of each generation has a run folder, which is never overwritten.
"""

from __future__ import annotations

import math

from redif_ray.config import Config, ConfigError
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.errors import UserError
from redif_ray.planning.rounds import Phases
from redif_ray.sweep.plan import Plan, Run, Slot, Trial
from redif_ray.sweep.space import current
from redif_ray.trials.samplers import propose
from redif_ray.trials.space import Choice, Space

FACTORS = (0.8, 1.25)


class Population(Plan):
    """A population of `sweep.trials` members. Member 0 starts with the unchanged recipe."""

    def __init__(self, config: Config, space: Space) -> None:
        for key in space:
            if not key.startswith("learner.") or key == "learner.rounds":
                raise ConfigError(
                    f"sweep.space.{key}: sweep.scheduler=pbt changes settings in the middle of a run, when only those "
                    "of the learner may change; expected keys below learner., except learner.rounds"
                )
        if config.sweep.trials < 2:
            raise ConfigError(f"sweep.trials={config.sweep.trials}: sweep.scheduler=pbt needs at least 2 members")
        self.config, self.space, self.settings = config, space, config.sweep
        size, generations = config.sweep.trials, config.sweep.generations
        rounds = Phases(config).rounds
        if generations > rounds:
            raise ConfigError(f"sweep.generations={generations}: expected at most {rounds}, the rounds of a run")
        self.ends = [round(rounds * (g + 1) / generations) for g in range(generations)]
        super().__init__(
            [Slot(g * size + i, f"member {g}", i, g) for g in range(generations) for i in range(size)],
            config.sweep.concurrent,
        )

    def known_before(self, slot: Slot) -> int:
        return slot.generation * self.settings.trials

    def run(self, slot: Slot) -> Run:
        name, end = f"member-{slot.index:02d}-{slot.generation}", self.ends[slot.generation]
        seed, s = self.config.run.seed, self.settings
        if slot.generation == 0:
            settings = (
                {}
                if slot.index == 0
                else dict(
                    propose("random", self.space, [], seed=seed, number=slot.number, index=slot.index, budget=s.trials)
                )
            )
            return Run(name, seed, settings, end, (end,))
        ranked = self._ranked(slot.generation - 1)
        own = next((t for t in ranked if t.index == slot.index), None)
        quarter = max(1, len(ranked) // 4)
        if own is not None and (len(ranked) == 1 or own not in ranked[-quarter:]):
            return Run(name, seed, own.settings, end, (end,), own.run)
        luck = noise.uniform(1 + 2 * len(self.space), Stream.PROPOSAL, seed=seed, group=slot.number).tolist()
        donor = ranked[int(luck[0] * quarter)]
        return Run(name, seed, self._moved(donor, luck[1:]), end, (end,), donor.run)

    def _ranked(self, generation: int) -> list[Trial]:
        """Return the trials of a generation that did not fail, best first. Raises UserError where all failed."""
        trials = [t for t in self.finished() if t.generation == generation]
        if not trials:
            failed = [t.error for t in self.trials.values() if t.generation == generation and t.error is not None]
            raise UserError(f"all {len(failed)} runs of generation {generation} failed; the first one with {failed[0]}")
        return sorted(trials, key=lambda t: (-t.score, t.number))

    def _moved(self, donor: Trial, luck: list[float]) -> dict[str, object]:
        """Return the changed settings of a donor.

        A number is multiplied by one of `FACTORS`, and a choice moves to a neighbour. A setting without a number yet is
        sampled from its range. luck: two uniform numbers in [0, 1) for each name of the space.
        """
        values, moved = current(self.config, self.space) | donor.settings, dict[str, object]()
        for i, (name, part) in enumerate(self.space.items()):
            value, up = values[name], luck[2 * i] >= 0.5
            if isinstance(part, Choice):
                place = part.options.index(value) + (1 if up else -1) if value in part.options else 0
                moved[name] = part.options[place % len(part.options)]
            elif isinstance(value, int | float):
                scaled = min(max(value * FACTORS[up], part.low), part.high)
                moved[name] = (math.ceil(scaled) if up else math.floor(scaled)) if part.whole else scaled
            else:
                moved[name] = part.at(luck[2 * i + 1])
        return moved

    def best(self) -> Trial:
        """Return the best trial of the last generation. Raises UserError where all failed."""
        return self._ranked(self.settings.generations - 1)[0]

    def history(self) -> list[tuple[int, dict[str, object]]]:
        """Return (last round, settings) of each part of the best trial's lineage, in order."""
        by_name = {t.run: t for t in self.finished()}
        trial: Trial | None = self.best()
        parts: list[tuple[int, dict[str, object]]] = []
        while trial is not None:
            parts.insert(0, (self.ends[trial.generation], dict(trial.settings)))
            trial = by_name[trial.source] if trial.source else None
        return parts
