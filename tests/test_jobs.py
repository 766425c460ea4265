"""What `ray job submit --working-dir .` takes along from a checkout."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

from ray._private.runtime_env.packaging import create_package

CHECKOUT = Path(__file__).parents[1]
LIMIT_MB = 30  # 23.2 are the shipped models; Ray warns near 100 and refuses above 500


def test_the_upload_is_small_and_holds_what_a_job_needs(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    create_package(str(CHECKOUT), package, include_gitignore=True)
    names = ZipFile(package).namelist()
    assert {"jobs/distill.py", "configs/fashion_mnist.yaml", "redif_ray/cli.py", "pyproject.toml"} <= set(names)
    assert not [n for n in names if n.startswith((".git/", ".venv", "tests/", "docs/", "benchmarks/", "runs/"))]
    assert package.stat().st_size < LIMIT_MB * 10**6
