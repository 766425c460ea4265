"""Methods at the same cost and with as many candidates each, for students of 1, 2, 4 and 8 steps; it can be resumed.

    python -m benchmarks.grid [--steps 4] [--arms output straight] [--seeds 1 2 3]

An arm has five candidates, which are trained on seed 0 at a quarter of the budget and of the pool of noises; the one
with the lowest Fréchet distance there is trained on the other seeds, at the whole budget. Rounds follow from the
budget: the network calls of rollouts, teacher and learner on one image, a backward pass as 1.9 forward passes. Images
are pixels, so nothing is decoded, and a reward takes next to nothing. All arms have the same pool, reward and average,
and at most 8 validations. The one with the highest reward, agreement with the teacher's images, gives the student; but
distribution matching, which does not aim at that agreement, gives its last. Four steps have all arms, others fewer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student_t

from benchmarks.kept import Result, Results, training_cost
from redif_ray.config import Config, load
from redif_ray.errors import Notice
from redif_ray.methods import phases_of
from redif_ray.models.registry import teacher_outline
from redif_ray.planning.calls import phase_calls, prices

RECIPE = "fashion_mnist"
TUNING_SEED = 0
BUDGET = {1: 120_000, 2: 60_000, 4: 60_000, 8: 60_000}  # forward passes on one image, by the student's steps
POOL, VALIDATIONS = 1024, 8
LEAST = 4  # rounds of a run: each of the halvings of progressive distillation needs one
COMMON = (
    "reward={max_workers: 2, terms: {mse: {}, gradient_mse: {}, blurred_mse: {}}}",
    "learner.schedule=cosine",
    "learner.ema=0.95",
    "guard.recall_floor=0",
)
GROUPS = {1: 64, 2: 32, 4: 16, 8: 16}  # groups of an optimiser step at the student's image, by the student's steps
RATE = {1: 3e-4, 2: 2e-4, 4: 1e-4, 8: 1e-4}  # learning rate of these steps, between the candidates


@dataclass(frozen=True, slots=True)
class Arm:
    """A method's settings, and the candidates among which the tuning seed chooses.

    key: of its number of rounds. warm: share of the budget for the warm start before it.
    """

    fixed: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    key: str = "learner.rounds"
    warm: float = 0.0


KEPT = {  # arms by the student's steps; 4 have all
    1: ("sfd", "output", "straight", "draft", "distribution_matching"),
    2: ("sfd", "output", "straight", "draft", "distribution_matching"),
    8: ("sfd", "output", "straight"),
}


def arms(steps: int) -> dict[str, Arm]:
    """Return the arms of the grid for students of `steps` steps, by name."""
    every = _without_reward(GROUPS[steps], RATE[steps]) | _with_reward(GROUPS[steps], RATE[steps])
    return {name: every[name] for name in KEPT.get(steps, every)}


def _quarters(groups: int) -> str:
    """Return the rollout of methods whose work units have two groups for each of `unit_groups`: two units a round."""
    return f"rollout={{max_workers: 2, groups: {groups}, siblings: 2, unit_groups: {groups // 4}}}"


def _with_reward(groups: int, rate: float) -> dict[str, Arm]:
    rates = tuple((f"learner.lr={factor * rate:g}",) for factor in (0.25, 0.5, 1, 2, 4))
    halves = f"rollout={{max_workers: 2, groups: {groups}, siblings: 2, unit_groups: {groups // 2}}}"
    output = f"output={{groups: {groups}, samples: 64, std: 0.1, sampled: true}}"
    draft = ("method=draft", _quarters(groups), f"draft={{groups: {groups}, minibatch: {groups}}}")
    steps = (
        "exploration={eta: 0.15, one_step: true}",
        "rollout={max_workers: 2, groups: 4, siblings: 16, unit_groups: 2}",
        "learner.loss=grpo_guard",
    )
    return {
        "output": Arm(("method=output", halves, output), rates),
        "straight": Arm(("method=straight", halves, f"output.groups={groups}"), rates),
        "draft": Arm(draft, rates),
        "redif": Arm(
            steps, tuple((f"learner.lr={lr:g}",) for lr in (0.7e-5, 1.4e-5, 2.8e-5, 5.6e-5, 1.12e-4)), warm=0.4
        ),
    }


def _without_reward(groups: int, rate: float) -> dict[str, Arm]:
    quarters = _quarters(groups)
    regression = ("method=sfd", "warm_start={groups: 16, schedule: cosine, ema: 0.95, minibatch: 48, substeps: 6}")
    jumps = ((0.5, "dpmpp_2m"), (1, "dpmpp_2m"), (2, "dpmpp_2m"), (1, "euler"), (4, "dpmpp_2m"))
    scores = ((0.25, 5, 1), (0.5, 5, 1), (1, 5, 2), (0.5, 10, 1), (2, 5, 2))  # rate, steps and rate of the fake score
    noised = ((1, groups), (2, groups), (4, groups), (2, 3 * groups), (8, groups))  # rate, images of a round and step
    return {
        "sfd": Arm(
            regression,
            tuple((f"warm_start.lr={factor * rate:g}", f"warm_start.solver={solver}") for factor, solver in jumps),
            "warm_start.rounds",
        ),
        "distribution_matching": Arm(
            ("method=distribution_matching", quarters),
            tuple(
                (
                    f"learner.lr={factor * rate:g}",
                    f"distribution_matching={{groups: {groups}, fake_steps: {fakes}, fake_lr: {fake * rate:g}}}",
                )
                for factor, fakes, fake in scores
            ),
        ),
        "consistency": Arm(
            ("method=consistency", quarters),
            tuple(
                (f"learner.lr={factor * rate:g}", f"consistency={{groups: {images}, substeps: 8, decay: 0.95}}")
                for factor, images in noised
            ),
        ),
        "progressive": Arm(
            ("method=progressive", quarters),
            tuple(
                (f"learner.lr={factor * rate:g}", f"progressive={{groups: {images}, halvings: 3}}")
                for factor, images in noised
            ),
        ),
    }


def cost(config: Config) -> float:
    """Return the forward passes on one image that the training of a run takes."""
    every = prices(config, teacher_outline(config.teacher))
    found = [phase_calls(config, phase, every) for phase in phases_of(config)]
    return sum(calls.rollout + calls.reward + calls.learner for calls in found)


def settings(steps: int, arm: Arm, candidate: Sequence[str], budget: float) -> tuple[str, ...]:
    """Return the overrides of a run whose rounds are the most that the budget pays for."""
    pool = f"conditions.pool={int(POOL * budget / BUDGET[steps])}"
    given = (*COMMON, pool, f"student.steps={steps}", "warm_start.rounds=0", *arm.fixed, *candidate)
    if arm.warm:
        first = ("method=sfd", "warm_start.schedule=cosine")
        given += (f"warm_start.rounds={most_rounds(RECIPE, (*given, *first), 'warm_start.rounds', arm.warm * budget)}",)
    rounds = most_rounds(RECIPE, given, arm.key, budget)
    every = -(-rounds // VALIDATIONS)
    return (*given, f"{arm.key}={rounds}", f"validation.every={every}", f"checkpoint.every={every}")


def most_rounds(recipe: str, given: Sequence[str], key: str, budget: float) -> int:
    """Return the most rounds that the budget pays for. Raises ValueError where it pays for fewer than LEAST.

    key: that of the number of rounds.
    """

    def within(rounds: int) -> bool:
        return cost(load(recipe, [*given, f"{key}={rounds}"])) <= budget

    low, high = LEAST, 2 * LEAST
    if not within(low):
        raise ValueError(f"{given}: {LEAST} rounds take more than the budget of {budget:,.0f} calls")
    while within(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


def chosen(steps: int, name: str, results: Results) -> tuple[str, ...]:
    """Return the candidate with the lowest Fréchet distance on the tuning seed, at a quarter of the budget."""
    arm, distances = arms(steps)[name], dict[tuple[str, ...], float]()
    for i, candidate in enumerate(arm.candidates):
        given = (
            *settings(steps, arm, candidate, BUDGET[steps] / 4),
            "evaluation={held_out: 1000, search: 10, batch: 50}",
        )
        label = f"{steps} steps, {name}, {' '.join(candidate)}"
        try:
            found = results.of(f"{steps}-{name}-tune-{i}", RECIPE, given, seed=TUNING_SEED, targets=name)
        except FloatingPointError as error:
            print(f"{label}: {error}", flush=True)
            continue
        distances[candidate] = found["arms"]["student"]["frechet"]
        print(f"{label}: Fréchet {distances[candidate]:.2f}", flush=True)
    return min(distances, key=lambda candidate: distances[candidate])


def untuned(text: str) -> int:
    """Read a seed of a command. Raises ArgumentTypeError for the one that tunes."""
    if (seed := int(text)) == TUNING_SEED:
        raise argparse.ArgumentTypeError(f"seed {TUNING_SEED} tunes what is compared; expected others")
    return seed


def interval(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean and its 95 % interval by Student's t over seeds, with so many digits after the point."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:+.{digits}f}"
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"


def table(found: dict[str, list[Result]]) -> str:
    """Return the arms as a Markdown table. Differences are paired by seed; the intervals are those of seeds alone."""
    frechet = {arm: [r["arms"]["student"]["frechet"] for r in results] for arm, results in found.items()}
    best = min(frechet, key=lambda arm: statistics.fmean(frechet[arm]))
    head = ["arm", "Fréchet", "above the teacher", f"above {best}", "recall", "paired mse", "worker seconds", "TFLOPs"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for arm, results in found.items():
        students = [r["arms"]["student"] for r in results]
        teacher = [r["arms"]["teacher_full"]["frechet"] for r in results]
        costs = [training_cost(r) for r in results]
        cells = [
            f"{statistics.fmean(frechet[arm]):.1f}",
            interval([a - b for a, b in zip(frechet[arm], teacher, strict=True)]),
            "" if arm == best else interval([a - b for a, b in zip(frechet[arm], frechet[best], strict=True)]),
            f"{statistics.fmean(s['recall'] for s in students):.3f}",
            f"{statistics.fmean(s['paired']['pixel_mse'] for s in students):.5f}",
            f"{statistics.fmean(c['seconds'] for c in costs):.0f}",
            f"{statistics.fmean(c['flops'] for c in costs) / 1e12:.1f}",
        ]
        lines.append("| " + " | ".join([arm, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/grid"), help="where the run folders go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/grid.json"))
    parser.add_argument("--steps", type=int, nargs="+", choices=list(BUDGET), default=list(BUDGET))
    parser.add_argument("--seeds", type=untuned, nargs="*", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=list(arms(4)), help="default: all; not every N has every arm")
    options = parser.parse_args()
    results = Results(options.results, options.root)
    try:
        for steps in options.steps:
            found: dict[str, list[Result]] = {}
            for name, arm in arms(steps).items():
                if options.arms and name not in options.arms:
                    continue
                given = settings(steps, arm, chosen(steps, name, results), BUDGET[steps])
                made = [
                    results.of(f"{steps}-{name}-{seed}", RECIPE, given, seed=seed, targets=name)
                    for seed in options.seeds
                ]
                found |= {name: made} if made else {}
            if found:
                print(f"{steps} steps\n\n{table(found)}", flush=True)
    except Notice as notice:
        raise SystemExit(f"{notice} (run this command again)") from None


if __name__ == "__main__":
    main()
