"""The arms of the comparison: every way to make images, on the same held-out noises, by the same judge."""

from __future__ import annotations

import json
import logging
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
from redif_ray.job.preflight import check_held_out
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

log = logging.getLogger(__name__)
NO_LEARNER = {"workers": 1, "fsdp": False, "cpus": 0, "gpus": 0, "resources": {}, "labels": {}}
Way = tuple[str, str, int, float]  # how to sample the teacher: solver, schedule, steps, guidance


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of an evaluation.

    fields: the fields of the summary that an evaluation determines.
    images: (label, images [n, C, H, W] float in [0, 1]) of each arm.
    notes: further facts for the summary's `notes`.
    """

    fields: dict[str, Any]
    images: list[tuple[str, np.ndarray]]
    notes: dict[str, Any]


def evaluate(run: Path, overrides: list[str], *, checkpoint: str, console: Console) -> Path:
    """Run `redif evaluate`: measure the arms of a run again and return the path of evaluation-<held_out>.json.

    run: run folder. overrides: KEY=VALUE texts. checkpoint: name of a folder below `checkpoints/`.
    Raises UserError, and Interrupted after Ctrl-C or SIGTERM.
    """
    run = run.resolve()  # a relative path would mean another folder in the workers' working directories
    config, weights, version = deployed(run, checkpoint)
    config = evaluated(config, overrides)
    check_held_out(config)
    handed_over(config.reward)  # raises before Ray starts
    with stop_requests("nothing was written; run the command again") as stop, RunFolder.reopen(run) as folder:
        conditions = folder.conditions() or factory.conditions(config, load_teacher(config.teacher))
        folder.keep_conditions(conditions)
        with connect(config), session(config, conditions, folder, stop) as opened:
            opened.ready()
            opened.growth.start()
            measured = measure(opened, weights, version, Accounts(config))
        name = f"evaluation-{config.evaluation.held_out}.json"
        result = {**measured.fields, "notes": measured.notes}
        folder.write(name, json.dumps(result, indent=1) + "\n")
        timeline.draw(folder)
    console.print(result_table(result))
    return run / name


def evaluated(config: Config, overrides: list[str]) -> Config:
    """Return a run's configuration for its evaluation: with overrides, without tracking and a learner's resources.

    On a private cluster of a machine without a GPU, what a run computed on GPUs is computed on CPUs, in float32.
    Raises ConfigError for an override of a key that an evaluation may not change.
    """
    changed = [o for o in overrides if not may_differ(o.partition("=")[0].strip(), "evaluate")]
    if changed:
        raise ConfigError(
            f"{changed[0]}: an evaluation may change evaluation.*, ray.*, networks.precision, and the numbers, GPUs, "
            "resources and labels of workers; leave this override out"
        )
    tree = config.model_dump()
    for text in overrides:
        assign(tree, *parse_override(text))
    asks = tree["rollout"]["gpus"] or tree["reward"]["gpus"]
    if asks and tree["ray"]["address"] == "local" and not torch.cuda.is_available():
        log.warning("this machine has no GPU, so the evaluation computes on CPUs, in float32")
        for text in ("rollout.gpus=0", "reward.gpus=0", "networks.precision=float32"):
            assign(tree, *parse_override(text))
    tree["tracking"]["uri"] = "off"
    tree["learner"] |= NO_LEARNER
    evaluation_config: Config = validate(tree)
    return evaluation_config


def measure(run: Session, weights: dict[str, torch.Tensor], version: int, accounts: Accounts) -> Measured:
    """Measure every arm on the same held-out noises, with the same judge.

    weights: the student's deployed weights. version: their policy version.
    accounts: takes the cost of the evaluation.
    """
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
    """Publish the run's last learned reward, if it has one, so that every arm is scored with the same reward."""
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
    if path is None or len(run.plan.phases) == 1:  # a run of a single phase: the warm start is the student itself
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
    """Return the teacher's best named schedule, solver and guidance at the student's NFE, with a label.

    The best has the least paired mse on the search noises. The candidates have the student's guidance, or the teacher's
    guidance with as many steps as the same NFE allows.
    """
    config = run.config
    samples = run.sample(Stream.SEARCH, config.evaluation.search, INITIAL)
    units = run.plan.deploy(Stream.SEARCH, config.evaluation.search)
    scores: dict[Way, float] = {}
    for guidance, steps in _guidances(run).items():
        for solver in ("euler", "dpmpp_2m"):
            for name in schedules.named(run.teacher.process, steps):
                way = (solver, name, steps, guidance)
                images = np.concatenate(_teacher_samples(run, units, way, accounts))
                scores[way] = float(np.square(images - samples.targets).mean())
    best = min(scores, key=lambda way: scores[way])
    solver, name, steps, guidance = best
    guided = f", {steps} steps at guidance {guidance:g}" if len(_guidances(run)) > 1 else ""
    return f"{solver} on {name}{guided}", best


def _guidances(run: Session) -> dict[float, int]:
    """Return {guidance scale to try: number of steps that the student's NFE allows with it}."""
    student, calls = run.config.student, run.teacher.calls_per_step
    nfe = student.steps * calls(student.guidance)
    allowed = {w: nfe // calls(w) for w in (student.guidance, run.config.teacher.guidance)}
    return {guidance: steps for guidance, steps in allowed.items() if steps}


def seconds_per_image(run: Session) -> dict[str, float]:
    """Return {"teacher", "student"}: seconds per image on one otherwise idle reward worker, at `evaluation.batch`.

    The levels do not change the time, so both are timed on the teacher's schedule.
    """
    config = run.config
    unit = run.plan.deploy(Stream.SEARCH, min(config.evaluation.search, config.evaluation.batch))[0]
    teacher, student = config.teacher, config.student
    sampled = {
        "teacher": (unit, teacher.solver, teacher.schedule, teacher.steps, teacher.guidance),
        "student": (unit, "euler", teacher.schedule, student.steps, student.guidance),
    }
    seconds = {}
    for name, arguments in sampled.items():
        (meta,), _ = run.ask_reward("sample", [arguments])
        seconds[name] = sum(work.seconds for work in meta.work) / unit.rows
    return seconds


def _teacher_samples(run: Session, units: list[WorkUnit], way: Way, accounts: Accounts) -> list[np.ndarray]:
    """Return the teacher's images of each work unit, [rows, C, H, W]."""
    metas, images = run.ask_reward("sample", [(unit, *way) for unit in units])
    accounts.add_evaluation(metas)
    return images
