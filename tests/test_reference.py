"""The pages of docs that are made are those that the code makes now, and every key of them has a meaning."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from redif_ray.config.files import descriptions
from redif_ray.teacher.config import TeacherConfig

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_reference_is_that_of_the_code(generate: ModuleType) -> None:
    stale = [name for name, page in generate.PAGES.items() if (DOCS / name).read_text() != page()]
    assert not stale, "run `make reference`"


@pytest.mark.slow
def test_every_key_of_a_run_is_in_the_reference(generate: ModuleType) -> None:
    page = generate.configuration()
    keys = [key for key in descriptions() if key != "reward.terms.*"]  # any name
    assert not [key for key in keys if f"| `{key}` |" not in page and f"## `{key}`" not in page]
    assert all(
        f"| `{key}` |" in page for key in ("reward.terms.*.weight", "reward.runtime_env.pip", "search.descent.lr")
    )


def test_every_key_of_a_teacher_is_explained_in_a_sentence() -> None:
    assert not [key for key, text in descriptions(TeacherConfig).items() if not text.endswith(".")]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "exclusiveMinimum": 0}, "integer ≥ 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number > 0, ≤ 1"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or `null`"),
        ({"enum": ["a", "b"], "type": "string"}, "`a`, `b`"),
        ({"type": "array", "items": {"type": "integer"}}, "list of integer"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "mapping of number"),
    ],
)
def test_values_in_words(generate: ModuleType, schema: dict[str, object], words: str) -> None:
    assert generate.value(schema) == words
