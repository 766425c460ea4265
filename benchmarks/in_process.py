"""Runs in one process (`redif_ray.loop`), whose students are measured as deployed, and whose measurements are kept."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.grid import BUDGET, arms, chosen, settings
from benchmarks.kept import Results
from redif_ray.config import Config, load
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.features import Draw, shuffled
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.prdc import prdc
from redif_ray.evaluation.seen import joined
from redif_ray.job.export import export_weights
from redif_ray.learning.ema import ExponentialAverage
from redif_ray.loop import PlainLoop
from redif_ray.models.registry import load_teacher
from redif_ray.models.student import trainable
from redif_ray.planning.rounds import reference_units
from redif_ray.types import Seen

GRID = Path("benchmarks/results/grid.json")
PAIR = ("mse", "gradient_mse", "blurred_mse")  # terms of agreement with the teacher
Point = dict[str, float]


def fine(images: Tensor) -> float:
    """Return the mean power of images [B, C, H, W] at spatial frequencies above half of Nyquist's."""
    spectrum = torch.fft.fft2(images.double(), norm="ortho").abs().square()
    rows, columns = (torch.fft.fftfreq(size) for size in images.shape[2:])
    return float(spectrum[..., torch.hypot(rows[:, None], columns[None]) > 0.25].mean())


class Run:
    """A run in one process, and measurements of its deployed student.

    metrics: of each round that was trained.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.loop = config, PlainLoop(config)
        self.metrics: list[dict[str, float]] = []
        self.average = ExponentialAverage(trainable(self.loop.student), config.learner.ema)

    def train(self, measured: Sequence[int]) -> list[Point]:
        """Train, and return the measurements after these rounds, up to where the guard of a run would stop it."""
        points = [self.measure(0)] if 0 in measured else []
        for round in range(self.loop.plan.rounds):
            self.metrics.append(self.loop.round(round))
            self.average.update(trainable(self.loop.student))
            if round + 1 in measured:
                points.append(self.measure(round + 1))
                print(json.dumps(points[-1]), flush=True)
                if points[-1]["recall"] < self.config.guard.recall_floor * points[0]["recall"]:
                    break
        return points

    def measure(self, after: int) -> Point:
        """Return the measurements of the average after so many rounds, on the held-out noises."""
        images, seen = self.deployed(Stream.HELD_OUT, self.config.evaluation.held_out, after)
        return {
            "rounds": after,
            **self.judged(seen.judged),
            "pixel_mse": float(seen.pixel_mse.mean()),
            "fine": fine(images) / self.reference[1],
            **{name: float(values.mean()) for name, values in seen.terms.items()},
        }

    def judged(self, features: np.ndarray) -> Point:
        """Return {"frechet", "recall"} of the judge's features [n, D] of n images."""
        judge, _ = self.reference
        rows = shuffled(len(judge.reference), Draw.REFERENCE, self.config.run.seed)[: len(features)]
        return {"frechet": judge.frechet(features), "recall": prdc(features, judge.reference[rows])["recall"]}

    def deployed(self, stream: Stream, count: int, after: int) -> tuple[Tensor, Seen]:
        """Return the images [count, C, H, W] of the average after so many rounds, and what is seen of them."""
        loop, weights, images, parts = self.loop, self.average.weights(), list[Tensor](), list[Seen]()
        for unit in loop.plan.deploy(stream, count):
            _, _, final = loop.rollout.rollout(unit, weights, f"deploy-{after}")
            images.append(loop.student.images(torch.from_numpy(np.array(final, np.float32))))
            parts += [found for found in [loop.reward.score(unit, final)[1].seen] if found is not None]
        return torch.cat(images), joined(parts)

    def teacher(self, stream: Stream, count: int) -> Tensor:
        """Return the teacher's images [count, C, H, W] in [0, 1] of the same noises."""
        parts = [np.array(self.loop.reward.targets(unit)[1]) for unit in self.loop.plan.deploy(stream, count)]
        return torch.from_numpy(np.concatenate(parts))

    @functools.cached_property
    def reference(self) -> tuple[Judge, float]:
        """Return the judge, and `fine` of the teacher's images of the held-out noises."""
        loop, count = self.loop, self.config.evaluation.held_out
        parts = [loop.reward.reference(unit)[1] for unit in reference_units(loop.plan, count)]
        return Judge.of(parts), fine(self.teacher(Stream.HELD_OUT, count))

    def export(self, folder: Path) -> None:
        export_weights(load_teacher(self.config.teacher), self.config, self.average.weights(), folder, None)


class Kept:
    """The measurements of runs in one JSON file. root: where 4-step students and the teacher's images go."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root

    @property
    def runs(self) -> dict[str, list[Point]]:
        """The measurements by run, read anew each time, since another process may make other arms."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def of(
        self, name: str, seed: int, recipe: str, given: Sequence[str], measured: Sequence[int] = (), *, four: bool
    ) -> list[Point]:
        """Return the points of a run, found or made.

        measured: rounds after which it is measured; none: the last. four: whether it starts as the 4-step student.
        """
        if (key := f"{name}, seed {seed}") not in self.runs:
            start = [f"student.init={self.four(seed)}"] if four else []
            run = self.run(seed, recipe, [*given, *start])
            self.keep(key, run.train(measured or [run.loop.plan.rounds]))
        return self.runs[key]

    def four(self, seed: int) -> Path:
        """Return the folder of the 4-step student of a seed, which is made where it is missing."""
        folder, given = self.root / f"four-{seed}", settings(4, arms(4)["output"], candidate(4), BUDGET[4])
        if not folder.exists():
            run = self.run(seed, "fashion_mnist", given)
            self.keep(f"4 steps, seed {seed}", run.train([run.loop.plan.rounds]))
            run.export(folder)
        return folder

    def point(self, key: str, make: Callable[[], Point]) -> Point:
        """Return the point that is kept under a key, made and told where it is missing."""
        if (kept := self.runs.get(key)) is not None:
            return kept[0]
        made = make()
        self.keep(key, [made])
        print(key, json.dumps(made), flush=True)
        return made

    def keep(self, key: str, points: list[Point]) -> None:
        self.path.write_text(json.dumps(self.runs | {key: points}, indent=1) + "\n")

    def run(self, seed: int, recipe: str, given: Sequence[str]) -> Run:
        place = (f"run.seed={seed}", f"run.root={self.root}", f"teacher.store={self.root}/.targets")
        return Run(load(recipe, [*given, *place, "learner.threads=1"]))


@functools.cache
def candidate(steps: int, method: str = "output") -> tuple[str, ...]:
    """Return the settings that the grid chose for a method."""
    return chosen(steps, method, Results(GRID, GRID.parent))
