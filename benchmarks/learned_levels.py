"""The levels of a student that are learned with its weights, beside levels that stay.

    python -m benchmarks.learned_levels [--steps 2 4 8] [--seeds 1 2 3]

The method `output` with the settings and the budget of `benchmarks.grid`. The backward pass that gives the weights
their gradient gives one to the levels and to the timesteps that the network is told, too, for no further network call;
Adam moves the logits of the increments and the shifts by it (LD3, arXiv 2405.15506, whose levels are fitted before any
training). The learning rate of the levels has candidates, of which the tuning seed chooses at a quarter of the budget.
Students are the averages of weights and levels after the last round, with levels rounded as in every schedule. A run
whose result is kept is not made again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.grid import BUDGET, RECIPE, TUNING_SEED, arms, interval, settings, untuned
from benchmarks.in_process import Kept, Point, Run, candidate
from redif_ray.diffusion.levels import Level
from redif_ray.diffusion.schedules import Schedule, shifted, warped
from redif_ray.evaluation.report import markdown_table
from redif_ray.models.student import trainable
from redif_ray.search.gradient import bounded, continuous
from redif_ray.search.space import floor

RATES = (0.003, 0.01, 0.03)  # of the levels
STARTS: dict[str, dict[int, tuple[str, ...]]] = {  # by the student's steps
    "uniform_trailing": {2: (), 4: (), 8: ()},
    "searched": {4: ("student.levels=[999, 906, 694, 294]",)},  # the best for the untrained teacher
}


@dataclass(frozen=True, slots=True)
class Leaves:
    """A schedule that gathers the gradients of its levels and told timesteps, apart from how these were made.

    made: alpha [N + 1], sigma [N + 1] and the told timesteps [N], with their graph. held: what gathers, of their
    shapes.
    """

    made: list[Tensor]
    held: list[Tensor]
    schedule: Schedule

    @classmethod
    def of(cls, made: Schedule, used: Schedule) -> Leaves:
        """Return the schedule `used`, whose gradients go back to `made`, which it is a rounding of."""
        held = [part.detach().clone().requires_grad_(True) for part in _parts(used)]
        levels = Level(held[0], held[1], used.levels.timestep.detach())
        return cls(_parts(made), held, Schedule(levels, used.name, held[2]))

    def backward(self) -> None:
        """Take the gathered gradients back to what the schedule was made of."""
        torch.autograd.backward(self.made, [torch.zeros_like(x) if x.grad is None else x.grad for x in self.held])


def _parts(schedule: Schedule) -> list[Tensor]:
    return [schedule.levels.alpha, schedule.levels.sigma, schedule.called.timestep[:-1]]


class LearnedLevels:
    """The levels of a run's student, whose increments and told timesteps move by the gradients of each update.

    rate: of Adam. decay: of the average that the student is deployed with.
    """

    def __init__(self, run: Run, rate: float) -> None:
        self.run, self.base, self.process = run, run.loop.rollout.schedule, run.loop.student.process
        start = torch.full((2, self.base.steps), 1e-9, dtype=torch.float64)
        self.moving, self.average = start.requires_grad_(True), start.detach().clone()
        self.optimiser = torch.optim.Adam([self.moving], lr=rate)
        self.decay = run.config.learner.ema
        run.loop.phase = run.loop.plan.phase(0)
        run.loop.trainee.start(run.loop.phase)

    def round(self, round: int) -> None:
        """Train weights and levels on a round, which visits rounded levels, as the deployed student does."""
        loop, used = self.run.loop, self._rounded(self.moving.detach())
        leaves = Leaves.of(continuous(self.process, self.base, self.moving[0], bounded(self.moving[1])), used)
        loop.rollout.schedule = used
        loop.trainee.learning = replace(loop.trainee.learning, schedule=leaves.schedule)
        self.run.metrics.append(loop.round(round))
        self.optimiser.zero_grad()
        leaves.backward()
        self.optimiser.step()
        with torch.no_grad():
            self.moving[0] -= self.moving[0].mean()
            self.average.lerp_(self.moving, 1 - min(self.decay, (1 + round) / (10 + round)))

    def deploy(self) -> None:
        """Let the run's student sample by the average of the levels."""
        self.run.loop.rollout.schedule = self._rounded(self.average)

    def _rounded(self, moving: Tensor) -> Schedule:
        schedule = warped(self.process, self.base, moving[0], floor(self.process, self.base))
        return shifted(self.process, schedule, bounded(moving[1]))


def trained(kept: Kept, steps: int, start: str, rate: float, seed: int, budget: float) -> Point:
    """Return the measurements of a student whose levels learn with a rate, or stay, if it is 0."""

    def train() -> Point:
        given = settings(steps, arms(steps)["output"], candidate(steps), budget)
        run = kept.run(seed, RECIPE, (*given, *STARTS[start][steps]))
        rounds = run.loop.plan.rounds
        if not rate:
            return run.train([rounds])[-1]
        levels = LearnedLevels(run, rate)
        for round in range(rounds):
            levels.round(round)
            run.average.update(trainable(run.loop.student))
        levels.deploy()
        times = run.loop.rollout.schedule.times
        assert times.network_timesteps is not None
        found = {f"level {i}": time for i, time in enumerate(times.levels)}
        return run.measure(rounds) | found | {f"told {i}": time for i, time in enumerate(times.network_timesteps)}

    return kept.point(f"{steps} steps, {start}, rate {rate:g}, budget {budget:,.0f}, seed {seed}", train)


def chosen(kept: Kept, steps: int, start: str) -> float:
    """Return the rate of the levels with the lowest Fréchet distance on the tuning seed, at a quarter of the budget."""
    budget = BUDGET[steps] / 4
    return min(RATES, key=lambda rate: trained(kept, steps, start, rate, TUNING_SEED, budget)["frechet"])


def table(kept: Kept, every: Sequence[int], seeds: Sequence[int]) -> str:
    """Return learned and kept levels as a Markdown table. Differences are paired by seed."""
    rows = []
    for steps in every:
        for start in STARTS:
            if steps not in STARTS[start]:
                continue
            rate = chosen(kept, steps, start)
            still, learned = (
                [trained(kept, steps, start, each, seed, BUDGET[steps]) for seed in seeds] for each in (0.0, rate)
            )
            row = [str(steps), start, f"{rate:g}"]
            row += [f"{statistics.fmean(point['frechet'] for point in points):.2f}" for points in (still, learned)]
            for key, scale in (("frechet", 1), ("recall", 100), ("pixel_mse", 1000)):
                row.append(interval([scale * (a[key] - b[key]) for a, b in zip(learned, still, strict=True)]))
            rows.append(row)
    head = ["steps", "start", "rate", "Fréchet, kept", "learned", "apart", "100 recall apart", "1000 mse apart"]
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/learned-levels"), help="where the teacher's images go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/learned_levels.json"))
    parser.add_argument("--steps", type=int, nargs="+", choices=list(STARTS["uniform_trailing"]), default=[2, 4, 8])
    parser.add_argument("--seeds", type=untuned, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    print(table(Kept(options.results, options.root), options.steps, options.seeds))


if __name__ == "__main__":
    main()
