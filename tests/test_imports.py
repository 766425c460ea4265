"""What a process pays before it works: a run has five, and each import of torch or of diffusers costs seconds."""

from __future__ import annotations

import subprocess
import sys

CONTROL = ("actors", "coordinator", "metrics", "status", "weight_store")


def test_processes_without_tensors_import_nothing_heavy() -> None:
    modules = ", ".join(f"redif_ray.pipeline.{name}" for name in CONTROL)
    script = f"import sys, redif_ray.cli, {modules}; print({{'torch', 'mlflow', 'pandas'}} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
