"""Exploring at every step against exploring at one alone: from one warm start, in one process, for each seed.

    python -m benchmarks.one_step fashion_mnist 0 1 2 [--signal]

Arms are measured on held-out noises: the recipe's terms, and the Frechet distance before the recipe's judge. TFLOPs are
those of teacher, rollout and update. Warm starts and what was measured stay in runs/one-step and are not made again.
--signal: instead, how much a round knows: the cosine between the sum of three rounds' gradients at the warm start, each
of other groups, and the gradient that back-propagation finds of the same terms (DRaFT's, 384 groups), which is at S = 0
and for terms that are normalised in units of their spread among siblings.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from redif_ray.config import Config, load
from redif_ray.diffusion import solvers
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.report import markdown_table
from redif_ray.evaluation.seen import joined
from redif_ray.learner.compute import Accounts
from redif_ray.learning.draft import DraftUpdater
from redif_ray.learning.ema import ExponentialAverage
from redif_ray.learning.exploration import explored_stds, shared_steps
from redif_ray.learning.round_update import Round
from redif_ray.loop import PlainLoop
from redif_ray.models.student import get_weights, set_weights, trainable
from redif_ray.planning import factory
from redif_ray.planning.rounds import reference_units
from redif_ray.rewards.combine import centred_std
from redif_ray.types import Seen, WorkUnit

ROOT = Path("runs/one-step")
ARMS = {
    "every step, groups of 16": ("learner.rounds=100", "learner.lr=2e-5", "exploration.one_step=false"),
    "one step, groups of 16": ("learner.rounds=100", "learner.lr=2e-5", "exploration.one_step=true"),
    "one step, groups of 64": (
        "learner.rounds=80",
        "learner.lr=2e-5",
        "exploration.one_step=true",
        "rollout.siblings=64",
    ),
}
CYCLE, CYCLES, REFERENCE = 3, 6, 384


def config(recipe: str, seed: int, *overrides: str) -> Config:
    one_thread = (f"{role}.threads=1" for role in ("learner", "rollout", "reward"))
    return load(recipe, [*one_thread, f"run.seed={seed}", f"run.root={ROOT}/{recipe}", *overrides])


def warm(recipe: str, seed: int) -> dict[str, Tensor]:
    """Weights after the warm start."""
    path = ROOT / f"{recipe}-{seed}.safetensors"
    if not path.exists():
        loop = PlainLoop(config(recipe, seed))
        for round in range(loop.config.warm_start.rounds):
            loop.round(round)
        save_file(get_weights(loop.student), path)
    return load_file(path)


def held_out(loop: PlainLoop, weights: dict[str, Tensor], count: int) -> Seen:
    """Measurements of the student as deployed."""
    parts = []
    for unit in loop.plan.deploy(Stream.HELD_OUT, count):
        _, _, final = loop.rollout.rollout(unit, weights, "deploy-0")
        parts.append(loop.reward.score(unit, final)[1].seen)
    return joined([part for part in parts if part is not None])


def arm(recipe: str, seed: int, overrides: tuple[str, ...]) -> dict[str, float]:
    """TFLOPs, terms and Frechet distance of an arm's average after its last round; without overrides, of the start."""
    found = config(recipe, seed, *overrides)
    loop, flops = PlainLoop(found), Accounts(found)
    set_weights(loop.student, warm(recipe, seed))
    average = ExponentialAverage(trainable(loop.student), found.learner.ema)
    calls = 0.0
    for round in range(loop.config.warm_start.rounds, loop.plan.rounds if overrides else loop.config.warm_start.rounds):
        metrics = loop.round(round)
        average.update(trainable(loop.student))
        calls += _calls(loop, round, metrics, flops)
    seen = held_out(loop, average.weights(), found.evaluation.held_out)
    return {"tflops": calls * flops.flops / 1e12, "frechet": _frechet(loop, seen.judged)} | {
        name: float(values.mean()) for name, values in seen.terms.items()
    }


def _calls(loop: PlainLoop, round: int, metrics: dict[str, float], flops: Accounts) -> float:
    """Return the network calls of teacher, rollout and update, in forward passes. metrics: those of the update."""
    c, model = loop.config, loop.student
    stds = explored_stds(loop.rollout.schedule, c.exploration, round)
    targets = solvers.network_calls(c.teacher.solver, c.teacher.steps) * model.calls_per_step(c.teacher.guidance)
    played = sum(
        len(unit.groups) * targets
        + unit.predictions(c.student.steps, shared_steps(c, stds)) * model.calls_per_step(c.student.guidance)
        for unit in loop.plan.units(round)
    )
    backward = metrics["update/network_calls_backward"] * (flops.factor - 1)
    return played + metrics["update/network_calls_forward"] + backward


