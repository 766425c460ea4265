"""What a process pays before it works: a run has six, and each import of torch or of diffusers costs seconds."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from redif_ray.workers.lazy_import import imported

pytestmark = pytest.mark.slow

CONTROL = (
    "workers.actors",
    "coordinator.coordinator",
    "job.launch",
    "job.metrics_writer",
    "runs.status",
    "weights.store",
    "learner.ray_train",
)


def heavy(code: str) -> str:
    """Those of the heavy packages that are there once `code` has run in a process of its own."""
    script = f"import sys; {code}; print(*sorted({{'torch', 'diffusers', 'mlflow', 'pandas'}} & {{*sys.modules}}))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_processes_without_tensors_import_nothing_heavy() -> None:
    modules = ", ".join(f"redif_ray.{name}" for name in CONTROL)
    assert heavy(f"import redif_ray.cli, {modules}") == ""


@pytest.mark.parametrize(
    "words",
    [
        ("smoke", "learner.lrr=1"),
        ("smoke", "learner.rounds=many"),
        ("smoke", "exploration.eta=0"),
        ("nowhere.yaml",),
    ],
    ids=["unknown key", "wrong type", "conflict", "no file"],
)
def test_a_bad_recipe_is_told_of_at_once(words: tuple[str, ...]) -> None:
    """Half a second to one of an idle core; the limit is for slow machines."""
    script = (
        "import sys, time; from redif_ray.cli import main\n"
        f"sys.argv = ['redif', 'distill', *{words!r}]\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, time.process_time(), *{'torch', 'ray', 'mlflow', 'numpy', 'pyarrow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    code, seconds, *imported = done.stdout.split()
    assert (code, imported) == ("2", []) and done.stderr.startswith("error: ") and float(seconds) < 5


@pytest.mark.long
def test_a_driver_that_tracks_nothing_does_without_mlflow() -> None:
    assert heavy("import redif_ray.job.distill") == "diffusers torch"


def test_an_import_leaves_the_collector_at_work() -> None:
    assert imported("redif_ray.config:Config").__name__ == "Config" and gc.isenabled() and gc.get_freeze_count()
    with pytest.raises(ModuleNotFoundError):
        imported("redif_ray.nowhere:Nothing")
    assert gc.isenabled()
