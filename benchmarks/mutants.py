"""Show which faults the tests catch: the core gets one small fault after another, and the tests that cover it run.

    python benchmarks/mutants.py [--seed 0] [--count 30] [--tree PATH] [--only N]

The faults (`mutations.py`) are drawn from this checkout once, as many from each of four parts, and kept in
`results/mutants.json` with the outcomes, one for each tree; `results/mutants.md` is the table of these. Another tree,
say an older commit whose files lie elsewhere, gets the same faults, found by function and source. A fault counts as
caught by the first test that fails, or hangs; tests with a Ray cluster or a GPU don't take part. An outcome that is
kept is not sought again unless asked for by its number.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import cache
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from mutations import Site, changed, sites

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "mutants.json"
NOW = "now"  # name of this checkout's outcomes; others have their commit's
PARTS = {  # each: the files; the tests of the part; others that use it. What a tree lacks is left out
    "diffusion": ("redif_ray/diffusion/*.py", ["diffusion"], ["learning", "baselines", "search"]),
    "learning": (
        "redif_ray/learning/*.py",
        ["learning"],
        ["learner", "baselines", "job/test_choices.py", "pipeline/test_choices.py", "pipeline/test_learned.py"],
    ),
    "coordinator": (
        "redif_ray/coordinator/*.py",
        ["coordinator", "pipeline/test_coordinator.py", "pipeline/test_pool.py"],
        ["job", "pipeline"],
    ),
    "checkpoint": (
        "redif_ray/checkpoint.py",
        ["test_checkpoint.py"],
        ["runs", "weights", "learner", "models", "job", "pipeline"],
    ),
}
LIMITS = {"not slow": 300, "slow": 1200}  # seconds of one test, which may share the machine with much else
STAGE_SECONDS = 3600
OTHERS = "not cluster and not gpu and not long"
SLOW_IMPORTS = ("torch", "ray", "hypothesis", "pydantic", "peft", "scipy.stats", "diffusers.schedulers.scheduling_ddim")
FORK = multiprocessing.get_context("fork")
Mutant = dict[str, Any]


def draw(root: Path, seed: int, count: int) -> list[Mutant]:
    """Faults of each part: of every kind in turn, no two in one statement."""
    drawn = []
    for i, (part, (files, *_)) in enumerate(PARTS.items()):
        share = count // len(PARTS) + (i < count % len(PARTS))
        generator = random.Random(f"{seed} {part}")
        found = [site for path in sorted(root.glob(files)) for site in sites(root, path)]
        kinds = sorted({site.kind for site in found})
        generator.shuffle(kinds)
        chosen: list[Site] = []
        while len(chosen) < share and found:
            kind = kinds[len(chosen) % len(kinds)]
            site = generator.choice([site for site in found if site.kind == kind] or found)
            chosen.append(site)
            found = [other for other in found if (other.function, other.statement) != (site.function, site.statement)]
        drawn += [{"part": part, **asdict(site), "outcomes": {}} for site in chosen]
    return drawn


def find(tree: Path, mutant: Mutant) -> Site | None:
    """The same fault in a tree, where one place is the nearest: of the same function and source, of a function and
    source in which names have changed, or of the same source in another function.
    """
    alike = [site for site in _all(tree) if (site.kind, site.number) == (mutant["kind"], mutant["number"])]
    same = [site for site in alike if (site.statement, site.before) == (mutant["statement"], mutant["before"])]
    own = [site for site in same if (site.function, site.nth) == (mutant["function"], mutant["nth"])]
    beside = [site for site in own if Path(site.path).name == Path(mutant["path"]).name]
    name, shape = mutant["function"].rpartition(".")[2], _without_names(mutant["statement"])
    renamed = [
        site for site in alike if site.function.rpartition(".")[2] == name and _without_names(site.statement) == shape
    ]
    return next((found[0] for found in (beside, own, renamed, same) if len(found) == 1), None)


def _without_names(source: str) -> str:
    """Each name is the number of its first place."""
    numbers: dict[str, str] = {}
    return re.sub(r"[A-Za-z_]\w*", lambda word: numbers.setdefault(word[0], f"_{len(numbers)}"), source)


@cache
def _all(tree: Path) -> list[Site]:
    return [site for path in sorted((tree / "redif_ray").rglob("*.py")) for site in sites(tree, path)]


class Trial:
    """A copy of a tree, in which one fault at a time is made and tested."""

    def __init__(self, tree: Path, scratch: Path) -> None:
        self.scratch = scratch
        listed = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0"):
            if (tree / name).is_file():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(tree / name, scratch / name)
        self.sound: set[str] = set()  # tests that pass without a fault
        self.output = scratch / "output.txt"  # of the latest run of tests

    def outcome(self, part: str, site: Site) -> str:
        """The test that fails, or `survived`."""
        path = self.scratch / site.path
        source, times = path.read_bytes(), path.stat()
        own, others = (
            [f"tests/{name}" for name in names if (self.scratch / "tests" / name).exists()] for names in PARTS[part][1:]
        )
        for marks in LIMITS:
            for tests in (self._named_like(path, own), own, others):
                path.write_bytes(changed(source, site))
                os.utime(path, (0, site.span[0]))  # a time of its own, so that no stale bytecode is taken for it
                try:
                    failed = self._failing(tests, marks)
                finally:
                    path.write_bytes(source)
                    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
                if failed and failed not in self.sound and self._failing([failed], marks):
                    said = self.output.read_text(errors="replace")[-5000:]
                    raise SystemExit(f"{said}\n{failed} fails without a fault too; see to that first")
                if failed:
                    self.sound.add(failed)
                    return failed
        return "survived"

    def _named_like(self, path: Path, tests: list[str]) -> list[str]:
        """Test files that are named after a module, which are the likeliest to fail."""
        found = [file for name in tests for file in sorted((self.scratch / name).glob(f"test_*{path.stem}*.py"))]
        return [str(file.relative_to(self.scratch)) for file in found]

    def _failing(self, tests: list[str], marks: str) -> str | None:
        """Return the first test that fails, or None."""
        if not tests:
            return None
        here, there = FORK.Pipe()
        process = FORK.Process(target=_run_tests, args=(self.scratch, tests, marks, self.output, there))
        process.start()
        there.close()
        process.join(STAGE_SECONDS)
        if process.is_alive() and process.pid is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        try:
            return here.recv()
        except EOFError:  # the process itself died, or took too long
            return tests[0]


def _run_tests(scratch: Path, tests: list[str], marks: str, output: Path, answer: Connection) -> None:
    """Run tests in a process that is forked from one that has imported what they need, so that it starts at once."""
    os.setsid()
    os.chdir(scratch)
    sys.path.insert(0, str(scratch))
    os.environ["PYTHONPATH"] = str(scratch)  # of processes that tests start
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    first = FirstFailure()
    options = ["-x", "-q", "-m", f"{OTHERS} and {marks}", "-p", "no:cacheprovider", f"--timeout={LIMITS[marks]}"]
    pytest.main([*tests, *options], [first])
    answer.send(first.name)


class FirstFailure:
    """A pytest plugin: the test that fails, or the file that cannot be read."""

    name: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.name = self.name or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.name = self.name or report.nodeid


def table(mutants: list[Mutant]) -> str:
    trees = sorted({tree for mutant in mutants for tree in mutant["outcomes"]}, key=lambda tree: tree == NOW)
    rows = []
    for i, mutant in enumerate(mutants):
        change = f"`{mutant['before']}` -> `{mutant['after']}`"
        if mutant["before"] not in (mutant["statement"], mutant["statement"].removeprefix("return ")):
            change += f" in `{mutant['statement']}`"
        outcomes = [mutant["outcomes"].get(tree, "not run") for tree in trees]
        note = f" ({mutant['note']})" if "note" in mutant else ""
        rows.append(
            [
                str(i),
                f"{mutant['path']}:{mutant['line']}",
                mutant["function"],
                change.replace("|", "\\|"),
                *(f"**survived**{note}" if out == "survived" else out for out in outcomes),
            ]
        )
    caught = [
        f"- {tree}: {sum(m['outcomes'].get(tree) not in (None, 'survived', 'gone') for m in mutants)} of "
        f"{sum(m['outcomes'].get(tree, 'gone') != 'gone' for m in mutants)} caught"
        for tree in trees
    ]
    head = ["", "place", "function", "change", *(f"caught by, {tree}" for tree in trees)]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    title = ["# Faults that the tests catch", "", "Made by `python benchmarks/mutants.py`.", ""]
    return "\n".join([*title, *caught, "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--tree", type=Path, default=HERE.parent, help="a git checkout of redif-ray")
    parser.add_argument("--only", type=int, help="this fault alone, by its number in the table")
    options = parser.parse_args()
    for module in SLOW_IMPORTS:
        import_module(module)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    drawing = {"seed": options.seed, "count": options.count}
    if {key: kept.get(key) for key in drawing} != drawing:
        kept = drawing | {"mutants": draw(HERE.parent, options.seed, options.count)}
    mutants, tree = kept["mutants"], options.tree.resolve()
    commit = subprocess.run(["git", "-C", tree, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    name = NOW if tree == HERE.parent else commit.strip()
    with tempfile.TemporaryDirectory() as scratch:
        trial = Trial(tree, Path(scratch))
        for i, mutant in enumerate(mutants):
            if i == options.only or (options.only is None and name not in mutant["outcomes"]):
                site = find(tree, mutant)
                mutant["outcomes"][name] = trial.outcome(mutant["part"], site) if site else "gone"
                if site and name == NOW:
                    mutant |= {"path": site.path, "line": site.line}
                print(i, mutant["path"], mutant["function"], mutant["outcomes"][name], sep="  ", flush=True)
                RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
                RESULTS.with_suffix(".md").write_text(table(mutants) + "\n")
    print(table(mutants))


if __name__ == "__main__":
    main()