def _frechet(loop: PlainLoop, features: np.ndarray) -> float:
    parts = [loop.reward.reference(unit)[1] for unit in reference_units(loop.plan, len(features))]
    return float(Judge.of(parts).frechet(features))


class Kept(torch.optim.SGD):
    """Keeps each gradient, and moves nothing."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.0)
        self.found: list[Tensor] = []

    def step(self, closure: Any = None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.found.append(torch.cat([p.grad.flatten().double() for p in parameters]))


def signal(recipe: str, seed: int) -> list[list[str]]:
    rows, truth = [], None
    for name, overrides in ARMS.items():
        c = config(recipe, seed, *overrides, "learner.max_grad_norm=1e9")
        loop, flops = PlainLoop(c), Accounts(c)
        set_weights(loop.student, warm(recipe, seed))
        truth = _back_propagated(loop, c) if truth is None else truth
        first, sums, calls = c.warm_start.rounds, [], 0.0
        phase = loop.plan.phase(first)
        loop.trainee.start(phase)
        for cycle in range(CYCLES):
            optimizer = Kept(trainable(loop.student).values())
            learning = replace(loop.trainee.learning, optimizer=optimizer)
            for round in range(first + cycle * CYCLE, first + (cycle + 1) * CYCLE):
                weights = get_weights(loop.student)
                played = {s.index: loop.play(s, weights, f"policy-{round}") for s in loop.plan.units(round)}
                metas, parts = [m for m, _ in played.values()], {i: data for i, (_, data) in played.items()}
                metrics = phase.update(learning, Round(round, metas, parts))
                calls += _calls(loop, round, metrics, flops)
            sums.append(torch.stack(optimizer.found).sum(0))
        cosines = [float(torch.cosine_similarity(total, truth, dim=0)) for total in sums]
        error = np.std(cosines, ddof=1) / len(cosines) ** 0.5
        rows.append([name, f"{calls / CYCLES / CYCLE:,.0f}", f"{np.mean(cosines):.3f} ± {error:.3f}"])
    return rows


def _back_propagated(loop: PlainLoop, c: Config) -> Tensor:
    """The gradient of minus the terms, in units of their spread among siblings, at the deployed policy."""
    units = loop.plan.units(c.warm_start.rounds)
    weights = get_weights(loop.student)
    scored = [loop.play(unit, weights, "policy-0")[0][-1].terms for unit in units]
    spread = {
        name: centred_std(torch.from_numpy(np.concatenate([one[name] for one in scored])), c.rollout.siblings)
        if term.normalise == "std"
        else 1.0
        for name, term in c.reward.terms.items()
    }
    terms = {
        name: term.model_copy(update={"weight": term.weight / spread[name], "normalise": "none"})
        for name, term in c.reward.terms.items()
    }
    draft = c.draft.model_copy(update={"groups": REFERENCE, "minibatch": REFERENCE})
    own = c.model_copy(update={"draft": draft, "reward": c.reward.model_copy(update={"terms": terms})})
    groups = tuple(range(10**6, 10**6 + REFERENCE))
    conditions = tuple(loop.plan.conditions.of(Stream.TRAIN, group) for group in groups)
    parts = []
    for start in range(0, REFERENCE, 48):
        some = slice(start, start + 48)
        unit = WorkUnit(0, start, "draft", Stream.TRAIN, groups[some], conditions[some])
        parts.append((unit, loop.reward.targets(unit)[1]))
    optimizer = Kept(trainable(loop.student).values())
    rewards = factory.rewards(own, loop.student, "cpu")
    DraftUpdater(loop.student, optimizer, loop.rollout.schedule, own, rewards).run(
        parts, total=REFERENCE, round=0, lr=0.0
    )
    return optimizer.found[0]


def main(recipe: str, seeds: list[int], wants_signal: bool) -> None:
    torch.set_num_threads(1)
    ROOT.mkdir(parents=True, exist_ok=True)
    if wants_signal:
        print(markdown_table(["", "network calls a round", "cosine of three rounds"], signal(recipe, seeds[0])))
        return
    kept = ROOT / f"{recipe}.json"
    results: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in seeds:
        for name, overrides in {"after the warm start": (), **ARMS}.items():
            if f"{name}, seed {seed}" not in results:
                results[f"{name}, seed {seed}"] = arm(recipe, seed, overrides)
                kept.write_text(json.dumps(results, indent=1))
    columns = list(next(iter(results.values())))
    rows = [[name, *(f"{found[column]:.5g}" for column in columns)] for name, found in results.items()]
    print(markdown_table(["", *columns], rows))


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[2:] if not a.startswith("--")]
    main(sys.argv[1], numbers or [0], "--signal" in sys.argv)
