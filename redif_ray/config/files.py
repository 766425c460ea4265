"""Reading a configuration from YAML and dotted overrides, and writing it as YAML."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from redif_ray import yaml12
from redif_ray.config.base import ConfigError, UnknownKeyError
from redif_ray.config.overrides import override
from redif_ray.config.renamed import RENAMED
from redif_ray.config.tree import Config
from redif_ray.config.uris import shown
from redif_ray.errors import MOST, brief

UNKNOWN = "extra_forbidden"  # pydantic's name for an unknown key


def descriptions(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, str]:
    """Return the meaning of every dotted key, sections included: its field's description, or its section's docstring.

    `*` stands for the name of a mapping's entry.
    """
    meanings: dict[str, str] = {}
    for name, field in model.model_fields.items():
        section = field.annotation if isinstance(field.annotation, type) else None
        docstring = section.__doc__ if section is not None and issubclass(section, BaseModel) else None
        meanings[f"{prefix}{name}"] = field.description or docstring or ""
        star = "" if isinstance(field.annotation, UnionType) else "*."
        kinds: list[tuple[Any, str]] = [(field.annotation, ""), *((kind, star) for kind in get_args(field.annotation))]
        for kind, star in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                meanings |= descriptions(kind, f"{prefix}{name}.{star}")
    return meanings


def load(path: str | Path | None, overrides: Sequence[str] = (), model: type[BaseModel] = Config) -> Any:
    """Read a YAML file (a path, or the name of a shipped configuration), apply overrides, validate.

    Raises ConfigError.
    """
    tree = {} if path is None else read_yaml(resolve(path))
    for text in overrides:
        override(tree, text, model)
    return validate(tree, model)


def resolve(path: str | Path) -> Path:
    """Return the path of a configuration, a file or the name of a shipped one. Raises ConfigError."""
    package = Path(__file__).parent.parent
    shipped = next(f for f in (package / "configs", package.parent / "configs") if f.exists())  # a wheel, or a checkout
    name = Path(path).name if Path(path).parent == Path("configs") else path
    for candidate in (Path(path), shipped / name, shipped / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    names = sorted(p.name for p in shipped.glob("*.yaml"))
    close = difflib.get_close_matches(Path(path).name, [*names, *(n.removesuffix(".yaml") for n in names)], n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    expected = f"expected a YAML file, or one of the shipped ones: {', '.join(names)}"
    raise ConfigError(f"no configuration {path}{hint}; {expected}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; an empty file is an empty mapping. Raises ConfigError."""
    try:
        if path.stat().st_size > 4 * yaml12.MOST_CHARACTERS:
            raise ConfigError(f"{path} holds more than the {yaml12.MOST_CHARACTERS} characters of a configuration")
        tree = yaml12.load(path.read_text(encoding="utf-8-sig"))
    except (yaml12.YamlError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


def validate(tree: Mapping[str, Any], model: type[BaseModel] = Config) -> Any:
    """Return the tree as a `model`.

    Raises ConfigError with a line for each problem, or its subclass UnknownKeyError if there is an unknown key.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = sorted(error.errors(), key=lambda e: e["type"] != UNKNOWN)
        kind = UnknownKeyError if problems[0]["type"] == UNKNOWN else ConfigError
        raise kind("\n".join(_explain(e, model) for e in problems)) from None


def _explain(error: Any, model: type[BaseModel]) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    name = key if len(key) <= MOST and key.isprintable() and key else brief(key)
    if error["type"] == UNKNOWN:
        if model is Config and key in RENAMED:
            return f"{name}: unknown key; it is now {RENAMED[key]}"
        known = _named(descriptions(model), path)
        alike = 0.3 if "." in key else 0.7  # a word alone is like many others
        near = [k for k in known if k.endswith(f".{key}")] or difflib.get_close_matches(key, known, n=1, cutoff=alike)
        said = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(model.model_fields)}"
        return f"{name}: unknown key; {said}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"{name}: missing; set it in the file or with {key}=..."
    if error["type"] == "model_type":
        below = [k for k in _named(descriptions(model), path) if k.rpartition(".")[0] == key]
        return f"{name}={brief(error['input'])}: expected a section, with keys among {', '.join(below)}"
    return f"{name}={brief(error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _named(keys: Iterable[str], path: Sequence[str]) -> list[str]:
    """Return the keys, each `*` replaced by the name at the same place of `path`."""
    return [
        ".".join(path[i] if part == "*" and i < len(path) else part for i, part in enumerate(key.split(".")))
        for key in keys
    ]


def dump(config: BaseModel) -> str:
    """Return the configuration as YAML that `load` reads back to the same configuration, but for its secrets."""
    return yaml.dump(public(config), Dumper=yaml12.Dumper, sort_keys=False, allow_unicode=True, width=110)


def public(config: BaseModel) -> dict[str, Any]:
    """Return the configuration as a JSON-like tree without secrets, as it may be written and shown."""
    tree: dict[str, Any] = shown(config.model_dump(mode="json"))
    return tree


def explained(config: BaseModel) -> str:
    """Return the YAML of `dump` with the description of each key as a comment above the key."""
    text, meanings = dump(config), descriptions(type(config))
    lines = text.splitlines()
    for key, mark in reversed(list(_keys(yaml12.compose(text), ""))):
        indent = " " * mark.column
        meaning = textwrap.wrap(meanings.get(key, ""), 108 - mark.column)
        lines[mark.line : mark.line] = [f"{indent}# {part}" for part in meaning]
    return "\n".join(lines) + "\n"


def _keys(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield each dotted key below a YAML node with its position; an entry of a mapping has its own name, not `*`."""
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        yield f"{prefix}{name.value}", name.start_mark
        yield from _keys(value, f"{prefix}{name.value}.")
