"""A 4-step student and scores without a gradient: what the policy gradient gains, beside what would gain it without.

    python -m benchmarks.black_box [--scores rounded small_file one_piece] [--seeds 1 2 3]

The student before is the 4-step student that `benchmarks.few_step` makes, by agreement with the teacher's images. Each
arm trains it on with as many network calls, in one process. Agreement is in the reward of every arm, with its exact
gradient; what stands beside it is
    score      the score itself, as scores alone
    stand-in   a differentiable function that a person would take instead, with its exact gradient
    network    a network fitted to the score around the student's images, with its exact gradient
    agreement  nothing
and `best of 5` draws five images from the student before for each condition and keeps the one with the best score. An
arm has six candidates of weight and learning rate, which are trained on seed 0 for a quarter of the rounds. The one
with the highest score on held-out noises whose recall is at most two points below that of the student before is
trained on the other seeds. A run whose result is kept is not made again.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import scores
from benchmarks.grid import TUNING_SEED, interval, untuned
from benchmarks.in_process import PAIR, Kept, Point, Run
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.report import markdown_table

RECIPE, ROUNDS = "fashion_mnist_output", 66  # 36,953 forward passes on one image, the teacher's images included
ARMS = ("score", "stand-in", "network")
Candidate = tuple[float, float]  # weight of the score beside agreement, learning rate
CANDIDATES: tuple[Candidate, ...] = tuple(itertools.product((0.5, 2.0, 8.0), (5e-5, 2e-4)))
AGREEMENT: Candidate = (0.0, 2e-4)
LOST = 0.02  # recall that a candidate may lose
CHOICES = 5  # images of a condition, of which one is kept: the calls of the full teacher
FITTED, STD = 2000, 0.05  # images to which a network is fitted, and the noise around them, in [0, 1]


def rewards(score: str, arm: str, weight: float, network: Path) -> str:
    """Return the override that sets the reward of an arm; the score itself is always measured."""
    file = Path(scores.__file__).resolve()
    terms = [f"{term}: {{normalise: std}}" for term in PAIR]
    own = weight if arm == "score" else 0
    terms.append(f"score: {{options: {{callable: '{file}:{score}'}}, weight: {own}, normalise: std}}")
    other = {"stand-in": f"{file}:{score}_stand_in", "network": f"{network.with_suffix('.py')}:score"}.get(arm)
    if other is not None:
        taken = f"callable: '{other}', differentiable: true"
        terms.append(f"other: {{options: {{{taken}}}, weight: {weight}, normalise: std}}")
    return f"reward={{terms: {{{', '.join(terms)}}}}}"


class BlackBox:
    """The arms of one score, whose runs are kept."""

    def __init__(self, kept: Kept, score: str) -> None:
        self.kept, self.score = kept, score

    def before(self, seed: int) -> Point:
        """Return the measurements of the student before."""
        return self._measured("before", seed, lambda: self._run("agreement", seed).measure(0))

    def chosen(self, arm: str) -> Candidate:
        """Return the candidate of an arm that the tuning seed chooses; if none keeps recall, that which keeps most."""
        least = self.before(TUNING_SEED)["recall"] - LOST
        found = {each: self._trained(arm, TUNING_SEED, each, ROUNDS // 4, f", {each}") for each in CANDIDATES}
        kept = [each for each in found if found[each]["recall"] >= least]
        if not kept:
            return max(found, key=lambda each: found[each]["recall"])
        return max(kept, key=lambda each: found[each]["score"])

    def after(self, arm: str, seed: int) -> Point:
        """Return the measurements of an arm's student."""
        return self._trained(arm, seed, AGREEMENT if arm == "agreement" else self.chosen(arm), ROUNDS)

    def drawn(self, seed: int, which: str) -> Point:
        """Return the measurements of the "first" or the "best" of five images of each condition, before training."""
        return self._measured(f"{which} of {CHOICES}", seed, lambda: self._drawn(seed, best=which == "best"))

    def _drawn(self, seed: int, *, best: bool) -> Point:
        run = self._run("agreement", seed)
        _, seen = run.deployed(Stream.HELD_OUT, run.config.evaluation.held_out, 0)
        rows: dict[str, list[int]] = {}
        for i, condition in enumerate(seen.conditions):
            rows.setdefault(str(condition), []).append(i)
        fives = [five for of in rows.values() for five in _parts(of, CHOICES)]
        score = seen.terms["score"]
        taken = [max(five, key=lambda i: score[i]) if best else five[0] for five in fives]
        return {"score": float(score[taken].mean()), **run.judged(seen.judged[taken])}

    def _trained(self, arm: str, seed: int, candidate: Candidate, rounds: int, label: str = "") -> Point:
        def train() -> Point:
            run = self._run(arm, seed, candidate, rounds)
            return run.train([run.loop.plan.rounds])[-1]

        return self._measured(f"{arm}{label}", seed, train)

    def _measured(self, name: str, seed: int, measure: Callable[[], Point]) -> Point:
        return self.kept.point(f"{self.score}, {name}, seed {seed}", measure)

    def _run(self, arm: str, seed: int, candidate: Candidate = AGREEMENT, rounds: int = ROUNDS) -> Run:
        weight, rate = candidate
        network = self.kept.root / f"networks/{self.score}_{seed}.safetensors"
        if arm == "network" and not network.exists():
            self._fit(seed, network)
        given = (
            f"student.init={self.kept.four(seed)}",
            rewards(self.score, arm, weight, network),
            f"learner.lr={rate}",
            f"learner.rounds={rounds}",
            "output.sampled=false",
        )
        return self.kept.run(seed, RECIPE, given)

    def _fit(self, seed: int, path: Path) -> None:
        """Fit the network of a seed to the score around the student's images on noises that measure nothing."""
        run = self._run("agreement", seed)
        own, _ = run.deployed(Stream.SEARCH, FITTED, 0)
        share = scores.fit(self.score, own, run.teacher(Stream.SEARCH, FITTED), path, std=STD)
        print(f"{self.score}, seed {seed}: the network explains {share:.1%} of the variance", flush=True)


