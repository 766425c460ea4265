"""Students that start as a 4-step student: to 2 steps, and ten times the usual rounds by scores of a black box.

    python -m benchmarks.few_step start [--seeds 1 2 3]
    python -m benchmarks.few_step rounds [--seeds 1 2 3] [--settings NAME ...]

Every run is one process (`redif_ray.loop`), and its student is the average after the last round, as deployed, measured
on 2,000 held-out noises. A run whose result is kept is not made again. `start`: the method `output` with the settings
and the budget B of `benchmarks.grid`, which chose them on seed 0 for students that start as the teacher. The 4-step
student costs B, and the 2-step student that starts as it another B. So it is compared with 2-step students that start
as the teacher: the grid's own of B, if the 4-step student is there already, and those of 2 B, if it is not. `rounds`:
the 4-step students go on for 1,580 rounds, ten times those of configs/fashion_mnist_output.yaml, by other rewards.
"fine" is the power of the images above half of the Nyquist frequency, relative to that of the teacher's images of the
same noises.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.grid import BUDGET, arms, chosen, interval, settings
from benchmarks.kept import Results
from redif_ray.config import Config, load
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.features import Draw, shuffled
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.prdc import prdc
from redif_ray.evaluation.report import markdown_table
from redif_ray.evaluation.seen import joined
from redif_ray.job.export import export_weights
from redif_ray.learning.ema import ExponentialAverage
from redif_ray.loop import PlainLoop
from redif_ray.models.registry import load_teacher
from redif_ray.models.student import trainable
from redif_ray.planning.rounds import reference_units

GRID = Path("benchmarks/results/grid.json")
USUAL = 158  # rounds of configs/fashion_mnist_output.yaml
PAIR = ("mse", "gradient_mse", "blurred_mse")
LOW = "learner.lr=2e-5"  # a tenth of the recipe's
Point = dict[str, float]


def by(*terms: str) -> str:
    return f"reward={{terms: {{{', '.join(f'{term}: {{normalise: std}}' for term in terms)}}}}}"


SETTINGS: dict[str, tuple[str, ...]] = {
    "class": (by("classifier"),),
    "class, low rate": (by("classifier"), LOW),
    "class and pair, low rate": (by("classifier", *PAIR), LOW),
}


def fine(images: Tensor) -> float:
    """Return the mean power of images [B, C, H, W] at spatial frequencies above half of Nyquist's."""
    spectrum = torch.fft.fft2(images.double(), norm="ortho").abs().square()
    rows, columns = (torch.fft.fftfreq(size) for size in images.shape[2:])
    return float(spectrum[..., torch.hypot(rows[:, None], columns[None]) > 0.25].mean())


class Run:
    """A run in one process, and measurements of its deployed student."""

    def __init__(self, config: Config) -> None:
        self.config, self.loop = config, PlainLoop(config)
        self.average = ExponentialAverage(trainable(self.loop.student), config.learner.ema)

    def train(self, measured: Sequence[int]) -> list[Point]:
        """Train, and return the measurements after these rounds, up to where the guard of a run would stop it."""
        points = [self.measure(0)] if 0 in measured else []
        for round in range(self.loop.plan.rounds):
            self.loop.round(round)
            self.average.update(trainable(self.loop.student))
            if round + 1 in measured:
                points.append(self.measure(round + 1))
                print(json.dumps(points[-1]), flush=True)
                if points[-1]["recall"] < self.config.guard.recall_floor * points[0]["recall"]:
                    break
        return points

    def measure(self, after: int) -> Point:
        """Return the measurements of the average after so many rounds, on the held-out noises."""
        loop, weights, count = self.loop, self.average.weights(), self.config.evaluation.held_out
        images, parts = list[Tensor](), []
        for unit in loop.plan.deploy(Stream.HELD_OUT, count):
            _, _, final = loop.rollout.rollout(unit, weights, f"deploy-{after}")
            images.append(loop.student.images(torch.from_numpy(np.array(final, np.float32))))
            parts.append(loop.reward.score(unit, final)[1].seen)
        seen, (judge, of_teacher) = joined([part for part in parts if part is not None]), self.reference
        rows = shuffled(len(judge.reference), Draw.REFERENCE, self.config.run.seed)[:count]
        return {
            "rounds": after,
            "frechet": judge.frechet(seen.judged),
            "recall": prdc(seen.judged, judge.reference[rows])["recall"],
            "pixel_mse": float(seen.pixel_mse.mean()),
            "fine": fine(torch.cat(images)) / of_teacher,
            **{name: float(values.mean()) for name, values in seen.terms.items()},
        }

    @functools.cached_property
    def reference(self) -> tuple[Judge, float]:
        """Return the judge, and `fine` of the teacher's images of the held-out noises."""
        plan, reward, count = self.loop.plan, self.loop.reward, self.config.evaluation.held_out
        parts = [reward.reference(unit)[1] for unit in reference_units(plan, count)]
        teacher = [np.array(reward.targets(unit)[1]) for unit in plan.deploy(Stream.HELD_OUT, count)]
        return Judge.of(parts), fine(torch.from_numpy(np.concatenate(teacher)))

    def export(self, folder: Path) -> None:
        export_weights(load_teacher(self.config.teacher), self.config, self.average.weights(), folder, None)


