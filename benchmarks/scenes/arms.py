"""The arms of `students.py`: their settings, their candidates, and what they may cost."""

from __future__ import annotations

import itertools
from pathlib import Path

from benchmarks.grid import Arm, most_rounds
from benchmarks.scenes.pictures import ASKED, CAPTIONS

RECIPE, CALLS = "benchmarks/scenes/student.yaml", 150_000
BEFORE = ("method=sfd",)
CALLS_OF_A_PICTURE = 4  # of a student
POOL = 512  # noises of an arm that reads pictures or steps of the teacher, at the whole number of calls
FITTED = 5_000  # pictures of the student before to which a network is fitted
RATES = (2e-5, 5e-5, 1e-4, 2e-4)
CHECKER = "options: {callable: 'benchmarks/scenes/checker.py:right', teacher: false}"


def rates(*values: float) -> tuple[tuple[str, ...], ...]:
    return tuple((f"learner.lr={value:g}",) for value in values)


def paired() -> tuple[tuple[str, ...], ...]:
    """Return the candidates with agreement in the reward: its weight in units of the spreads, and the rate."""
    made = []
    for weight, rate in itertools.product((0.3, 1.0), (1e-4, 2e-4)):
        pair = f"mse: {{weight: {weight}, normalise: std}}"
        terms = f"{{right: {{normalise: std, {CHECKER}}}, {pair}}}"
        made.append((f"reward.terms={terms}", f"learner.lr={rate:g}"))
    return tuple(made)


ARMS = {
    "verdict": Arm((), rates(5e-5, 1e-4, 2e-4, 4e-4)),
    "verdict, shown": Arm((f"conditions.source={CAPTIONS}",), rates(5e-5, 1e-4, 2e-4, 4e-4)),
    "verdict, pair": Arm((), paired()),
    "steps": Arm(
        (
            "method=redif",
            "exploration={eta: 1.0, one_step: true}",
            "rollout={groups: 8, siblings: 16, unit_groups: 4}",
        ),
        rates(*RATES),
    ),
    "output": Arm(("method=output", "output={groups: 64, samples: 16, std: 0.1, sampled: true}"), rates(*RATES)),
    "network": Arm(("method=draft", "draft={groups: 48, minibatch: 48}"), rates(*RATES)),
    "matching": Arm(
        ("method=distribution_matching",),
        tuple(
            (f"learner.lr={rate:g}", f"distribution_matching={{groups: 48, fake_steps: 5, fake_lr: {fake:g}}}")
            for rate, fake in ((5e-5, 1e-4), (5e-5, 2e-4), (1e-4, 2e-4), (2e-4, 4e-4))
        ),
    ),
    "regression": Arm(
        BEFORE, tuple((f"warm_start.lr={rate:g}",) for rate in (5e-5, 1e-4, 2e-4, 4e-4)), "warm_start.rounds"
    ),
}
TAUGHT = ("verdict, pair", "regression")  # arms that read what the teacher draws


def settings(name: str, candidate: tuple[str, ...], calls: int, before: Path, network: Path | None) -> tuple[str, ...]:
    """Return the overrides of an arm's run that takes so many network calls.

    before: the folder of the student before. network: the file with the fitted network, for the arm of that name.
    """
    arm = ARMS[name]
    given = (f"student.init={before}", "warm_start.rounds=0", f"conditions.source={ASKED}", *arm.fixed, *candidate)
    left: float = calls
    if name in TAUGHT:
        given += (f"conditions.pool={POOL * calls // CALLS}",)
    if network is not None:
        options = f"{{callable: '{network}:score', differentiable: true, teacher: false}}"
        given += (f"reward={{max_workers: 2, terms: {{network: {{options: {options}}}}}}}",)
        left -= FITTED * CALLS_OF_A_PICTURE * calls / CALLS
    return (*given, f"{arm.key}={most_rounds(RECIPE, given, arm.key, left)}")
