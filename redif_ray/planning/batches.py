"""The choice of `learner.microbatch`, `evaluation.batch` and activation checkpointing where a run does not give them.

The numbers are the largest powers of two for which all that is counted in memory fits, wherever the cluster may place
the workers. They change the last bits of results, so a run keeps those that it started with. They end at MOST, beyond
which a device gains little, so that machines with enough memory choose alike. Activations are computed again, for a
third more time, only where fewer than `FEWEST` states fit without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

from redif_ray.config import Config
from redif_ray.config.training import UNCHOSEN
from redif_ray.models.locate import ModelError
from redif_ray.planning.gpu_memory import tightest_gpu_mb
from redif_ray.planning.host_memory import tightest_node_mb
from redif_ray.planning.memory import Footprint, Footprints, footprints
from redif_ray.planning.nodes import ROLES, Node, section

MOST = 32  # states or images at once
SIZES = tuple(2**power for power in range(MOST.bit_length()))
FEWEST = 2
RECOMPUTE = "learner.activation_checkpointing"
MARGIN = 0.9  # of a memory that may be filled by what is counted


def lacks(config: Config, roles: Sequence[str] = ROLES) -> list[str]:
    """Return the keys that have no value yet, of those that workers of `roles` read.

    For a run on CPUs that gives both numbers nothing is counted, and activations are not computed again.
    """
    learner, keys = config.learner, []
    if "learner" in roles and learner.microbatch is None:
        keys.append("learner.microbatch")
    if config.evaluation.batch is None:
        keys.append("evaluation.batch")
    if "learner" in roles and learner.activation_checkpointing is None and (learner.gpus or keys):
        keys.append(RECOMPUTE)
    return keys


def filled(config: Config, states: int | None, images: int | None, recompute: bool | None = None) -> Config:
    """Return the configuration with `learner.microbatch` and `evaluation.batch` where it has none of its own.

    recompute: its activation checkpointing, where it says nothing of that.
    """
    learner, evaluation = config.learner, config.evaluation
    if learner.microbatch is None:
        learner = learner.model_copy(update={"microbatch": states})
    if learner.activation_checkpointing is None:
        learner = learner.model_copy(update={"activation_checkpointing": recompute})
    if evaluation.batch is None:
        evaluation = evaluation.model_copy(update={"batch": images})
    return config.model_copy(update={"learner": learner, "evaluation": evaluation})


def chosen(config: Config, nodes: Sequence[Node], roles: Sequence[str] = ROLES) -> tuple[Config, str]:
    """Return the configuration with all three values, and a sentence that says which were chosen and why.

    nodes: the machines that the run may be placed on. roles: those whose workers the run has. Without a value to
    choose, the sentence is empty.
    """
    keys = lacks(config, roles)
    if not keys:
        return config, ""
    learns = "learner" in roles
    unseen = [role for role in roles if section(config, role).gpus and not _seen(config, role, nodes)]
    if unseen:
        why = f"no GPU is known that workers of {' and '.join(unseen)} may be placed on, so this is a small number"
        return _told(filled(config, UNCHOSEN if learns else None, UNCHOSEN, "learner" in unseen), keys, why)
    counted, states, images = _fitting(config, roles, nodes)
    recompute = False
    if RECOMPUTE in keys and states < FEWEST:
        with suppress(ModelError):  # of a network that cannot
            counted, states, images = _fitting(filled(config, None, None, True), roles, nodes)
            recompute = True
    what = "what fits" if keys == [RECOMPUTE] else f"the largest power of two up to {MOST} that fits"
    why = f"{what} in {_memory(config, counted.at(states, images), nodes)}"
    if short := _short(config, counted.at(states, images), nodes):
        why = f"the least, and yet there may be too little {short}; see `redif doctor`"
    return _told(filled(config, states if learns else None, images, recompute), keys, why)


def _fitting(config: Config, roles: Sequence[str], nodes: Sequence[Node]) -> tuple[Counted, int, int]:
    """Return the footprints for any two numbers, and the largest number of states and of images that fit."""
    counted = Counted(config, roles)

    def fits(states: int, images: int) -> bool:
        return not _short(config, counted.at(states, images), nodes)

    both = _largest(lambda n: fits(n, n))
    states = _largest(lambda n: fits(n, both))
    return counted, states, _largest(lambda n: fits(states, n))


class Counted:
    """The footprints of a run's workers for any two numbers, counted for MOST and, where that does not fit, for 1.

    The peak of a call is the largest of sums that grow linearly, so between the two it is at most on the line. A count
    takes a core some 7 s for Stable Diffusion XL, so there are no more of them.
    """

    def __init__(self, config: Config, roles: Sequence[str]) -> None:
        self.rows = config.rollout.unit_groups * config.rollout.siblings  # of a work unit, which a run plays anyway
        self.config, self.roles = config, roles
        self.most = footprints(filled(config, MOST, MOST))

    @cached_property
    def least(self) -> Footprints:
        return footprints(filled(self.config, 1, 1))

    def at(self, states: int, images: int) -> Footprints:
        if states == images == MOST:
            return replace(self.most, roles={role: self.most.roles[role] for role in self.roles})
        rows, most = max(self.rows, images), max(self.rows, MOST)
        parts = {"learner": (states - 1) / (MOST - 1)}
        others = (rows - self.rows) / (most - self.rows) if most > self.rows else 0.0
        between = {
            role: _between(self.least.roles[role], self.most.roles[role], parts.get(role, others))
            for role in self.roles
        }
        return replace(self.least, roles=between)


def _between(least: Footprint, most: Footprint, part: float) -> Footprint:
    return replace(least, activations=least.activations + part * (most.activations - least.activations))


def _seen(config: Config, role: str, nodes: Sequence[Node]) -> bool:
    return any(node.gpus and node.takes(section(config, role)) for node in nodes)


def _largest(fits: Callable[[int], bool]) -> int:
    """Return the largest of SIZES that fits, or the least one."""
    return next((n for n in reversed(SIZES) if fits(n)), SIZES[0])


def _short(config: Config, found: Footprints, nodes: Sequence[Node]) -> str:
    """Return the name of the memory of which there is too little, an empty one for none."""
    names = ("memory of a GPU", "main memory")
    pairs = tightest_gpu_mb(config, found.roles, nodes), tightest_node_mb(config, found, nodes)
    return next((n for n, (need, has) in zip(names, pairs, strict=True) if has and need > MARGIN * has), "")


def _memory(config: Config, found: Footprints, nodes: Sequence[Node]) -> str:
    """Return the sizes of the tightest memories, in words."""
    gpu, main = tightest_gpu_mb(config, found.roles, nodes)[1], tightest_node_mb(config, found, nodes)[1]
    sizes = [f"a GPU of {gpu:,.0f} MB"] if gpu else []
    return " and ".join([*sizes, f"{main:,.0f} MB of main memory"]) + f", of which {MARGIN:.0%} may be filled"


def _told(config: Config, keys: Sequence[str], why: str) -> tuple[Config, str]:
    values: dict[str, object] = {
        "learner.microbatch": config.learner.microbatch,
        "evaluation.batch": config.evaluation.batch,
    }
    if config.learner.activation_checkpointing or keys == [RECOMPUTE]:
        values[RECOMPUTE] = str(bool(config.learner.activation_checkpointing)).lower()
    return config, f"{' and '.join(f'{key}={values[key]}' for key in keys if key in values)}: {why}"
