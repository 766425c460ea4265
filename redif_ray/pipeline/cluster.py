"""Joining or starting Ray: what a run started it stops, what it found it leaves."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402  # after the environment that it reads

from redif_ray.config import Config, ConfigError  # noqa: E402


def needed_cpus(config: Config) -> float:
    return (
        config.rollout.workers * config.rollout.cpus
        + config.reward.workers * config.reward.cpus
        + config.learner.workers * config.learner.cpus
    )


def needed_gpus(config: Config) -> float:
    return (
        config.rollout.workers * config.rollout.gpus
        + config.reward.workers * config.reward.gpus
        + config.learner.workers * config.learner.gpus
    )


@contextmanager
def connect(config: Config) -> Iterator[None]:
    """Ray for the length of a run. A cluster already joined by this process is used and left as it was."""
    if ray.is_initialized():
        _check(config)
        yield
        return
    if config.ray.address == "local":
        start(config, num_cpus=_private_cpus(config))
    else:
        _join(config.ray.address)
    try:
        _check(config)
        yield
    finally:
        ray.shutdown()


def resources(config: Config) -> dict[str, float]:
    """What a run would find, by kind: of the cluster at its address, or of the private one that it would start."""
    import torch  # which takes seconds that other users of this module need not spend

    if config.ray.address == "local":
        return {"CPU": _private_cpus(config), "GPU": torch.cuda.device_count()}
    if ray.is_initialized():
        return ray.cluster_resources()
    _join(config.ray.address)
    try:
        return ray.cluster_resources()
    finally:
        ray.shutdown()


def _private_cpus(config: Config) -> int:
    return config.ray.num_cpus or max(os.cpu_count() or 1, math.ceil(needed_cpus(config)))


def _join(address: str) -> None:
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": ENVIRONMENT},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"ray.address={address}: no Ray cluster there lets this process in ({error}); start one "
            "with `ray start --head`, or use ray.address=local. Where a cluster asks for a token, as Ray's do "
            "unless told otherwise, an address other than auto needs RAY_AUTH_MODE=token and the token (see "
            "`ray get-auth-token`)"
        ) from error


def start(config: Config, *, num_cpus: int) -> None:
    """A private cluster of this process, on loopback only."""
    # Ray's sockets lie below its folder and their paths may not exceed 107 bytes; this one is short.
    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=config.ray.object_store_mb * 10**6,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(Path(tempfile.gettempdir()) / "ray"),
        runtime_env={"env_vars": ENVIRONMENT},
    )


def _check(config: Config) -> None:
    """Say early what a cluster lacks, instead of waiting for it for ever."""
    have = ray.cluster_resources()
    for kind, need in (("CPU", needed_cpus(config)), ("GPU", needed_gpus(config))):
        if have.get(kind, 0) < need:
            raise ConfigError(
                f"this run needs {need:g} {kind}s (rollout, reward and learner workers together) and the cluster has "
                f"{have.get(kind, 0):g}; lower workers or cpus, or join a larger cluster"
            )
