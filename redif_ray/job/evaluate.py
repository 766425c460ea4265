"""The arms of the comparison: every way to make images, on the same held-out noises, before the same judge."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from redif_ray.checkpoint import find_checkpoint, load_checkpoint, unpack
from redif_ray.cluster.connect import connect
from redif_ray.config import LEARNED, Config, ConfigError, assign, parse_override, validate
from redif_ray.config.changes import may_differ
from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.arm import evaluate_arm, limits
from redif_ray.evaluation.changes import Change, changes
from redif_ray.evaluation.judge import Judge, Seen, needs_reference
from redif_ray.evaluation.report import ARMS
from redif_ray.evaluation.table import result_table
from redif_ray.interrupt import stop_requests
from redif_ray.job.deployed import deployed
from redif_ray.job.session import INITIAL, Session, session
from redif_ray.learner.compute import Accounts
from redif_ray.learner.judge import judge_of
from redif_ray.learner.learned_reward import last_learned
from redif_ray.learner.samples import Samples, Terms, parted
from redif_ray.models.registry import load_teacher
from redif_ray.planning import factory
from redif_ray.runs import timeline
from redif_ray.runs.folder import RunFolder
from redif_ray.types import Condition, WorkUnit
from redif_ray.weights.store import learned_key
from redif_ray.workers.runtime_env import handed_over

NO_LEARNER = {"workers": 1, "fsdp": False, "cpus": 0, "gpus": 0, "resources": {}, "labels": {}}
Way = tuple[str, str, int, float]  # to sample the teacher: solver, schedule, steps, guidance


@dataclass(frozen=True, slots=True)
class Measured:
    """`fields` of the summary that an evaluation decides, the images of each arm, and what is noted beside them."""

    fields: dict[str, Any]
    images: list[tuple[str, np.ndarray]]
    notes: dict[str, Any]


def evaluate(run: Path, overrides: list[str], *, checkpoint: str, console: Console) -> Path:
    """`redif evaluate`: the arms of a run once more; writes evaluation-<held_out>.json beside its summary."""
    run = run.resolve()  # workers have working directories of their own
    config, weights, version = deployed(run, checkpoint)
    config = evaluated(config, overrides)
    handed_over(config.reward)  # raises before Ray starts
    with stop_requests("nothing was written; run the command again") as stop, RunFolder.reopen(run) as folder:
        conditions = folder.conditions() or factory.conditions(config, load_teacher(config.teacher))
        folder.keep_conditions(conditions)
        with connect(config), session(config, conditions, folder, stop) as opened:
            opened.ready()
            opened.growth.start()
            measured = measure(opened, weights, version, Accounts(config))
        name = f"evaluation-{config.evaluation.held_out}.json"
        found = {**measured.fields, "notes": measured.notes}
        folder.write(name, json.dumps(found, indent=1) + "\n")
        timeline.draw(folder)
    console.print(result_table(found))
    return run / name


def evaluated(config: Config, overrides: list[str]) -> Config:
    """A run's configuration, for its evaluation: nothing asks for a learner's room. Raises ConfigError."""
    changed = [o for o in overrides if not may_differ(o.partition("=")[0].strip(), "evaluate")]
    if changed:
        raise ConfigError(
            f"{changed[0]}: an evaluation may change evaluation.*, ray.*, numbers of workers, their resources and "
            "labels; expected one of these"
        )
    tree = config.model_dump()
    for text in overrides:
        assign(tree, *parse_override(text))
    tree["tracking"]["uri"] = "off"
    tree["learner"] |= NO_LEARNER
    found: Config = validate(tree)
    return found


def measure(run: Session, weights: dict[str, torch.Tensor], version: int, accounts: Accounts) -> Measured:
    """Every arm on the same held-out noises, against the same judge."""
    config, count = run.config, run.config.evaluation.held_out
    judge = judge_of(config, run.coordinator, count, accounts, run.get, elsewhere=run.embed)
    _take_learned(run)
    final = f"final-{version}"
    run.publisher.publish(final, weights)
    few, warm, student = _held_out(run, INITIAL, accounts), _warm_start(run, accounts), _held_out(run, final, accounts)
    calls = config.student.steps * run.teacher.calls_per_step(config.student.guidance)
    full_calls = solvers.network_calls(config.teacher.solver, config.teacher.steps)
    full_calls *= run.teacher.calls_per_step(config.teacher.guidance)
    made = {"teacher_few": few, "warm_start": warm, "student": student}
    seen = {name: judge.see(torch.from_numpy(s.images)) for name, s in made.items() if s is not None}
    teacher = judge.see(torch.from_numpy(student.targets))
    arm = partial(_arm, run, judge, student.conditions, teacher)
    arms = {name: None if s is None else arm(seen[name], s.terms, calls) for name, s in made.items()}
    units = run.plan.deploy(Stream.HELD_OUT, count)
    targets = parted(student.targets, units)
    terms = _compared(run, units, targets, targets, accounts)
    arms["teacher_full"] = arm(teacher, terms, full_calls)
    name, way = best_teacher(run, accounts)
    images = _teacher_samples(run, units, way, accounts)
    terms = _compared(run, units, images, targets, accounts)
    best = judge.see(torch.from_numpy(np.concatenate(images)))
    arms["teacher_best"] = arm(best, terms, calls)
    against = {"over the untrained student": "teacher_few", "over the warm start": "warm_start"}
    gains = {
        text: _gains(run, judge, student.conditions, (seen["student"], student.terms), (seen[name], samples.terms))
        for text, name in against.items()
        if (samples := made[name]) is not None
    }
    rows = [("teacher", student.targets), (ARMS["teacher_few"], few.images)]
    rows += [] if warm is None else [(ARMS["warm_start"], warm.images)]
    fields = {
        "held_out": count,
        "judge": judge.name,
        "reference": "teacher" if needs_reference(config.evaluation.judge) else "real",
        "arms": {name: arms[name] for name in ARMS},
        "limits": limits(judge, count, config.run.seed),
    }
    notes = {"teacher_best": name, "seconds_per_image": seconds_per_image(run), "student_gain": gains}
    return Measured(fields, [*rows, (ARMS["student"], student.images)], notes)


def _take_learned(run: Session) -> None:
    """A learned reward is the last of the run for every arm."""
    if learned_key(run.config, 0) is None:
        return
    run.learned, weights = last_learned(run.folder.path)
    if weights:
        run.publisher.publish(f"{LEARNED}-{run.learned}", weights)


def _compared(
    run: Session, units: list[WorkUnit], images: list[np.ndarray], targets: list[np.ndarray], accounts: Accounts
) -> Terms:
    terms, metas = run.compared(units, images, targets)
    accounts.add_evaluation(metas)
    return terms


def _held_out(run: Session, key: str, accounts: Accounts) -> Samples:
    samples = run.sample(Stream.HELD_OUT, run.config.evaluation.held_out, key)
    accounts.add_evaluation(samples.metas)
    return samples


def _warm_start(run: Session, accounts: Accounts) -> Samples | None:
    path = find_checkpoint(run.folder.path / "checkpoints" / "warm_start")
    if path is None or len(run.plan.phases) == 1:  # else what it trained is the student itself
        return None
    tensors, meta = load_checkpoint(path)
    key = f"warm-{meta['version']}"
    run.publisher.publish(key, unpack("deploy", tensors))
    return _held_out(run, key, accounts)


def _arm(
    run: Session, judge: Judge, conditions: list[Condition], teacher: Seen, seen: Seen, terms: Terms, nfe: int
) -> dict[str, Any]:
    run.stop.check()
    return evaluate_arm(
        seen,
        conditions,
        judge,
        nfe=nfe,
        teacher=teacher,
        terms=terms,
        resamples=run.config.evaluation.bootstrap,
        seed=run.config.run.seed,
    )


def _gains(
    run: Session, judge: Judge, conditions: list[Condition], first: tuple[Seen, Terms], second: tuple[Seen, Terms]
) -> dict[str, Change]:
    terms = {name: (values, second[1][name]) for name, values in first[1].items()}
    resamples, seed = run.config.evaluation.bootstrap, run.config.run.seed
    return changes(judge, first[0], second[0], terms, resamples=resamples, seed=seed, conditions=conditions)


def best_teacher(run: Session, accounts: Accounts) -> tuple[str, Way]:
    """The teacher's best named schedule, solver and guidance at the student's NFE, and what to call it.

    Chosen on the search noises by paired mse. Guidance is the student's, or the target's with as many steps as the same
    NFE has.
    """
    config = run.config
    found = run.sample(Stream.SEARCH, config.evaluation.search, INITIAL)
    units = run.plan.deploy(Stream.SEARCH, config.evaluation.search)
    scores: dict[Way, float] = {}
    for guidance, steps in _guidances(run).items():
        for solver in ("euler", "dpmpp_2m"):
            for name in schedules.named(run.teacher.process, steps):
                way = (solver, name, steps, guidance)
                images = np.concatenate(_teacher_samples(run, units, way, accounts))
                scores[way] = float(np.square(images - found.targets).mean())
    best = min(scores, key=lambda way: scores[way])
    solver, name, steps, guidance = best
    told = f", {steps} steps at guidance {guidance:g}" if len(_guidances(run)) > 1 else ""
    return f"{solver} on {name}{told}", best


def _guidances(run: Session) -> dict[float, int]:
    """Guidance scales to try, and the steps that the student's NFE has with each."""
    student, calls = run.config.student, run.teacher.calls_per_step
    nfe = student.steps * calls(student.guidance)
    found = {w: nfe // calls(w) for w in (student.guidance, run.config.teacher.guidance)}
    return {guidance: steps for guidance, steps in found.items() if steps}


def seconds_per_image(run: Session) -> dict[str, float]:
    """What an image takes one reward worker, alone, in a batch of `evaluation.batch`: {"teacher", "student"}.

    The levels make no difference to it, so both are timed on the teacher's schedule.
    """
    config = run.config
    unit = run.plan.deploy(Stream.SEARCH, min(config.evaluation.search, config.evaluation.batch))[0]
    teacher, student = config.teacher, config.student
    sampled = {
        "teacher": (unit, teacher.solver, teacher.schedule, teacher.steps, teacher.guidance),
        "student": (unit, "euler", teacher.schedule, student.steps, student.guidance),
    }
    found = {}
    for name, arguments in sampled.items():
        (meta,), _ = run.ask_reward("sample", [arguments])
        found[name] = sum(work.seconds for work in meta.work) / unit.rows
    return found


def _teacher_samples(run: Session, units: list[WorkUnit], way: Way, accounts: Accounts) -> list[np.ndarray]:
    """The teacher's images of each work unit."""
    metas, images = run.ask_reward("sample", [(unit, *way) for unit in units])
    accounts.add_evaluation(metas)
    return images
