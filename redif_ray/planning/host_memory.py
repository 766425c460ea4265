"""The main memory of the processes of a run."""

from __future__ import annotations

from redif_ray.config import Config
from redif_ray.planning.memory import Footprints, workers

PROCESS_MB = 450  # torch, diffusers and Ray in one worker; shared pages are divided among the processes
RAY_MB = 900  # Ray's own processes with the dashboard
DRIVER_MB = 700  # the driver, which holds headers, features and pictures, and no network


def main_memory_mb(config: Config, found: Footprints) -> float:
    """Return the main memory in MB of all processes.

    The learner has ended when the student is exported, so the larger of the two counts.
    """
    numbers = {role: number for role, (number, _) in workers(config).items()}
    mb = {role: process_mb(config, found, role) for role in (*numbers, "driver", "export")}
    last = max(numbers.pop("learner") * mb["learner"], mb["export"])
    return RAY_MB + 3 * PROCESS_MB + mb["driver"] + last + sum(number * mb[role] for role, number in numbers.items())


def process_mb(config: Config, found: Footprints, role: str) -> float:
    """Return the main memory in MB of one process: of a worker of a role, of the "driver", or of the "export".

    A process without a GPU holds its tensors there, and one that takes turns on a GPU what it keeps between turns. The
    driver holds no network. The export holds one in float32, and the layers that adapters are merged into once more.
    """
    if role == "driver":
        return DRIVER_MB
    if role == "export":
        return PROCESS_MB + 4 * found.network / 1e6
    one, gpus = found.roles[role], workers(config)[role][1]
    if not gpus:
        return PROCESS_MB + one.total
    return PROCESS_MB + (one.weights + one.training if config.pipeline.colocate else 0)
