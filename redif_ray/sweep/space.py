"""The space of a sweep: read from `sweep.space` and checked against the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from redif_ray import yaml12
from redif_ray.config import Config, ConfigError, assign, validate
from redif_ray.masking import masked_uris
from redif_ray.planning.nodes import share_cards
from redif_ray.trials.space import Choice, Range, Space

KINDS = {
    "uniform": "uniform(low, high)",
    "loguniform": "loguniform(low, high), both above 0",
    "integer": "integer(low, high), both included",
    "choice": "choice(a, b, ...)",
}
FORBIDDEN = {
    "run": "the sweep sets the names and seeds of its runs; sweep.repeats runs other seeds",
    "ray": "this key changes no result",
    "tracking": "this key changes no result",
    "checkpoint": "this key changes no result",
    "sweep": "a sweep cannot vary its own settings",
    "search": "runs do not use this key; `redif search` does",
    "validation": "trials would be judged differently",
    "evaluation": "trials would be judged differently",
}


def read_space(config: Config) -> Space:
    """Return the space of `sweep.space`. Raises ConfigError where a key does not take a bound or an option."""
    if not config.sweep.space:
        raise ConfigError(
            "sweep.space is empty; name the keys to vary, such as sweep.space.learner.lr='loguniform(1e-6, 1e-4)'"
        )
    space = {key: _part(key, text) for key, text in config.sweep.space.items()}
    for key, part in space.items():
        if (why := FORBIDDEN.get(key.partition(".")[0])) is not None:
            raise ConfigError(f"sweep.space.{key}: {why}")
        for value in part.options if isinstance(part, Choice) else (part.at(0), part.at(1)):
            if masked_uris(str(value)) != str(value):
                raise ConfigError(f"sweep.space.{key}: a setting is written to files, and this one holds a secret")
            try:
                configured(config, {key: value})
            except ConfigError as error:
                raise ConfigError(f"sweep.space.{key}: {error}") from None
    _check_metric(config, space)
    if share_cards(config) and config.learner.workers > 1:
        raise ConfigError(
            f"learner.workers={config.learner.workers} with learner.gpus={config.learner.gpus:g}: a sweep cannot place "
            "ranks and workers on shared GPUs; expected learner.workers=1, or learner.gpus=1 without pipeline.colocate"
        )
    return space


def configured(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return the configuration with the values of `settings` at their dotted keys. Raises ConfigError."""
    tree = config.model_dump()
    for key, value in settings.items():
        assign(tree, key.split("."), value)
    changed: Config = validate(tree)
    return changed


def current(config: Config, space: Space) -> dict[str, Any]:
    """Return the values of a configuration at the keys of a space, None for a key that the configuration lacks."""
    values = {}
    for key in space:
        node: Any = config.model_dump()
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        values[key] = node
    return values


def _part(key: str, spec: Any) -> Range | Choice:
    """Return the part of the space that `spec` names: a text such as loguniform(1e-6, 1e-4), or a list of options."""
    if isinstance(spec, list | tuple):
        return _choice(key, list(spec))
    match = re.fullmatch(r"\s*(\w+)\((.*)\)\s*", spec) if isinstance(spec, str) else None
    try:
        kind, values = (match[1], yaml12.load(f"[{match[2]}]")) if match else ("", [])
    except yaml12.YamlError as error:
        raise ConfigError(f"sweep.space.{key}={spec!r}: not valid YAML ({error})") from None
    if kind == "choice":
        return _choice(key, values)
    numbers = len(values) == 2 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if kind not in KINDS or not numbers:
        expected = KINDS.get(kind) or ", ".join(KINDS.values())
        raise ConfigError(f"sweep.space.{key}={spec!r}: expected {expected}")
    low, high = values
    whole = kind == "integer"
    if not low < high or (kind == "loguniform" and low <= 0) or (whole and (low % 1 or high % 1)):
        raise ConfigError(f"sweep.space.{key}={spec!r}: expected {KINDS[kind]}, with low below high")
    return Range(low, high, log=kind == "loguniform", whole=whole)


def _choice(key: str, options: list[Any]) -> Choice:
    if len(options) < 2 or not all(isinstance(o, str | int | float | bool) for o in options):
        raise ConfigError(
            f"sweep.space.{key}={options!r}: expected at least two options, each a text, a number or a boolean"
        )
    return Choice(tuple(options))


def _check_metric(config: Config, space: Space) -> None:
    """Raise ConfigError where `sweep.metric` does not exist, or where trials would differ in what it measures."""
    metric, terms = config.sweep.metric, config.reward.fixed
    metrics = ["validation/reward", "validation/recall", *(f"validation/{name}" for name in terms)]
    if metric not in metrics:
        raise ConfigError(f"sweep.metric={metric}: expected one of {', '.join(metrics)}")
    if metric != "validation/reward":
        return
    normalised = any(term.normalise == "std" for term in terms.values())
    for key in space:
        if key.startswith("reward.") or (normalised and key.startswith(("student.", "teacher."))):
            raise ConfigError(
                f"sweep.space.{key} changes what validation/reward measures, so it cannot compare trials; set "
                f"sweep.metric to one of {', '.join(metrics[1:])}"
            )
