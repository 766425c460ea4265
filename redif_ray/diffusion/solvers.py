"""Deterministic solvers: pure functions of (predict, x, schedule), from x = x_T [B, ...] to the terminal level.

All solve d(x / sigma) / d(alpha / sigma) = x0_hat. For constant x0_hat the solution between levels t and s is exactly

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - sigma_s alpha_t / sigma_t) x0_hat

and the solvers differ in the value that they use for x0_hat. No solver divides by alpha: a first level of pure noise is
no special case, and where alpha_T is tiny but not 0 (cosine schedules) no difference of predictions is multiplied by
sigma_T / alpha_T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from redif_ray.diffusion.levels import Level, NoiseProcess, like
from redif_ray.diffusion.schedules import Schedule, sub_schedule
from redif_ray.diffusion.transition import DETERMINISTIC, Prediction, transition_mean

Predict = Callable[[Tensor, Level], Prediction]  # one network call: x [B, ...] at a scalar level
Solver = Callable[[Predict, Tensor, Schedule], Tensor]
JumpSolver = Literal["euler", "dpmpp_2m"]


def euler(predict: Predict, x: Tensor, schedule: Schedule) -> Tensor:
    """Solve to first order by transitions with S = 0: DDIM (Song et al., arXiv 2010.02502). N network calls."""
    for i in range(schedule.steps):
        x = transition_mean(predict(x, schedule[i]), schedule[i + 1], DETERMINISTIC)
    return x


def heun(predict: Predict, x: Tensor, schedule: Schedule) -> Tensor:
    """Solve to second order by the mean of x0_hat at both ends of a step. 2 N - 1 network calls.

    Karras et al. (arXiv 2206.00364, algorithm 1) average eps_hat over sigma / alpha instead, which has no finite
    first step from alpha = 0. As in theirs, the step to the terminal level is an Euler step.
    """
    for i in range(schedule.steps):
        t, s = schedule[i], schedule[i + 1]
        prediction = predict(x, t)
        ahead = transition_mean(prediction, s, DETERMINISTIC)
        x = ahead if i == schedule.steps - 1 else _advance(x, (prediction.x0 + predict(ahead, s).x0) / 2, t, s)
    return x


def dpmpp_2m(predict: Predict, x: Tensor, schedule: Schedule, *, terminal: bool = True) -> Tensor:
    """Solve by DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2): x0_hat is extrapolated to midpoints.

    The order is 2 in half log-SNR; the first step and the one to the terminal level are Euler steps. N network calls.
    terminal: whether the schedule ends at the terminal level, to which half log-SNR makes a long or infinite step.
    """
    h = schedule.levels.half_log_snr.diff()
    previous: Tensor | None = None
    for i in range(schedule.steps):
        t, s = schedule[i], schedule[i + 1]
        x0 = predict(x, t).x0
        midpoint = x0
        if previous is not None and not (terminal and i == schedule.steps - 1):
            midpoint = x0 + like(h[i] / (2 * h[i - 1]), x0) * (x0 - previous)
        x, previous = _advance(x, midpoint, t, s), x0
    return x


def _advance(x: Tensor, x0: Tensor, t: Level, s: Level) -> Tensor:
    shrink = s.sigma / t.sigma
    return like(shrink, x) * x + like(s.alpha - shrink * t.alpha, x) * x0


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


def network_calls(solver: str, steps: int) -> int:
    """Return the unguided network calls of a solver over N = `steps` levels. Raises ValueError."""
    _solver(solver)
    return 2 * steps - 1 if solver == "heun" else steps


def initial(schedule: Schedule, unit_noise: Tensor) -> Tensor:
    """Return x_T = sigma_T eps of the schedule's first level, in the noise's shape and dtype."""
    return like(schedule[0].sigma, unit_noise) * unit_noise


def sample(solver: str, predict: Predict, unit_noise: Tensor, schedule: Schedule) -> Tensor:
    """Solve from `unit_noise` [B, ...]; gradients flow if the caller lets them.

    Raises FloatingPointError that names the first network call whose prediction is not finite, or if the result is not.
    It is raised at the end, so that a device need not be waited for at every call.
    """
    levels: list[Level] = []
    finite: list[Tensor] = []

    def checked(x: Tensor, level: Level) -> Prediction:
        prediction = predict(x, level)
        levels.append(level)
        finite.append(torch.isfinite(prediction.x0).all() & torch.isfinite(prediction.eps).all())
        return prediction

    x = _solver(solver)(checked, initial(schedule, unit_noise), schedule)
    *calls, result = torch.stack([*finite, torch.isfinite(x).all()]).tolist()
    if not all(calls):
        call = calls.index(False)
        raise FloatingPointError(
            f"{solver}, {schedule.steps} steps of {schedule.name}: the prediction of network call {call + 1} (timestep "
            f"{levels[call].timestep:g}) is not finite; check the weights (no epsilon model starts at alpha 0)"
        )
    if not result:
        raise FloatingPointError(f"{solver}, {schedule.steps} steps of {schedule.name}: the result overflows {x.dtype}")
    return x


def jump(
    predict: Predict,
    x: Tensor,
    process: NoiseProcess,
    t: Level,
    s: Level,
    std: Tensor,
    substeps: int,
    solver: JumpSolver = "euler",
) -> Tensor:
    """Return the teacher's mean of x_s from x at level t, in at most M = `substeps` steps; t, s, S = `std` are scalar.

    The mean carries less noise than level s, so the steps lead to the level d with sigma_d / alpha_d =
    sqrt(sigma_s^2 - S^2) / alpha_s, and the result is x_d alpha_s / alpha_d: a target of the same noise as the policy's
    mean. M = 1 is the teacher's own transition mean; a terminal s ends at x0. Both solvers make M network calls.
    """
    schedule = sub_schedule(process, t, s, std, substeps)
    if solver == "euler":
        return euler(predict, x, schedule)
    return dpmpp_2m(predict, x, schedule, terminal=bool(schedule[-1].half_log_snr > process.span[1]))


def _solver(name: str) -> Solver:
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is unknown; expected one of {', '.join(SOLVERS)}")
    return SOLVERS[name]
