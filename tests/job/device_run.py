"""A whole run, cut and resumed, all of whose processes compute on the second device.

python device_run.py ROOT: exit code 0 where the run ended by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray
from smoke_runs import smoke, train

from redif_ray.cluster.connect import ENVIRONMENT
from redif_ray.job.distill import distill

NAME, TESTS = "elsewhere", str(Path(__file__).parents[1])


def compute_there() -> None:
    """In each of Ray's workers, before anything else."""
    sys.path.insert(0, TESTS)
    import second_device

    from redif_ray.planning import factory

    factory.device = lambda gpus: second_device.NAME


def main(root: Path) -> None:
    hook = {"worker_process_setup_hook": compute_there, "env_vars": ENVIRONMENT}
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, runtime_env=hook)
    config = smoke(root, NAME)
    train(config, until=2)
    distill(config, resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