class Kept:
    """The measurements of runs in one JSON file. root: where 4-step students and the teacher's images go."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        self.runs: dict[str, list[Point]] = json.loads(path.read_text()) if path.exists() else {}

    def of(
        self, name: str, seed: int, recipe: str, given: Sequence[str], measured: Sequence[int] = (), *, four: bool
    ) -> list[Point]:
        """Return the points of a run, found or made.

        measured: rounds after which it is measured; none: the last. four: whether it starts as the 4-step student.
        """
        if (key := f"{name}, seed {seed}") not in self.runs:
            run = self._run(seed, recipe, [*given, *([f"student.init={self._four(seed)}"] if four else [])])
            self._keep(key, run.train(measured or [run.loop.plan.rounds]))
        return self.runs[key]

    def _four(self, seed: int) -> Path:
        """Return the folder of the 4-step student of a seed, which is made where it is missing."""
        folder, given = self.root / f"four-{seed}", settings(4, arms(4)["output"], candidate(4), BUDGET[4])
        if not folder.exists():
            run = self._run(seed, "fashion_mnist", given)
            self._keep(f"4 steps, seed {seed}", run.train([run.loop.plan.rounds]))
            run.export(folder)
        return folder

    def _keep(self, key: str, points: list[Point]) -> None:
        self.runs[key] = points
        self.path.write_text(json.dumps(self.runs, indent=1) + "\n")

    def _run(self, seed: int, recipe: str, given: Sequence[str]) -> Run:
        place = (f"run.seed={seed}", f"run.root={self.root}", f"teacher.store={self.root}/.targets")
        return Run(load(recipe, [*given, *place, "learner.threads=1"]))


@functools.cache
def candidate(steps: int) -> tuple[str, ...]:
    """Return the settings that the grid chose for the method `output`."""
    return chosen(steps, "output", Results(GRID, GRID.parent))


def start(kept: Kept, seeds: Sequence[int]) -> str:
    """Return the 2-step students as a Markdown table, with their differences from those that start as 4-step ones."""
    arm, budget, grid = arms(2)["output"], BUDGET[2], Results(GRID, kept.root)
    once, twice = (settings(2, arm, candidate(2), times * budget) for times in (1, 2))
    found: dict[str, list[Point]] = {"from 4 steps, B": [], "from the teacher, B": [], "from the teacher, 2 B": []}
    for seed in seeds:
        for name, given, four in (("from 4 steps, B", once, True), ("from the teacher, 2 B", twice, False)):
            found[name] += kept.of(name, seed, "fashion_mnist", given, four=four)
        its = grid.of(f"2-output-{seed}", "fashion_mnist", once, seed=seed, targets="output")["arms"]["student"]
        found["from the teacher, B"] += [its | its["paired"]]
    ours, rows = found["from 4 steps, B"], []
    for name, points in found.items():
        rows.append([name])
        for key, scale, digits in (("frechet", 1, 1), ("recall", 100, 1), ("pixel_mse", 1000, 2)):
            apart = [scale * (point[key] - own[key]) for point, own in zip(points, ours, strict=True)]
            rows[-1] += [", ".join(f"{scale * point[key]:.{digits}f}" for point in points)]
            rows[-1] += ["" if points is ours else interval(apart)]
    head = ["Fréchet", "100 recall", "1000 mse"]
    return markdown_table(["start and cost", *(cell for name in head for cell in (name, "difference"))], rows)


def rounds(kept: Kept, names: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the measurements after 0 to ten times the usual rounds as a Markdown table, means over the seeds."""
    measured = [USUAL * times for times in (0, 1, 5, 10)]
    rows = []
    for name in names:
        given = (f"learner.rounds={measured[-1]}", "rollout.unit_groups=4", "output.groups=4", *SETTINGS[name])
        curves = [kept.of(name, seed, "fashion_mnist_output", given, measured, four=True) for seed in seeds]
        for points in zip(*curves, strict=False):
            mean = {key: statistics.fmean(point[key] for point in points) for key in points[0]}
            cells = [
                f"{mean['rounds']:.0f}",
                f"{mean['classifier']:.3f}",
                f"{mean['fine']:.3f}",
                f"{mean['recall']:.3f}",
            ]
            rows.append([name, *cells, f"{mean['frechet']:.1f}", f"{1000 * mean['pixel_mse']:.2f}"])
    return markdown_table(["reward", "rounds", "score", "fine", "recall", "Fréchet", "1000 mse"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["start", "rounds"])
    parser.add_argument("--root", type=Path, default=Path("runs/few-step"), help="where 4-step students go")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/few_step_WHAT.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="of `rounds`")
    options = parser.parse_args()
    kept = Kept(options.results or Path(f"benchmarks/results/few_step_{options.what}.json"), options.root)
    found = start(kept, options.seeds) if options.what == "start" else rounds(kept, options.settings, options.seeds)
    print(found)


if __name__ == "__main__":
    main()
