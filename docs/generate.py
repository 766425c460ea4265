"""Writes the pages that the code and the heads of decisions make: `python docs/generate.py`. A test compares them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.cli
import typer.main
from pydantic import BaseModel

import redif_ray
from redif_ray.config import Config, RuntimeEnv, read_yaml
from redif_ray.config.base import Occasion
from redif_ray.config.changes import may_differ
from redif_ray.config.files import descriptions
from redif_ray.sample import LoadedStudent
from redif_ray.teacher.config import TeacherConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = "<!-- Made by docs/generate.py from the code; do not edit. -->"
MARKS: dict[str, Occasion] = {"R": "resume", "E": "evaluate"}
SHOWN = 3  # recipes named for a key; the others are counted


def configuration() -> str:
    """Return the page of all keys of a run's configuration, and of a teacher's training."""
    recipes = {path.stem: read_yaml(path) for path in sorted((ROOT / "configs").glob("*.yaml"))}
    runs = {name: tree for name, tree in recipes.items() if not name.startswith("teacher_")}
    parts = [
        "# Configuration reference",
        MADE,
        "Every key of a run's configuration. `redif distill CONFIG --print-config` prints the same meanings beside the "
        "values that a recipe has. The meaning begins with what a number counts, or names its unit. **R** marks keys "
        "that may change when a run is resumed, **E** those that may change when it is evaluated again. The last "
        f"column names recipes of [configs](../../configs/smoke.yaml) that set another value, {SHOWN} at most.",
        "A key is set in a YAML file, on the command line (`learner.lr=1e-5`) or from Python (`learner={'lr': 1e-5}`).",
        *_sections(Config, "", runs),
        "## Training a teacher",
        "The keys of [`redif train-teacher`](commands.md#redif-train-teacher).",
        _table(TeacherConfig, "", {name: tree for name, tree in recipes.items() if name not in runs}, marks=False),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(model: type[BaseModel], prefix: str, recipes: Mapping[str, Any]) -> Iterator[str]:
    """Yield the heading and the table of a section, and those of the sections in it."""
    if prefix:
        yield f"## `{prefix.rstrip('.')}`"
        yield inspect.cleandoc(model.__doc__ or "")
    yield _table(model, prefix, recipes)
    for name, inner in _inner(model):
        yield from _sections(inner, f"{prefix}{name}.", recipes)


def _inner(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield each section of a section, `*` for the entries of a mapping."""
    for name, field in model.model_fields.items():
        kinds = [(name, field.annotation), *((f"{name}.*", kind) for kind in getattr(field.annotation, "__args__", ()))]
        for path, kind in kinds:
            if kind is RuntimeEnv:
                yield name, kind
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield path, kind


