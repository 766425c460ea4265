"""Ways to divide several GPUs among the roles of a run, by counted memory and counted work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rich.markup import escape
from rich.table import Table

from redif_ray.config import Config, ConfigError, override, validate
from redif_ray.data.conditions import Conditions
from redif_ray.evaluation.compute import decode_flops, prediction_flops
from redif_ray.models.registry import teacher_outline
from redif_ray.planning.batches import MARGIN
from redif_ray.planning.calls import network_calls
from redif_ray.planning.cost import GPU_FLOPS
from redif_ray.planning.gpu_memory import fullest_gpu_mb
from redif_ray.planning.memory import Footprint, workers
from redif_ray.planning.nodes import ROLES, Node, total
from redif_ray.planning.rounds import RoundPlan

Seconds = Mapping[str, float]  # of the work of a mean round on one GPU, by role


@dataclass(frozen=True, slots=True)
class Way:
    """A way to use the GPUs.

    seconds: of a mean round; the time of weights that move is not in it. settings: overrides of the configuration.
    memory_mb: of the fullest GPU. refused: the reason why the configuration cannot have these settings, or an empty
    text.
    """

    name: str
    seconds: float
    settings: tuple[str, ...]
    memory_mb: float = math.inf
    refused: str = ""


def gpus(config: Config, nodes: Sequence[Node]) -> int:
    """Return the number of GPUs that the nodes have, or that the roles ask for where the nodes have none."""
    there = total(nodes).get("GPU", 0.0)
    return int(there or math.ceil(sum(count * share for count, share in workers(config).values())))


def work(config: Config) -> Seconds:
    """Return the seconds of a mean round, at the FLOP/s of a GPU that estimates assume."""
    teacher = teacher_outline(config.teacher, dtype=getattr(torch, config.networks.precision))
    plan = RoundPlan(config, Conditions((None,), (None,)))
    flops = prediction_flops(teacher)
    parts = network_calls(config, teacher, plan, decode_flops(teacher) / flops)
    found = dict.fromkeys(ROLES, 0.0)
    for phase in plan.phases:
        for part in (phase.title, f"{phase.title}, update"):
            for role, calls in parts[part].items():
                found[role] += calls * flops / GPU_FLOPS[config.networks.precision] / plan.rounds
    return found


def ways(config: Config, roles: Mapping[str, Footprint], seconds: Seconds, number: int) -> list[Way]:
    """Return the ways to use `number` GPUs, at least 2, the fastest first.

    roles: memory of a worker of each role. A round has as many groups as GPUs at least, and a multiple of them.
    """
    groups = -(-config.rollout.groups // number) * number
    beside = (*_workers(number, number, number, (0.2, 0.2, 0.6)), *_units(config, groups, number))
    all_busy = groups / config.rollout.groups * sum(seconds.values()) / number
    found = [
        Way("shared", all_busy, beside),
        Way("shared in turns", all_busy, ("pipeline.colocate=true", *beside)),
        *([_apart(config, seconds, number)] if number >= len(ROLES) else []),
    ]
    return [_checked(config, way, roles) for way in found]


def _checked(config: Config, way: Way, roles: Mapping[str, Footprint]) -> Way:
    """Return a way with its memory, or with the reason why the configuration refuses it."""
    tree = config.model_dump()
    for text in way.settings:
        override(tree, text)
    try:
        divided: Config = validate(tree)
    except ConfigError as error:
        return replace(way, refused=str(error))
    return replace(way, memory_mb=fullest_gpu_mb(divided, roles))


def _apart(config: Config, seconds: Seconds, number: int) -> Way:
    """Return the division into GPUs of one role each whose rounds are the shortest."""

    def length(counts: tuple[int, int, int]) -> float:
        each = [seconds[role] / count for role, count in zip(ROLES, counts, strict=True)]
        return max(each) if config.pipeline.staleness else max(each[:2]) + each[2]

    best = min(_divisions(number, config.rollout.groups), key=length)
    units = _units(config, config.rollout.groups, max(best))
    return Way("apart", length(best), (*_workers(*best, (1, 1, 1)), *units))


def _workers(rollout: int, reward: int, ranks: int, gpus: tuple[float, float, float]) -> tuple[str, ...]:
    """Return the settings of numbers of workers and of the GPUs of each."""
    names = ("rollout.max_workers", "reward.max_workers", "learner.workers")
    found = zip(names, (rollout, reward, ranks), ROLES, gpus, strict=True)
    return tuple(text for name, count, role, part in found for text in (f"{name}={count}", f"{role}.gpus={part:g}"))


def _units(config: Config, groups: int, number: int) -> tuple[str, ...]:
    """Return the settings that give `number` workers of a role work units of `groups` groups each round."""
    most = min(config.rollout.unit_groups, max(1, groups // number))
    unit = next(size for size in range(most, 0, -1) if groups % size == 0)
    given = {"groups": (config.rollout.groups, groups), "unit_groups": (config.rollout.unit_groups, unit)}
    return tuple(f"rollout.{key}={new}" for key, (old, new) in given.items() if new != old)


def _divisions(number: int, groups: int) -> Iterator[tuple[int, int, int]]:
    """Yield numbers of workers of each role that are `number` together; ranks divide the groups of a round."""
    for ranks in range(1, number - 1):
        if groups % ranks == 0:
            yield from ((rollout, number - ranks - rollout, ranks) for rollout in range(1, number - ranks))


def table(found: Sequence[Way], number: int, memory_mb: float | None) -> Table:
    """Return the ways as a table, and which is the first that fits. memory_mb: of the smallest GPU; None: unknown."""
    view = Table(title=f"on {number} GPUs", title_justify="left", box=None, padding=(0, 1))
    for column in ("roles", "MB of a GPU", "seconds a round", "set"):
        view.add_column(column, justify="left" if column in ("roles", "set") else "right")
    fits = next((way for way in found if memory_mb and way.memory_mb <= MARGIN * memory_mb), None)
    for way in found:
        name = f"[bold]{way.name}, proposed[/]" if way is fits else way.name
        if way.refused:
            view.add_row(name, "", "", escape(f"not with this configuration: {way.refused}"))
        else:
            view.add_row(name, f"{way.memory_mb:,.0f}", f"{way.seconds:,.1f}", escape(" ".join(way.settings)))
    return view
