"""Dotted overrides, such as learner.lr=1e-5: the key says whether its value is a text or YAML."""

from __future__ import annotations

from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from redif_ray import yaml12
from redif_ray.config.base import ConfigError
from redif_ray.config.tree import Config
from redif_ray.errors import brief


def override(tree: dict[str, Any], text: str, model: type[BaseModel] = Config) -> None:
    """Set the value of an override in a tree for `model`, in place. Raises ConfigError."""
    assign(tree, *parse_override(text, model))


def parse_override(text: str, model: type[BaseModel] = Config) -> tuple[list[str], Any]:
    """Parse `a.b=3` into (["a", "b"], 3). Raises ConfigError.

    A key that takes a text gets all that follows the first `=`, as it is; nothing, and null where it may be unset, are
    None. Any other key gets a value of YAML: in brackets, braces or quotes, or a single number, truth value or text.
    """
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"override {brief(text)}: expected key=value, such as learner.lr=1e-5")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"override {key[:200]!a}: the text is no UTF-8; rename the file, or type it again") from None
    path, kinds = _place(key.split("."), model)
    if value == "" or (value == "null" and type(None) in kinds):
        return path, None
    if kinds and all(kind is type(None) or _is_text(kind) for kind in kinds):
        return path, value
    try:
        return path, yaml12.load(value) if value.lstrip().startswith(("[", "{", '"', "'")) else yaml12.scalar(value)
    except yaml12.YamlError as error:
        problem = str(error).removeprefix("line 1: ")
        raise ConfigError(f"override {key}: the value is not valid YAML ({problem}); quote it") from None


def assign(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set the value of a dotted key in a tree, in place. Raises ConfigError for a key that lies below a value."""
    node = tree
    for i, part in enumerate(path[:-1]):
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            above = ".".join(path[: i + 1])
            raise ConfigError(f"override {'.'.join(path)}: {above}={brief(child)} is a value and has no keys below it")
        node = child
    node[path[-1]] = value


def _place(parts: list[str], model: type[BaseModel]) -> tuple[list[str], tuple[Any, ...]]:
    """Return the path of a dotted key and the types of its value; no types where the key is not known.

    The name of an entry may hold dots where nothing lies below an entry, as in rollout.labels.ray.io/zone.
    """
    kinds: tuple[Any, ...] = (model,)
    for i, part in enumerate(parts):
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if section is not None:
            if part not in section.model_fields:
                return parts, ()
            kinds = _alternatives(section.model_fields[part].annotation)
            continue
        entries = next((get_args(kind)[1] for kind in kinds if get_origin(kind) is dict), None)
        if entries is None:
            return parts, ()
        kinds = _alternatives(entries)
        if all(kind in (str, float, type(None)) for kind in kinds):
            return [*parts[:i], ".".join(parts[i:])], kinds
    return parts, kinds


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the types that a union stands for, without their constraints; of another type, the type alone."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _alternatives(part))
    return (annotation,)


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in get_args(kind))
    return isinstance(kind, type) and issubclass(kind, str)
