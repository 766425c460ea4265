"""The documentation: links that lead somewhere, pages that can be reached, and statements that the code can check."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from redif_ray.config import Config, load
from redif_ray.config.files import descriptions
from redif_ray.methods import METHODS
from redif_ray.rewards.base import TERMS
from redif_ray.teacher.config import TeacherConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
FRONT += [ROOT / "benchmarks" / name for name in ("README.md", "emoji/README.md", "scenes/README.md")]
PAGES = [*sorted(DOCS.rglob("*.md")), *FRONT]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"```.*?```", re.DOTALL)
KEYS = descriptions()


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def links(page: Path) -> list[tuple[Path, str]]:
    """The local files that a page links to, each with an anchor or none."""
    found = [target for target in LINK.findall(prose(page)) if "://" not in target and not target.startswith("mailto:")]
    parts = [target.partition("#") for target in found]
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in parts]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges and the site name them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_somewhere(page: Path) -> None:
    broken = [str(path) for path, _ in links(page) if not path.exists()]
    unknown = [f"{path.name}#{a}" for path, a in links(page) if a and path.suffix == ".md" and a not in anchors(path)]
    assert not broken and not unknown


@pytest.mark.parametrize("start", ["README.md", "docs/index.md"])
def test_every_page_can_be_reached(start: str) -> None:
    reached, ahead = set(), [ROOT / start]
    while ahead:
        page = ahead.pop()
        if page not in reached:
            reached.add(page)
            ahead += [path for path, _ in links(page) if path.suffix == ".md"]
    assert not {*DOCS.rglob("*.md")} - reached - {DOCS / "index.md"}


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text())
    named = [page for entry in yaml.safe_load(text)["nav"] for page in ([entry], *getattr(entry, "values", list)())[-1]]
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if not re.match(r"0\d+-", page.name)}
    pages.add("contributing.md")  # made of CONTRIBUTING.md
    assert {*named} == pages and len(named) == len(pages)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the group `docs` of the packages is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert (tmp_path / "site" / "source" / "redif_ray" / "loop.py.txt").exists()
    pages = "".join(page.read_text() for page in (tmp_path / "site").rglob("*.html"))
    fetched = re.findall(r'<script[^>]* src="([^"]+)"|<link[^>]* rel="stylesheet"[^>]* href="([^"]+)"', pages)
    assert fetched and not [address for pair in fetched for address in pair if "//" in address]


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def commands() -> list[tuple[str, str, list[str]]]:
    """The commands with a shipped recipe in the pages: each with its page, its recipe and its overrides."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in re.findall(r"^redif .*$", block.replace("\\\n", " "), re.MULTILINE):
                words = shlex.split(line, comments=True)
                if words[1] in ("distill", "search", "sweep", "doctor", "train-teacher"):
                    recipe = Path(words[2]).stem if len(words) > 2 else ""
                    if (ROOT / "configs" / f"{recipe}.yaml").exists():
                        overrides = [word for word in words[3:] if "=" in word and not word.startswith("--")]
                        found.append((str(page.relative_to(ROOT)), recipe, overrides))
    return found


@pytest.mark.parametrize(("page", "recipe", "overrides"), commands())
def test_a_command_of_the_pages_is_a_configuration(page: str, recipe: str, overrides: list[str]) -> None:
    overrides = [word for word in overrides if not word.endswith("=...")]
    load(recipe, overrides, TeacherConfig if recipe.startswith("teacher_") else Config)


def cells(page: str) -> list[list[str]]:
    """The rows of a page's tables."""
    rows = [line.split(" | ") for line in (DOCS / page).read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip("| ").strip() for cell in row] for row in rows]


def words(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_every_paper_that_the_code_cites_has_its_row_with_file_key_and_recipe() -> None:
    cited = {
        number
        for path in (ROOT / "redif_ray").rglob("*.py")
        for number in re.findall(r"arXiv\s+(\d{4}\.\d{5})", path.read_text())
    }
    page = (DOCS / "papers.md").read_text()
    assert not sorted(number for number in cited if f"arxiv.org/abs/{number}" not in page)
    for row in cells("papers.md"):
        keys = words(row[2]) if len(row) > 2 else []
        recipes = words(row[3]) if len(row) > 3 else []
        assert all(key in KEYS for key in keys), row
        for recipe in recipes:
            tree = yaml.safe_load((ROOT / "configs" / f"{recipe}.yaml").read_text())
            assert not [key for key in keys if not has(tree, key.split("."))], recipe


def has(tree: object, path: list[str]) -> bool:
    return not path or (isinstance(tree, dict) and path[0] in tree and has(tree[path[0]], path[1:]))


def test_every_recipe_has_its_level_of_verification() -> None:
    recipes = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    rows = {name: row[1] for row in cells("verification.md") for name in re.findall(r"configs/(\w+)\.yaml", row[0])}
    assert rows.keys() == recipes and {*rows.values()} <= set("01234")


def test_every_reward_and_every_method_is_explained() -> None:
    terms = {term: row[2] for row in cells("rewards.md") for term in words(row[0]) if len(row) > 3}
    assert {term: answer == "yes" for term, answer in terms.items()} == {n: t.differentiable for n, t in TERMS.items()}
    explained = {row[0].strip("`") for row in cells("methods.md") if len(row) == 4}
    assert explained - {"method"} == {*METHODS}


def test_the_keys_of_the_concepts_exist() -> None:
    assert all(key in KEYS for row in cells("concepts.md") for key in words(row[-1]))


@pytest.mark.slow
def test_each_message_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    texts = {
        node.value
        for path in (ROOT / "redif_ray").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    whole = "\0".join(texts)
    for row in cells("troubleshooting.md"):
        for message in words(row[0]):
            if " " in message:
                missing = [part for part in re.split(r"\.\.\.+", message) if part.strip(" ;:,.()[]?") not in whole]
                assert not missing, message
