"""The best that the teacher does without training at the student's network calls, a control arm of every evaluation."""

from __future__ import annotations

from redif_ray.diffusion import schedules
from redif_ray.diffusion.noise import Stream
from redif_ray.job.session import Session
from redif_ray.learner.compute import Accounts
from redif_ray.types import Way


def best_teacher(run: Session, accounts: Accounts) -> tuple[str, Way]:
    """Return the teacher's best named schedule, solver and guidance at the student's NFE, with a label.

    The best has the least paired mse on the search noises. The candidates have the student's guidance, or the teacher's
    guidance with as many steps as the same NFE allows.
    """
    config = run.config
    units = run.plan.deploy(Stream.SEARCH, config.evaluation.search)
    scores: dict[Way, float] = {}
    for way in ways_of(run):
        seen, metas = run.see(units, [way] * len(units), judged=False)
        accounts.add_evaluation(metas)
        scores[way] = float(seen.pixel_mse.mean())
    best = min(scores, key=lambda way: scores[way])
    guided = f", {best.steps} steps at guidance {best.guidance:g}" if len(_guidances(run)) > 1 else ""
    return f"{best.solver} on {best.schedule}{guided}", best


def ways_of(run: Session) -> list[Way]:
    """Return the teacher's schedules, solvers and guidances that are tried."""
    return [
        Way(solver, name, steps, guidance)
        for guidance, steps in _guidances(run).items()
        for solver in ("euler", "dpmpp_2m")
        for name in schedules.named(run.teacher.process, steps)
    ]


def _guidances(run: Session) -> dict[float, int]:
    """Return {guidance scale to try: number of steps that the student's NFE allows with it}."""
    student, calls = run.config.student, run.teacher.calls_per_step
    nfe = student.steps * calls(student.guidance)
    allowed = {w: nfe // calls(w) for w in (student.guidance, run.config.teacher.guidance)}
    return {guidance: steps for guidance, steps in allowed.items() if steps}