def _parts(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    """Return the rows in parts of a size; what remains is left out, for a part of fewer has less to choose from."""
    return [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]


def table(box: BlackBox, seeds: Sequence[int]) -> str:
    """Return the arms as a Markdown table. Differences are from the student before, paired by seed."""
    before = [box.before(seed) for seed in seeds]
    found = {arm: ([box.after(arm, seed) for seed in seeds], before) for arm in (*ARMS, "agreement")}
    drawn = [[box.drawn(seed, which) for seed in seeds] for which in ("best", "first")]
    found[f"best of {CHOICES}"] = (drawn[0], drawn[1])
    rows = []
    for arm, (after, start) in found.items():
        rows.append([arm, f"{statistics.fmean(point['score'] for point in after):.4g}"])
        for key, scale in (("score", 1), ("recall", 100), ("frechet", 1)):
            rows[-1].append(interval([scale * (a[key] - b[key]) for a, b in zip(after, start, strict=True)]))
        rows[-1].append("{}, {:g}".format(*box.chosen(arm)) if arm in ARMS else "")
    return markdown_table(["reward", "score", "gain", "100 recall", "Fréchet", "weight, rate"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/black-box"), help="where 4-step students go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="a file for each score")
    parser.add_argument("--scores", nargs="+", choices=list(scores.SCORES), default=list(scores.SCORES))
    parser.add_argument("--seeds", type=untuned, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    for score in options.scores:
        box = BlackBox(Kept(options.results / f"black_box_{score}.json", options.root), score)
        print(f"{score}\n\n{table(box, options.seeds)}\n", flush=True)


if __name__ == "__main__":
    main()
