"""The network calls that a run makes, counted by part and role; the unit is one call on one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from redif_ray.config import Config
from redif_ray.diffusion import schedules, solvers
from redif_ray.evaluation.compute import update_factor
from redif_ray.evaluation.judge_source import needs_reference
from redif_ray.learning.rounding import rounds_apart
from redif_ray.methods import Calls as PhaseCalls
from redif_ray.methods import Phase, Prices
from redif_ray.models.protocol import DiffusionModel
from redif_ray.planning.rounds import RoundPlan, distinct_groups

Calls = Mapping[str, float]  # network calls on single images that the workers of a role make, by role


def prices(config: Config, teacher: DiffusionModel) -> Prices:
    """Return the costs of the parts of a run, in network calls on one image; a guided call counts as two."""
    ours, theirs = (teacher.calls_per_step(side.guidance) for side in (config.student, config.teacher))
    target = solvers.network_calls(config.teacher.solver, config.teacher.steps) * theirs
    recompute = bool(config.learner.activation_checkpointing)
    backward = update_factor(lora=config.student.lora.rank > 0, checkpointing=recompute)
    return Prices(ours, theirs, target, backward, replayed=rounds_apart(config))


def phase_calls(config: Config, phase: Phase, every: Prices) -> PhaseCalls:
    """Count the calls of all rounds of a phase; the teacher's images of a pool's noises are made once."""
    share = distinct_groups(config, phase) / (phase.rounds * phase.groups)
    return phase.calls(replace(every, target=every.target * share))


def network_calls(config: Config, teacher: DiffusionModel, plan: RoundPlan, decode: float) -> dict[str, Calls]:
    """Count the network calls on single images that each role makes, by part of the run.

    decode: cost of decoding one image, in network calls.
    """
    every = prices(config, teacher)
    own, target, backward = config.student.steps * every.student, every.target, every.backward
    work: dict[str, Calls] = {}
    for phase in plan.phases:
        calls, groups = phase_calls(config, phase, every), phase.rounds * phase.groups
        # To encode costs as much as to decode, and so does the way back through it.
        seen = groups * (phase.teacher_images + phase.encodes_in_worker + phase.decodes + phase.differentiates)
        learnt = groups * (phase.scores_in_learner * backward + phase.encodes_images)
        work[phase.title] = {"rollout": calls.rollout, "reward": calls.reward + seen * decode}
        work[f"{phase.title}, update"] = {"learner": calls.learner + learnt * decode}
    checks, validated = 1 + plan.rounds // config.validation.every, config.validation.groups
    calibrated = config.reward.calibration
    return work | {
        "calibration": {"rollout": calibrated * own, "reward": calibrated * (2 * target + 6 * decode)},
        "validation": {
            "rollout": checks * validated * own,
            "reward": validated * (target + (checks + 1) * decode) + _reference(config, validated, target + decode),
        },
        "evaluation": _evaluation(config, teacher, own, target, decode),
    }


def _evaluation(config: Config, teacher: DiffusionModel, own: int, target: float, decode: float) -> Calls:
    """Count the calls of the evaluation: arms of student and teacher, the choice of one of these, and the diversity.

    own, target: calls of an image of the student and of the teacher.
    """
    held_out, searched = config.evaluation.held_out, config.evaluation.search
    ways = 2 * len(schedules.named(teacher.process, config.student.steps))  # two solvers on each named schedule
    made = held_out * (target + own + 5 * decode) + searched * (target + decode + ways * (own + decode))
    alike = config.evaluation.diversity.count
    made += alike * (target + 2 * decode)
    return {"rollout": (held_out * 3 + alike) * own, "reward": made + _reference(config, held_out, target + decode)}


def _reference(config: Config, count: int, image: float) -> float:
    """Return the calls for `count` images of the teacher, of `image` calls each, if the judge brings none."""
    return count * image if needs_reference(config.evaluation.judge) else 0.0
