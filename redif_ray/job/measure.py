"""The arms of the comparison: every way to make images, on the same held-out noises, by the same judge.

The images stay in the reward workers; what reaches the driver does not grow with their size (`evaluation.seen`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from redif_ray.checkpoint import check_checkpoint, find_checkpoint
from redif_ray.config import LEARNED
from redif_ray.diffusion import solvers
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.arm import evaluate_arm, limits
from redif_ray.evaluation.changes import changes
from redif_ray.evaluation.diversity import diversity
from redif_ray.evaluation.judge_source import needs_reference
from redif_ray.evaluation.report import ARMS
from redif_ray.job.best_teacher import best_teacher, ways_of
from redif_ray.job.progress import Progress
from redif_ray.job.session import Session
from redif_ray.job.steps import Step, Steps, cost, units_done
from redif_ray.learner.compute import Accounts
from redif_ray.learner.judge import judge_of
from redif_ray.learner.learned_reward import last_learned
from redif_ray.planning.calls import prices
from redif_ray.planning.rounds import reference_units
from redif_ray.runs.deployed import INITIAL, checkpoint_key
from redif_ray.types import Condition, Seen, Way, WorkUnit
from redif_ray.weights.store import learned_key

REFERENCE, BEST_WAY = "the judge's reference", "the teacher's best schedule and solver"
DIVERSITY = "diversity of a condition's images"
WARM = "warm_start"  # checkpoint


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of an evaluation.

    fields: the fields of the summary that an evaluation determines.
    pictures: (label, pictures [k, C, h, w] uint8) of each arm. conditions: of these k images, in the same order.
    notes: further facts for the summary's `notes`.
    """

    fields: dict[str, Any]
    pictures: list[tuple[str, np.ndarray]]
    conditions: tuple[Condition, ...]
    notes: dict[str, Any]


def measure(run: Session, key: str, accounts: Accounts, progress: Progress) -> Measured:
    """Measure every arm on the same held-out noises, with the same judge, and tell `progress` as it goes on.

    key: name of the student's weights; see `runs.deployed`.
    accounts: takes the cost of the evaluation.
    """
    config, count = run.config, run.config.evaluation.held_out
    expected = _steps(run, _stored(run))
    progress.shorten(cost(expected) / cost(_steps(run, {})))
    with Steps(expected, partial(units_done, run.coordinator), progress) as steps:
        judge = judge_of(run.coordinator, count, accounts, run.get)
        steps.done(REFERENCE)
        _take_learned(run)
        few = _held_out(run, INITIAL, accounts)
        steps.done(ARMS["teacher_few"])
        if (warm := _warm_start(run, accounts)) is not None:
            steps.done(ARMS["warm_start"])
        student = _held_out(run, key, accounts)
        steps.done(ARMS["student"])
        units = run.plan.deploy(Stream.HELD_OUT, count)
        teacher, metas = run.see(units, units)
        accounts.add_evaluation(metas)
        steps.done(ARMS["teacher_full"])
        name, way = best_teacher(run, accounts)
        steps.done(BEST_WAY)
        best, metas = run.see(units, [way] * len(units))
        accounts.add_evaluation(metas)
        steps.done(ARMS["teacher_best"])
        varied = _diversity(run, key, accounts)
        if varied is not None:
            steps.done(DIVERSITY)
    progress.tell("comparing the arms", line=True)
    calls = config.student.steps * run.teacher.calls_per_step(config.student.guidance)
    full_calls = solvers.network_calls(config.teacher.solver, config.teacher.steps)
    full_calls *= run.teacher.calls_per_step(config.teacher.guidance)
    draws = {"resamples": config.evaluation.bootstrap, "seed": config.run.seed}
    arms: dict[str, Any] = {}
    for arm, seen, nfe in (
        ("teacher_full", teacher, full_calls),
        ("teacher_best", best, calls),
        ("teacher_few", few, calls),
        ("warm_start", warm, calls),
        ("student", student, calls),
    ):
        run.stop.check()
        if seen is not None:
            progress.tell(f"comparing the arms: {ARMS[arm]}")
            arms[arm] = evaluate_arm(seen, judge, nfe=nfe, teacher=teacher, **draws)
    progress.tell("comparing the student with its start")
    starts = {"over the untrained student": few, "over the warm start": warm}
    gains = {text: changes(judge, student, seen, **draws) for text, seen in starts.items() if seen is not None}
    rows = [("teacher", teacher), (ARMS["teacher_few"], few), (ARMS["warm_start"], warm), (ARMS["student"], student)]
    own = needs_reference(config.evaluation.judge)  # the teacher's images are the reference, and its row the limit
    fields = {
        "held_out": count,
        "size": list(run.teacher.image_shape[1:]),
        "judge": judge.name,
        "reference": "teacher" if own else "real",
        "arms": {name: arms.get(name) for name in ARMS},
        "limits": None if own else limits(judge, count, config.run.seed),
        "diversity": varied,
    }
    notes = {"teacher_best": name, "seconds_per_image": seconds_per_image(run), "student_gain": gains}
    pictures = [(label, seen.pictures) for label, seen in rows if seen is not None]
    return Measured(fields, pictures, teacher.conditions[: len(teacher.pictures)], notes)


