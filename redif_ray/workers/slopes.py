"""The reward terms around the last latents of a work unit, and their gradients there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from redif_ray.config import Config
from redif_ray.diffusion.transfer import sent
from redif_ray.learning.smoothing import directions, mirrored, smoothed_gradient
from redif_ray.methods.output import sampled_terms
from redif_ray.models.protocol import DiffusionModel
from redif_ray.rewards.base import Rewards
from redif_ray.types import Slopes, WorkUnit


class Scorer(Protocol):
    """The reward worker that decodes and scores."""

    config: Config
    teacher: DiffusionModel
    rewards: Rewards

    def raw_terms(
        self, unit: WorkUnit, images: Tensor, teacher: Tensor | None, names: Sequence[str] | None = None
    ) -> dict[str, Tensor]: ...


def slopes(worker: Scorer, unit: WorkUnit, latents: Tensor, teacher: Tensor | None) -> Slopes:
    """Return the terms and gradients at latents [G, *latent], the last of a unit without siblings.

    teacher: the teacher's images, [G, C, H, W] in [0, 1]; None: no term reads them. A differentiable term is
    differentiated unless `output.sampled`; the gradient of any other term is estimated from scores
    (`learning.smoothing`).
    """
    sampled = sampled_terms(worker.config)
    rest = [name for name in worker.config.reward.weights if name not in sampled]
    found = []
    for i, (group, condition) in enumerate(zip(unit.groups, unit.conditions, strict=True)):
        alone = replace(unit, groups=(group,), conditions=(condition,))
        beside = None if teacher is None else teacher[i : i + 1]
        exact = _exact(worker, alone, latents[i], beside, rest)
        found.append(_joined(exact, _sampled(worker, alone, latents[i], beside, sampled)))
    return Slopes(*(_stacked([each[part] for each in found]) for part in range(3)))


Found = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]  # terms, gradients and spreads of one group


def _exact(worker: Scorer, unit: WorkUnit, x: Tensor, teacher: Tensor | None, names: Sequence[str]) -> Found:
    """Return the terms at x [*latent], and the gradients of those that have a weight."""
    if not names:
        return {}, {}, {}
    weighted = [name for name in names if worker.config.reward.weights[name]]
    with torch.set_grad_enabled(bool(weighted)):
        x = x.detach().requires_grad_(bool(weighted))
        terms = worker.raw_terms(unit, worker.teacher.images(x[None]), teacher, names)
        gradients = {
            name: torch.autograd.grad(terms[name].sum(), x, retain_graph=name != weighted[-1])[0] for name in weighted
        }
    spreads = {name: worker.config.output.std * gradient.norm() for name, gradient in gradients.items()}
    return {name: value.detach()[0] for name, value in terms.items()}, gradients, spreads


@torch.no_grad()
def _sampled(worker: Scorer, unit: WorkUnit, x: Tensor, teacher: Tensor | None, names: Sequence[str]) -> Found:
    """Return the mean of each term around x [*latent], the estimate of its gradient, and its std there.

    Along a guess the scores differ by more than around x, so that the estimate tells how far a step of S changes them.
    """
    if not names:
        return {}, {}, {}
    output, seed, guess = worker.config.output, worker.config.run.seed, _guess(worker, x, teacher)
    drawn = directions(unit.groups[0], output.samples // 2, x.shape, seed=seed, round=unit.round, guess=guess)
    z = sent(drawn, x.device)
    scores: dict[str, list[Tensor]] = {name: [] for name in names}
    for part in mirrored(x, z, output.std).split(worker.config.evaluation.images_at_once):
        rows = replace(unit, siblings=len(part))
        beside = None if teacher is None else teacher.expand(len(part), *teacher.shape[1:])
        for name, values in worker.raw_terms(rows, worker.teacher.images(part), beside, names).items():
            scores[name].append(values)
    joined = {name: torch.cat(values) for name, values in scores.items()}
    guessed = guess is not None
    slopes = {name: smoothed_gradient(values, z, output.std, guessed=guessed) for name, values in joined.items()}
    spreads = {
        name: output.std * slopes[name].norm() if guessed else values.std(correction=0)
        for name, values in joined.items()
    }
    return {name: values.mean() for name, values in joined.items()}, slopes, spreads


def _guess(worker: Scorer, x: Tensor, teacher: Tensor | None) -> Tensor | None:
    """Return the way from x [*latent] to the teacher's image [1, C, H, W], if scores are taken along it."""
    if worker.config.output.directions == "white" or teacher is None:
        return None
    return worker.teacher.encode_images(teacher)[0].to(x) - x


def _joined(one: Found, other: Found) -> Found:
    return one[0] | other[0], one[1] | other[1], one[2] | other[2]


def _stacked(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """Stack the values of several groups, by name, as float32."""
    return {name: torch.stack([part[name] for part in parts]).float().cpu().numpy() for name in parts[0]}
