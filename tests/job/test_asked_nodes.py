"""Doctor looks at every node of a cluster, not at the machine that asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.long]


def asked(*folders: Path) -> tuple[str, dict[str, list[dict[str, object]]]]:
    script = Path(__file__).with_name("asked_nodes.py")
    command = [sys.executable, script, *folders]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    said, _, found = done.stdout.strip().rpartition("\n")
    return said, json.loads(found)


def smi(folder: Path, lines: str) -> Path:
    """A folder with a program that is named as NVIDIA's."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    (folder / "nvidia-smi").chmod(0o755)
    return folder


def test_doctor_looks_at_every_node(tmp_path: Path) -> None:
    """The smallest GPU decides, though it is on another node than doctor, and second there."""
    small = smi(tmp_path / "small", "NVIDIA L4, 23034\\nNVIDIA T1, 900\\n")
    large = smi(tmp_path / "large", "NVIDIA H200, 143771\\nNVIDIA H200, 143771\\n")
    said, found = asked(small, large)
    nodes = {node["labels"].get("from", "head"): node for node in found["nodes"]}
    assert {name: node["driver"] for name, node in nodes.items()} == {
        "head": True,
        str(small): False,
        str(large): False,
    }
    assert nodes["head"]["gpus"] == [] and [name for name, _ in nodes[str(small)]["gpus"]] == ["NVIDIA L4", "NVIDIA T1"]
    assert all(node["memory"] > 0 and node["store"] == pytest.approx(150, rel=0.4) for node in nodes.values())
    assert found["lacking"] == ["memory of a GPU"] and "of 944 MB" in said
    assert "1 NVIDIA L4 of 24,153 MB, 1 NVIDIA T1 of 944 MB" in said and "2 NVIDIA H200 of 150,755 MB" in said
    assert "learner.microbatch=1 and evaluation.batch=1: the least" in said
