"""Configurations and overrides that nobody meant: each ends in success or one clear error, within time and memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from outcomes import ODD, TEXTS, Tally, mutated, of_call, of_command

from redif_ray.config import Config, dump, load
from redif_ray.config.files import descriptions
from redif_ray.job.launch import check
from redif_ray.planning.paths import absolute
from redif_ray.teacher.config import TeacherConfig

pytestmark = pytest.mark.long
RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
KEYS = tuple(key.replace("*", "mse") for key in descriptions())
BITS = (
    *("&a ", "*a", "<<: *a", "!!binary ", "!!python/object:os.system ", "? ", "- ", "[", "]", "{", "}", ": ", "#", "|"),
    *("\t", "\r", "\x00", "\ufeff", "---\n", "...\n", "%YAML 3.0\n", "'", '"', "\\", "\u2028", "\U0001f600", "9" * 500),
    *(
        "[" * 2000,
        "a: &b [*b]\n",
        "x" * 3000,
        "\n" * 50,
        "\n    ",
        "1e999",
        "0x",
        ".nan",
        "~",
        "null",
        "no",
        "http://u:p@",
    ),
)
PLACES = ("run.root", "teacher.model", "tracking.uri", "conditions.source", "student.schedule", "checkpoint.upload")


def used(path: Path | str, overrides: list[str], root: Path) -> None:
    """What commands do with a configuration before they start anything; what is written must be read back."""
    model = TeacherConfig if "teacher_" in str(path) else Config
    config = load(path, overrides, model)
    written = root / ("teacher_again.yaml" if model is TeacherConfig else "again.yaml")
    written.write_text(dump(config))
    assert load(written, (), model) == config
    if isinstance(config, Config):
        check(config, resume=False)
        assert dump(absolute(config))


def a_tree(chance: random.Random, root: Path) -> tuple[object, Callable[[], object]]:
    """A recipe with one to three mutations."""
    recipe = chance.choice(RECIPES)
    tree: Any = yaml.safe_load(recipe.read_text())
    for _ in range(chance.randint(1, 3)):
        tree = mutated(tree, chance)
    path = root / recipe.name
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    return tree, lambda: used(path, [], root)


def a_text(chance: random.Random, root: Path) -> tuple[object, Callable[[], object]]:
    """The text of a recipe with parts cut, doubled, or put in."""
    recipe = chance.choice(RECIPES)
    text = recipe.read_text()
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice((0, 1, 10, 100)))
        part = chance.choice((chance.choice(BITS), "", text[start:end] * 2))
        text = text[:start] + part + text[end:]
    path = root / recipe.name
    path.write_bytes(text.encode()[: chance.choice((-1, 100_000))])
    return text, lambda: used(path, [], root)


def some_overrides(chance: random.Random, most: int = 3) -> list[str]:
    def one() -> str:
        key, value = chance.choice(KEYS), chance.choice((*ODD, *TEXTS))
        if chance.random() < 0.2:
            key = chance.choice((f"{key}.x", key.upper(), f"{key} ", f".{key}", "", "...", "é", key.replace(".", "..")))
        if chance.random() < 0.3:
            key = chance.choice(PLACES)
        text = (
            str(value) if chance.random() < 0.7 else yaml.safe_dump(value, default_flow_style=True).partition("\n")[0]
        )
        return f"{key}={text}" if chance.random() < 0.97 else text.lstrip("-") or "x"

    return [one() for _ in range(chance.randint(1, most))]


def an_override(chance: random.Random, root: Path) -> tuple[object, Callable[[], object]]:
    recipe, overrides = chance.choice(RECIPES), some_overrides(chance)
    return [recipe.name, *overrides], lambda: used(recipe, overrides, root)


@pytest.mark.parametrize(("make", "count"), [(a_tree, 900), (a_text, 500), (an_override, 900)], ids=lambda v: str(v))
def test_a_configuration_that_nobody_meant_ends_clearly(make: Any, count: int, tmp_path: Path) -> None:
    tally = Tally(make.__name__)
    for seed in range(count):
        given, call = make(random.Random(seed), tmp_path)
        tally.add(f"seed {seed}: {given}", of_call(call), most_lines=8)
    tally.check()


def test_a_command_that_nobody_meant_ends_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tally = Tally("commands")
    for seed in range(120):
        chance = random.Random(seed)
        overrides = some_overrides(chance, 2)
        words = chance.choice(
            (
                ["doctor", "smoke", *overrides],
                ["distill", "smoke", *overrides, "--print-config"],
                ["search", "fashion_mnist", *overrides, "--print-config"],
                ["sweep", "smoke", *overrides, "--print-config"],
                ["train-teacher", "teacher_fashion_mnist", *overrides, "--print-config"],
                [
                    "distill",
                    chance.choice(("no", "", "/", "/dev/null", str(tmp_path), "\U0001f600", "a" * 5000)),
                    *overrides,
                ],
                ["evaluate", str(tmp_path), *overrides],
                ["status", chance.choice(("", "/", "\x00", "a" * 5000, str(tmp_path)))],
            )
        )
        tally.add(f"seed {seed}: {words}", of_command(*words), most_lines=8)
    tally.check()
    assert [path.name for path in tmp_path.iterdir()] == []
