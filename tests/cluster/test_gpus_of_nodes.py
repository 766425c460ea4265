"""The GPUs of a machine are those that nvidia-smi lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from redif_ray.cluster.nodes import gpus


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program that is named as NVIDIA's first on the path."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_each_gpu_is_named_with_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program tells MiB; a GPU that shares main memory has none of its own to tell."""
    lines = "NVIDIA H200, 143771\\nNVIDIA GeForce RTX 4090, 24564\\nNVIDIA GB10, [N/A]\\n"
    said = '[ "$*" = "--query-gpu=name,memory.total --format=csv,noheader,nounits" ] || exit 2'
    smi(tmp_path, monkeypatch, f"{said}\nprintf '{lines}'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = gpus()
    assert [name for name, _ in found] == ["NVIDIA H200", "NVIDIA GeForce RTX 4090"]
    assert [mb for _, mb in found] == pytest.approx([143771 * 1.048576, 24564 * 1.048576])


@pytest.mark.parametrize("script", ["exit 9", "echo No devices were found", "true"])
def test_a_machine_without_gpus_has_none(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, script)
    assert gpus() == ()


def test_a_machine_without_the_program_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == ()
