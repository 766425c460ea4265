"""Repeats of the best settings and of the unchanged recipe with other seeds, which tell improvement from luck.

The seeds had no part in choosing the settings. Each run is evaluated on held-out noises and exported, as by
`redif distill`.
"""

from __future__ import annotations

from redif_ray.config import Config
from redif_ray.planning.rounds import Phases
from redif_ray.sweep.plan import Plan, Run, Slot

BEST, RECIPE = "best", "recipe"
History = list[tuple[int, dict[str, object]]]  # (last round, settings) of each part of a run


class Repeats(Plan):
    """Runs of the best settings and of the recipe with `sweep.repeats` seeds; of the recipe alone if it is the best."""

    def __init__(self, config: Config, best: History) -> None:
        self.config = config
        self.histories: dict[str, History] = {BEST: best, RECIPE: [(Phases(config).rounds, {})]}
        if all(not settings for _, settings in best):
            del self.histories[BEST]
        wanted = [
            (kind, index, part)
            for index in range(config.sweep.repeats)
            for kind, history in self.histories.items()
            for part in range(len(history))
        ]
        super().__init__([Slot(n, *w) for n, w in enumerate(wanted)], config.sweep.concurrent)

    def ready(self, slot: Slot) -> bool:
        """Tell whether the part before is recorded; a part of a run waits for nothing else."""
        return slot.generation == 0 or slot.number - 1 in self.trials

    def run(self, slot: Slot) -> Run:
        history = self.histories[slot.stage]
        until, settings = history[slot.generation]
        names = [self._name(slot, part) for part in range(len(history))]
        source = names[slot.generation - 1] if slot.generation else None
        finish = slot.generation == len(history) - 1
        seed = self.config.run.seed + 1 + slot.index
        return Run(names[slot.generation], seed, settings, until, (until,), source, finish)

    def _name(self, slot: Slot, part: int) -> str:
        last = len(self.histories[slot.stage]) - 1
        name = f"{slot.stage}-seed-{self.config.run.seed + 1 + slot.index}"
        return name if part == last else f"{name}-{part}"
