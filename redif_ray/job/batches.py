"""The numbers of `planning.batches` for a command that starts, or goes on with those that it started with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from redif_ray.cluster.nodes import nodes
from redif_ray.config import Config, ConfigError
from redif_ray.config.conflicts import unlike
from redif_ray.planning.batches import chosen, filled, lacks
from redif_ray.planning.nodes import ROLES
from redif_ray.runs.folder import stored_config


def with_batches(
    config: Config, console: Console, *, resume: bool = False, roles: Sequence[str] = ROLES, runs: int = 1
) -> Config:
    """Return the configuration with what `planning.batches` chooses, and print which numbers these are.

    What is resumed keeps the numbers in its folder. roles: those whose workers there are. runs: runs at once that share
    the main memory of a node. Raises ConfigError where the cluster cannot be joined, and for too small a batch.
    """
    if not lacks(config, roles):
        return config
    own = _with_batches(config, console, resume, roles, runs)
    for conflict in unlike(own.evaluation):
        raise ConfigError(conflict)
    return own


def _with_batches(config: Config, console: Console, resume: bool, roles: Sequence[str], runs: int) -> Config:
    folder = Path(config.run.root).resolve() / config.run.name
    if resume and (folder / "config.yaml").exists():
        stored = stored_config(folder)
        learner, evaluation = stored.learner, stored.evaluation
        return filled(config, learner.microbatch, evaluation.batch, learner.activation_checkpointing)
    there = [replace(node, memory=node.memory / runs) for node in nodes(config)]
    own, why = chosen(config, there, roles)
    console.print(why, highlight=False, soft_wrap=True)
    return own