def _table(model: type[BaseModel], prefix: str, recipes: Mapping[str, Any], *, marks: bool = True) -> str:
    """Return the table of a section's own values."""
    known, types = descriptions(model), model.model_json_schema()["properties"]
    sections = {name for name, _ in _inner(model)}
    rows = ["| key | value | default | meaning | recipes |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name in sections and name != "runtime_env":
            continue
        key = f"{prefix}{name}"
        default = "required" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"
        letters = [f"**{mark}**" for mark, occasion in MARKS.items() if may_differ(key, occasion)]
        meaning = " ".join([known[name], *(letters if marks else [])])
        names = [recipe for recipe, tree in recipes.items() if _sets(tree, key.split("."), field)]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        shown = ", ".join(f"`{recipe}`" for recipe in names[:SHOWN]) + more
        cells = (f"`{key}`", value(types[name]), default, meaning, shown)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _sets(tree: Any, path: list[str], field: Any) -> bool:
    """Tell whether a recipe gives a key a value other than its default."""
    if not path:
        return field.is_required() or _yaml(tree) != _yaml(field.get_default(call_default_factory=True))
    if not isinstance(tree, dict):
        return False
    below = tree.values() if path[0] == "*" else [tree[path[0]]] if path[0] in tree else []
    return any(_sets(inner, path[1:], field) for inner in below)


def value(schema: Mapping[str, Any]) -> str:
    """Return the values that a JSON Schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(value(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        above, least = schema.get("exclusiveMinimum"), schema.get("minimum")
        if above is not None and kind == "integer":
            least, above = above + 1, None
        below, most = schema.get("exclusiveMaximum"), schema.get("maximum")
        bounds = [(">", above), ("≥", least), ("<", below), ("≤", most)]
        words = [f"{sign} {bound:.4g}" for sign, bound in bounds if bound is not None]
        return " ".join(["integer" if kind == "integer" else "number", ", ".join(words)]).strip()
    if kind == "array":
        return f"list of {value(schema.get('items', {}))}"
    if kind == "object":
        return f"mapping of {value(schema['additionalProperties'])}" if "additionalProperties" in schema else "mapping"
    names = {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}
    section = "$ref" in schema and not schema["$ref"].endswith("JsonValue")
    return names.get(str(kind), "section" if section else "any value")


def _yaml(given: Any) -> str:
    """Return a value as it is written in a recipe."""
    if isinstance(given, BaseModel):
        given = given.model_dump(mode="json")
    if isinstance(given, dict):
        return "{" + ", ".join(f"{name}: {_yaml(inner)}" for name, inner in given.items()) + "}"
    if isinstance(given, list | tuple):
        return "[" + ", ".join(map(_yaml, given)) + "]"
    if given is None or isinstance(given, bool):
        return {None: "null", True: "true", False: "false"}[given]
    return f"{given:g}" if isinstance(given, float) else str(given)


def commands() -> str:
    """Return the page of the command line."""
    from redif_ray.cli import app

    command = typer.main.get_group(app)
    context = typer.Context(command, info_name="redif")
    text = typer.cli.get_docs_for_click(obj=command, ctx=context, name="redif", title="Command line")
    head, _, rest = text.partition("\n")
    plain = re.sub(r"\n{3,}", "\n\n", rest).replace("\\[", "[")
    for command_name, one in command.commands.items():  # typer shortens these lines
        line = f"* [`{command_name}`](#redif-{command_name}): {one.get_short_help_str(limit=200)}"
        plain = re.sub(rf"^\* `{command_name}`: .*$", line, plain, count=1, flags=re.MULTILINE)
    return f"{head}\n\n{MADE}\n\n{plain.strip()}\n"


def api() -> str:
    """Return the page of the names of `import redif_ray`."""
    parts = [
        "# Python reference",
        MADE,
        "The names of `import redif_ray`. [From Python](../python.md) shows them at work.",
        "## Functions",
        "`recipe` is a YAML file, the name of a shipped one, a mapping such as the YAML holds, or a `Config`. "
        'The `overrides` are the texts of the command line, such as `"learner.lr=1e-5"`, and the `sections` are the '
        'same as keywords: `learner={"lr": 1e-5}`.',
    ]
    members = {name: getattr(redif_ray, name) for name in redif_ray.__all__} | {"LoadedStudent": LoadedStudent}
    parts += [_described(name, one) for name, one in members.items() if inspect.isfunction(one)]
    parts += ["## Results and errors"]
    parts += ["### `Config`\n\nThe configuration of a run, frozen. Its keys are in the [reference](configuration.md)."]
    for name, one in sorted(members.items()):
        if inspect.isclass(one) and one is not Config:
            parts += [_described(name, one)]
            parts += [_described(f"{name}.{own}", function, 4) for own, function in _methods(one)]
    return "\n\n".join(parts) + "\n"


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class of results defines."""
    if not hasattr(kind, "__dataclass_fields__"):
        return
    for name, member in vars(kind).items():
        described = inspect.isfunction(member) or isinstance(member, property | classmethod)
        if described and not name.startswith("_") and inspect.getdoc(member):
            yield name, member


def _described(name: str, one: Any, level: int = 3) -> str:
    """Return a heading, the signature of a function or a dataclass, and the docstring."""
    text = inspect.getdoc(one) or ""
    parts = [f"{'#' * level} `{name}`"]
    function = one.__func__ if isinstance(one, classmethod) else one
    if inspect.isfunction(function) or hasattr(one, "__dataclass_fields__"):
        parts.append(f"```python\n{_signature(name.rpartition('.')[2], function)}\n```")
    first, _, rest = text.partition("\n\n")
    parts.append(" ".join(first.split()))
    parts += [_notes(block) for block in rest.split("\n\n") if block.strip()]
    return "\n\n".join(parts)


def _signature(name: str, function: Callable[..., Any]) -> str:
    """Return a signature, an argument a line where it is long."""
    signature = inspect.signature(function)
    given = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    arguments = [_argument(one) for one in given]
    named = [i for i, one in enumerate(given) if one.kind is one.KEYWORD_ONLY]
    if named and not any(one.kind is one.VAR_POSITIONAL for one in given):
        arguments.insert(named[0], "*")
    if (count := sum(one.kind is one.POSITIONAL_ONLY for one in given)) > 0:
        arguments.insert(count, "/")
    result = signature.return_annotation
    end = "" if result in (inspect.Signature.empty, "None", None) else f" -> {result}"
    short = f"{name}({', '.join(arguments)}){end}"
    if len(short) <= 100:
        return short
    return f"{name}(\n" + "".join(f"    {one},\n" for one in arguments) + f"){end}"


def _argument(one: inspect.Parameter) -> str:
    """Return a parameter with its annotation, and with `...` for a default that is a function."""
    default = inspect.Parameter.empty if callable(one.default) else one.default
    text = str(one.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty))
    shown = f"{text}: {one.annotation}"
    if one.default is inspect.Parameter.empty:
        return shown
    return f"{shown} = {'...' if default is inspect.Parameter.empty else repr(default)}"


def _notes(block: str) -> str:
    """Return a paragraph of a docstring; each line that begins with names and a colon begins a new line."""
    lines: list[str] = []
    for line in block.splitlines():
        if lines and not re.match(r"[\w, ]+: |Raises ", line):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line.strip())
    return "\n".join(f"- {line}" for line in lines) if len(lines) > 1 else "\n".join(lines)


def decisions() -> str:
    """Return the list of decisions. Raises ValueError for a page without number, title, date and status."""
    rows = ["| | decision | date | status |", "|---:|---|---|---|"]
    for path in sorted((DOCS / "decisions").glob("0*.md")):
        head = re.match(r"# (\d+)\. (.+)\n\nDate: (\d{4}-\d{2}-\d{2})\. Status: (.+)\.\n", path.read_text())
        if head is None or int(head[1]) != int(path.name[:4]):
            raise ValueError(f"{path} does not begin with its number, title, date and status")
        rows.append(f"| {head[1]} | [{head[2]}]({path.name}) | {head[3]} | {head[4]} |")
    why = "Each page has the context of a decision, its reasons and its consequences. A new one takes the next number."
    return "\n\n".join(["# Decisions", MADE, why, "\n".join(rows)]) + "\n"


PAGES = {
    "reference/configuration.md": configuration,
    "reference/commands.md": commands,
    "reference/api.md": api,
    "decisions/index.md": decisions,
}


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
