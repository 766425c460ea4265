"""4-step students of the scenes' teacher that learn from the checker's verdict, and what learns without it.

    python -m benchmarks.scenes.students [--seeds 1 2 3] [--arms NAME ...]

A regression on the guided teacher gives the student before, without guidance. Each arm trains it on with as many
network calls, in one process, and asks for half of the compositions that no picture of the teacher's training has, too:
    verdict         contrast of own pictures by the verdict, which reads no picture of the teacher
    verdict, shown  the same, without these compositions
    verdict, pair   the same as the first, with agreement with the teacher's picture of the same noise in the reward
    steps           policy gradient by the verdict, which explores at one step with eta 1
    output          policy gradient by the verdict, which explores at the output
    network         back-propagation of a network that is fitted to the verdicts on the student's pictures
    matching        distribution matching, which has no reward
    regression      more of the regression
`best of 10` keeps, of ten pictures of the student before, one that is right: the calls of the guided teacher's one.
Each arm has four candidates, which are trained on seed 0 at a quarter of the calls; the one with the most right
pictures of what all are asked for, on other noises, is trained on the other seeds. Nothing but the last measurement
sees the compositions that nobody is asked for. A run whose result is kept is not made again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.emoji.fit import single_thread
from benchmarks.grid import TUNING_SEED, interval, untuned
from benchmarks.in_process import Kept, Point, Run
from benchmarks.scenes import measure, proxy
from benchmarks.scenes.arms import ARMS, BEFORE, CALLS, FITTED, RECIPE, settings
from benchmarks.scenes.pictures import asked, captions, drawn
from benchmarks.scenes.teacher import TEACHER
from redif_ray.config import load as load_config
from redif_ray.evaluation.report import markdown_table
from redif_ray.sample import load

VALIDATED = 1000  # pictures by which a candidate is chosen
CHOICES = 10  # pictures of the student before among which the checker chooses: the calls of one guided picture
SHARES = ("trained", "asked", "never asked")
PICTURES = measure.SEED + 10  # seeds of captions and noises from here on measure nothing in the end


class Students:
    """The arms, whose runs are kept."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept

    def before(self, seed: int) -> Path:
        """Return the folder of the student before of a seed, which is made where it is missing."""
        folder = self.kept.root / f"before-{seed}"
        if not folder.exists():
            self._trained(self.kept.run(seed, RECIPE, BEFORE), folder)
        return folder

    def chosen(self, name: str) -> tuple[str, ...]:
        """Return the candidate of an arm with the most right pictures on the tuning seed."""
        candidates = ARMS[name].candidates
        found = [
            self.kept.point(f"{name}, candidate {i}, seed {TUNING_SEED}", partial(self._tuned, name, i))
            for i in range(len(candidates))
        ]
        return candidates[max(range(len(found)), key=lambda i: found[i]["whole"])]

    def after(self, name: str, seed: int) -> Point:
        """Return the measurements of an arm's student."""

        def make() -> Point:
            folder = self.kept.root / f"{_file(name)}-{seed}"
            seconds = self._trained(self._run(name, seed, self.chosen(name), CALLS), folder)
            return measure.measured(load(str(folder))) | {"seconds": seconds}

        return self.kept.point(f"{name}, seed {seed}", make)

    def start(self, seed: int) -> Point:
        """Return the measurements of the student before."""
        return self.kept.point(f"before, seed {seed}", lambda: measure.measured(load(str(self.before(seed)))))

    def teacher(self) -> Point:
        """Return the measurements of the teacher with the recipe's steps and guidance."""
        wanted = load_config(RECIPE).teacher

        def make() -> Point:
            return measure.measured(load(str(TEACHER), steps=wanted.steps), wanted.guidance)

        return self.kept.point("teacher", make)

    def best(self, seed: int) -> Point:
        """Return the share of captions for which one of ten pictures of the student before is right."""

        def make() -> Point:
            model, found = load(str(self.before(seed))), dict[str, float]()
            for held_out in (False, True):
                scenes = [s for s in drawn(captions(held_out=held_out), 300, PICTURES) for _ in range(CHOICES)]
                verdicts = measure.judged(measure.sampled(model, scenes, PICTURES, None), scenes)
                whole = [each["whole"] for each in verdicts]
                found |= measure.by_held_out(np.any(np.reshape(whole, (-1, CHOICES)), axis=1), scenes[::CHOICES])
            return found

        return self.kept.point(f"best of {CHOICES}, seed {seed}", make)

    def _tuned(self, name: str, i: int) -> Point:
        """Return the measurements of candidate i of an arm, on noises that measure nothing else."""
        folder = self.kept.root / f"{_file(name)}-candidate-{i}"
        seconds = self._trained(self._run(name, TUNING_SEED, ARMS[name].candidates[i], CALLS // 4), folder)
        scenes = drawn(asked(), VALIDATED, PICTURES)
        verdicts = measure.judged(measure.sampled(load(str(folder)), scenes, PICTURES, None), scenes)
        return measure.shares(verdicts, scenes) | {"seconds": seconds}

    def _run(self, name: str, seed: int, candidate: tuple[str, ...], calls: int) -> Run:
        network = self._network(seed) if name == "network" else None
        return self.kept.run(seed, RECIPE, settings(name, candidate, calls, self.before(seed), network))

    def _network(self, seed: int) -> Path:
        """Return the file whose function `score` is the network of a seed, which is fitted where it is missing."""
        path = (self.kept.root / f"networks/{seed}.safetensors").resolve()
        if not path.exists():
            scenes = drawn(asked(), FITTED, PICTURES + 1 + seed)
            pictures = measure.sampled(load(str(self.before(seed))), scenes, PICTURES + 1 + seed, None)
            ranked = proxy.fit(pictures, [str(scene) for scene in scenes], path)
            print(f"seed {seed}: the network ranks {ranked:.1%} of right pictures above wrong ones", flush=True)
        return path.with_suffix(".py")

    def _trained(self, run: Run, folder: Path) -> float:
        """Train a run, export its student, and return the seconds of this process."""
        started = time.thread_time()
        run.train(())
        seconds = time.thread_time() - started
        run.export(folder)
        return seconds


def _file(name: str) -> str:
    return name.replace(", ", "-")


def table(students: Students, names: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the arms as a Markdown table.

    Gains are those over the student before, paired by seed.
    """
    before, teacher = [students.start(seed) for seed in seeds], students.teacher()
    found = {"student before": before} | {name: [students.after(name, seed) for seed in seeds] for name in names}
    head = ["", *SHARES, *(f"gain, {name}" for name in SHARES[1:]), "distance", "entropy", "seconds"]
    rows = [["teacher", *(f"{teacher[f'{name} whole']:.1f}" for name in SHARES), "", "", *_varied([teacher]), ""]]
    best = [students.best(seed) for seed in seeds]
    for name, points in (found | {f"best of {CHOICES}": best}).items():
        rows.append([name, *(f"{statistics.fmean(p[f'{kind} whole'] for p in points):.1f}" for kind in SHARES)])
        for kind in SHARES[1:]:
            gains = [own[f"{kind} whole"] - other[f"{kind} whole"] for own, other in zip(points, before, strict=True)]
            rows[-1] += ["" if points is before else interval(gains, 1)]
        rows[-1] += _varied(points) if "distance" in points[0] else ["", ""]
        rows[-1] += [f"{statistics.fmean(p['seconds'] for p in points):.0f}" if "seconds" in points[0] else ""]
    return markdown_table(head, rows)


def _varied(points: Sequence[Point]) -> list[str]:
    return [f"{statistics.fmean(point[key] for point in points):.3f}" for key in ("distance", "entropy")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/scenes/students"), help="where students go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/scenes.json"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=untuned, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    single_thread()
    print(table(Students(Kept(options.results, options.root)), options.arms, options.seeds))


if __name__ == "__main__":
    main()
