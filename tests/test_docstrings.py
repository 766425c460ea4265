"""Docstrings begin with a whole sentence or a noun phrase, never with a relative clause that has no head."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEADLESS = {"What", "Of", "Where", "Whether", "Those", "That", "Who", "Which", "How", "When", "It", "They"}


@pytest.mark.slow
@pytest.mark.parametrize("room", ["redif_ray", "jobs", "benchmarks", "docs/examples"])
def test_no_docstring_begins_without_a_subject(room: str) -> None:
    found = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = (ast.get_docstring(node) or "").split()[:1]
                if first and first[0] in HEADLESS:
                    found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}")
    assert not found
