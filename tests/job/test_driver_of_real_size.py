"""The driver of a run needs little time and memory until it asks for its first worker, at real sizes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import real_sizes

FAMILY = Path(__file__).parents[1] / "flux_family.py"
OWN_SIZE = ["teacher.height=null", "teacher.width=null"]  # of the network, 1,024 pixels, not the recipe's 512
SIZES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "sdxl_4step_lora": (real_sizes.stable_diffusion_xl, []),
    "sd35_4step_lora": (real_sizes.stable_diffusion_35_medium, OWN_SIZE),
    "flux": (real_sizes.flux_dev, [f"teacher.family={FAMILY}:load", *OWN_SIZE]),
    "edm_imagenet64_4step": (real_sizes.edm_imagenet_64, []),
}
SECONDS, MB = 60, 2500  # of a core of the driver, so that other work on the machine does not count; and of memory


@pytest.mark.long
@pytest.mark.parametrize("recipe", SIZES)
def test_the_first_worker_is_asked_for_soon_and_in_little_memory(recipe: str, tmp_path: Path) -> None:
    write, given = SIZES[recipe]
    overrides = [
        f"teacher.model={write(tmp_path / 'teacher')}",
        f"run.root={tmp_path}",
        "run.name=real",
        "reward.terms={mse: {}}",
        "evaluation.judge=random-features",
        "tracking.uri=off",
        "evaluation.held_out=24",  # or the disk of a small machine would be too small, which a run checks first
        "learner.rounds=4",
        "warm_start.rounds=1",
        *(f"{role}.gpus=0" for role in ("rollout", "reward", "learner")),
        *given,
    ]
    if recipe != "edm_imagenet64_4step":
        overrides.append("conditions.source=emoji")
    base = "sd35_4step_lora" if recipe == "flux" else recipe
    if recipe == "flux":
        overrides.append("student.lora={rank: 32, targets: [to_q, to_k, to_v]}")
    code = "from redif_ray.cli import main; main()"
    with (tmp_path / "output").open("w") as output:
        run = subprocess.Popen([sys.executable, "-c", code, "distill", base, *overrides], stdout=output, stderr=output)
    driver, started, cpu, most, asked = psutil.Process(run.pid), time.monotonic(), 0.0, 0.0, False
    try:
        while run.poll() is None and not asked:
            most, cpu = max(most, driver.memory_full_info().pss / 1e6), sum(driver.cpu_times()[:2])
            asked = any("Actor" in title for title in map(_title, driver.children(recursive=True)))
            time.sleep(0.1)
    finally:
        _end(driver)
    took = time.monotonic() - started
    assert asked, (tmp_path / "output").read_text()
    print(f"{recipe}: {cpu:.0f} s of a core in {took:.0f} s, {most:,.0f} MB")
    assert cpu <= SECONDS and most <= MB


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


def _end(driver: psutil.Process) -> None:
    """Kill a driver and all that it started."""
    for process in [driver, *driver.children(recursive=True)]:
        process.kill()
    psutil.wait_procs([driver], timeout=20)
