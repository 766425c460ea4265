"""An installation brings in the versions of constraints.txt, and in continuous integration files of known hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+?)(?: \\)?$", re.MULTILINE)


def pins(file: Path) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in PIN.findall(file.read_text())}


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    return pins(CHECKOUT / "constraints.txt")


def test_the_lock_holds_the_versions_of_the_constraints_with_hashes(constraints: dict[str, str]) -> None:
    lock = CHECKOUT / ".ci" / "requirements.lock"
    assert pins(lock) == constraints, "run .ci/lock"
    for block in re.split(r"\n(?=\S)", lock.read_text()):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), block


def declared() -> list[Requirement]:
    extras = [names for extra, names in PROJECT["project"]["optional-dependencies"].items() if extra != "gpu"]
    return [Requirement(text) for names in [PROJECT["project"]["dependencies"], *extras] for text in names]


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_a_declared_package_is_pinned_within_its_range(requirement: Requirement, constraints: dict[str, str]) -> None:
    assert requirement.specifier.contains(constraints[canonicalize_name(requirement.name)])


def test_the_build_backend_is_the_pinned_one(constraints: dict[str, str]) -> None:
    (backend,) = map(Requirement, PROJECT["build-system"]["requires"])
    assert str(backend.specifier) == f"=={constraints[backend.name]}"


def test_the_workflow_of_a_public_host_runs_what_runs_elsewhere_with_pinned_actions() -> None:
    file = CHECKOUT / ".github" / "workflows" / "ci.yml"
    workflow = yaml.safe_load(file.read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert workflow["permissions"] == {"contents": "read"}
    actions = re.findall(r"uses: (.+)", file.read_text())
    assert actions and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action) for action in actions)
