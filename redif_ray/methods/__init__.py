"""The methods, one in each file: the rollouts, the scores asked of reward workers, and the update.

A method is the `Phase` that follows the warm start; `sfd` is the warm start alone. `METHODS` lists the built-in ones;
`method=path/to/file.py:MyPhase` or `method=package.module:MyPhase` selects a phase of your own.
"""

from __future__ import annotations

from collections.abc import Mapping

from redif_ray.config import Config, ConfigError
from redif_ray.methods.consistency import Consistency
from redif_ray.methods.contrast import Contrast
from redif_ray.methods.distribution_matching import DistributionMatching
from redif_ray.methods.draft import Draft
from redif_ray.methods.output import Output
from redif_ray.methods.phase import Calls, Companion, Deploy, Phase, Prices, Scoring
from redif_ray.methods.progressive import Progressive
from redif_ray.methods.redif import Policy
from redif_ray.methods.sfd import WarmStart
from redif_ray.methods.straight import Straight

__all__ = ["METHODS", "Calls", "Companion", "Deploy", "Phase", "Prices", "Scoring", "phases_by_name", "phases_of"]

METHODS: Mapping[str, type[Phase] | None] = {
    "redif": Policy,
    "output": Output,
    "contrast": Contrast,
    "sfd": None,
    "draft": Draft,
    "straight": Straight,
    "distribution_matching": DistributionMatching,
    "consistency": Consistency,
    "progressive": Progressive,
}


def phases_of(config: Config) -> tuple[Phase, ...]:
    """Return the warm start and the method's own phase, except a phase without rounds. Raises ConfigError."""
    warm = WarmStart(config)
    own = METHODS[config.method] if config.method in METHODS else _of_user(config.method)
    after = () if own is None else (own(config, warm.rounds, warm.rounds * warm.groups),)
    return tuple(phase for phase in (warm, *after) if phase.rounds)


def phases_by_name(config: Config) -> dict[str, Phase]:
    """Return every phase that a work unit may belong to, deployment included, by its name."""
    return {phase.name: phase for phase in (*phases_of(config), Deploy(config))}


def _of_user(method: str) -> type[Phase]:
    from redif_ray.registry import imported
    from redif_ray.user_code.errors import UserCodeError

    try:
        found = imported(method)
    except UserCodeError as error:
        raise ConfigError(f"method={method}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Phase)):
        raise ConfigError(f"method={method}: found {found!r}; expected a class derived from redif_ray.methods.Phase")
    return found
