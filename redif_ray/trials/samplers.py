"""The proposals of samplers, as a pure function of the known trials, so that a search is repeated and resumed exactly.

Optuna keeps the state of its samplers in objects; so each proposal makes a new study of the known trials, with a
sampler that is seeded by the proposal's number. CMA-ES (Hansen, arXiv 1604.00772) is replayed generation by generation.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import optuna
from cmaes import CMA
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.trials.space import Choice, Params, Range, Space

Seen = Sequence[tuple[Params, float]]  # points of a space, each with its value; smaller is better
RANDOM_FIRST = 8  # random trials before a sampler models the values
SPREAD = 0.25  # initial standard deviation of CMA-ES, as a fraction of a range


def propose(
    sampler: str, space: Space, seen: Seen, *, seed: int, number: int, index: int, budget: int, noisy: bool = False
) -> Params:
    """Return a point of `space`.

    sampler: grid, random, tpe, gp or cmaes; seen: the known points; number: unique among the proposals of this seed;
    index: number of the proposal among the `budget` proposals of its stage, from 0; noisy: the values have noise, as
    those of training runs with other seeds have, which gp then models.
    """
    if sampler == "grid":
        return _grid(space, seed, index, budget)
    own = int(noise.bits(1, Stream.PROPOSAL, seed=seed, group=number)[0] >> np.uint64(33))
    if sampler == "cmaes" and (ranges := {k: v for k, v in space.items() if isinstance(v, Range)}):
        # CMA-ES samples ranges only and needs generations of independent points, so choices come from TPE
        chosen = _optuna("tpe", {k: v for k, v in space.items() if k not in ranges}, seen, own, noisy)
        near = [(p, v) for p, v in seen if all(p[k] == c for k, c in chosen.items())]
        return {**chosen, **_evolve(ranges, near, own)}
    return _optuna(sampler, space, seen, own, noisy)


def _optuna(sampler: str, space: Space, seen: Seen, seed: int, noisy: bool) -> Params:
    if not space:
        return {}
    distributions = {name: _distribution(part) for name, part in space.items()}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=_sampler(sampler, seed, noisy))
        for params, value in seen:
            inside = {name: params[name] for name in space}
            study.add_trial(optuna.create_trial(params=inside, distributions=distributions, value=value))
        return dict(study.ask(distributions).params)


def _distribution(part: Range | Choice) -> BaseDistribution:
    if isinstance(part, Choice):
        return CategoricalDistribution(part.options)
    if part.whole:
        return IntDistribution(int(part.low), int(part.high), log=part.log)
    return FloatDistribution(part.low, part.high, log=part.log)


def _sampler(name: str, seed: int, noisy: bool) -> BaseSampler:
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "gp":
        return GPSampler(seed=seed, n_startup_trials=RANDOM_FIRST, deterministic_objective=not noisy)
    return TPESampler(seed=seed, n_startup_trials=RANDOM_FIRST, multivariate=True)


def _evolve(ranges: dict[str, Range], seen: Seen, seed: int) -> Params:
    """Return a point from CMA-ES, which is given the known points generation by generation, in the unit cube."""
    points = [(np.array([r.place(p[k]) for k, r in ranges.items()]), v) for p, v in seen]
    start = points[0][0] if points else np.full(len(ranges), 0.5)
    if len(ranges) == 1:  # CMA-ES needs two dimensions
        return _optuna("tpe", dict(ranges), seen, seed, True)
    bounds = np.array([[0.0, 1.0]] * len(ranges))
    search = CMA(np.clip(start, 0.01, 0.99), SPREAD, bounds=bounds, seed=seed)
    size = search.population_size
    for i in range(0, len(points) - size + 1, size):
        search.tell([(np.clip(x, 0, 1), v) for x, v in points[i : i + size]])
    return {name: r.at(place) for (name, r), place in zip(ranges.items(), search.ask().tolist(), strict=True)}


def _grid(space: Space, seed: int, index: int, budget: int) -> Params:
    """Return cell `index`, in a shuffled order, of a grid with about `budget` cells."""
    choices = int(np.prod([len(part.options) for part in space.values() if isinstance(part, Choice)]))
    numbers = sum(isinstance(part, Range) for part in space.values())
    each = max(2, int((budget / choices) ** (1 / max(1, numbers)) + 1e-9))
    axes = [
        list(part.options)
        if isinstance(part, Choice)
        else list(dict.fromkeys(part.at(place) for place in np.linspace(0, 1, each)))
        for part in space.values()
    ]
    cells = list(itertools.islice(itertools.product(*axes), 1 << 16))
    order = noise.permutation(len(cells), Stream.PROPOSAL, seed=seed)
    return dict(zip(space, cells[int(order[index % len(cells)])], strict=True))