def _teacher_units(run: Session) -> dict[Stream, list[WorkUnit]]:
    """Return the work units whose images of the teacher an evaluation needs, by their stream."""
    config, plan = run.config, run.plan
    counts = {Stream.HELD_OUT: config.evaluation.held_out, Stream.SEARCH: config.evaluation.search}
    if alike := config.evaluation.diversity.count:
        counts[Stream.DIVERSITY] = alike
    units = {stream: plan.deploy(stream, count) for stream, count in counts.items()}
    if needs_reference(config.evaluation.judge):
        units[Stream.REFERENCE] = reference_units(plan, config.evaluation.held_out)
    return units


def _stored(run: Session) -> dict[Stream, float]:
    """Return the share of the teacher's images of each stream that the store has already."""
    units = _teacher_units(run)
    _, found = run.ask_reward("stored", [(each,) for each in units.values()])
    return {stream: sum(each) / len(each) for stream, each in zip(units, found, strict=True)}


def _steps(run: Session, stored: Mapping[Stream, float]) -> dict[str, Step]:
    """Return the steps of `measure` with their costs; the teacher's images are made with those of the first arm.

    stored: the shares of the teacher's images that are made already.
    """
    config, count = run.config, run.config.evaluation.held_out
    search = config.evaluation.search
    every, made = prices(config, run.teacher), _teacher_units(run)
    own = config.student.steps * every.student
    full = {stream: every.target * (1 - stored.get(stream, 0.0)) for stream in made}
    units, tried, ways = len(made[Stream.HELD_OUT]), len(made[Stream.SEARCH]), len(ways_of(run))
    reference = count * full[Stream.REFERENCE] if Stream.REFERENCE in full else 0.5 * count
    alike = config.evaluation.diversity.count
    return {
        REFERENCE: Step(reference, len(reference_units(run.plan, count))),
        ARMS["teacher_few"]: Step(count * (own + full[Stream.HELD_OUT]), units),
        **({ARMS["warm_start"]: Step(count * own, units)} if _warmed(run) else {}),
        ARMS["student"]: Step(count * own, units),
        ARMS["teacher_full"]: Step(0.5 * count, units),
        BEST_WAY: Step(search * (full[Stream.SEARCH] + ways * own), ways * tried),
        ARMS["teacher_best"]: Step(count * own, units),
        **({DIVERSITY: Step(alike * (own + full[Stream.DIVERSITY]), len(made[Stream.DIVERSITY]))} if alike else {}),
    }


def _take_learned(run: Session) -> None:
    """Publish the run's last learned reward, if it has one, so that every arm is scored with the same reward."""
    if learned_key(run.config, 0) is None:
        return
    run.learned, weights = last_learned(run.folder.path)
    if weights:
        run.publisher.publish(f"{LEARNED}-{run.learned}", weights)


def _held_out(run: Session, key: str, accounts: Accounts) -> Seen:
    seen, metas = run.sample(Stream.HELD_OUT, run.config.evaluation.held_out, key)
    accounts.add_evaluation(metas)
    return seen


def _diversity(run: Session, key: str, accounts: Accounts) -> dict[str, Any] | None:
    if not run.config.evaluation.diversity.count:
        return None
    distances, metas = run.diversity(key)
    accounts.add_evaluation(metas)
    return diversity(run.config.evaluation.diversity, distances)


def _warmed(run: Session) -> Path | None:
    """Return the checkpoint after the warm start; None where there is none, or where it is the student itself."""
    return find_checkpoint(run.folder.path / "checkpoints" / WARM) if len(run.plan.phases) > 1 else None


def _warm_start(run: Session, accounts: Accounts) -> Seen | None:
    path = _warmed(run)
    if path is None:
        return None
    return _held_out(run, checkpoint_key(WARM, check_checkpoint(path)[1]["version"]), accounts)


def seconds_per_image(run: Session) -> dict[str, float]:
    """Return {"teacher", "student"}: seconds per image on one otherwise idle reward worker, at `evaluation.batch`.

    The levels do not change the time, so both are timed on the teacher's schedule.
    """
    config = run.config
    unit = run.plan.deploy(Stream.SEARCH, min(config.evaluation.search, config.evaluation.images_at_once))[0]
    teacher, student = config.teacher, config.student
    sampled = {
        "teacher": Way(teacher.solver, teacher.schedule, teacher.steps, teacher.guidance),
        "student": Way("euler", teacher.schedule, student.steps, student.guidance),
    }
    seconds = {}
    for name, way in sampled.items():
        _, (meta,) = run.see([unit], [way], judged=False)
        seconds[name] = meta.work[0].seconds / unit.rows  # the first part is the sampling
    return seconds
