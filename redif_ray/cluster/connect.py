"""Joining or starting Ray: what a run started it stops, what it found it leaves."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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

from redif_ray.config import Config, ConfigError, Learner, Workers  # noqa: E402

log = logging.getLogger(__name__)
_started = ContextVar("started", default=False)


def bundle(role: Workers | Learner) -> dict[str, float]:
    """What one worker of a role asks for, by the name of the resource."""
    asked = {"CPU": role.cpus, "GPU": role.gpus} | role.resources
    return {kind: amount for kind, amount in asked.items() if amount}


def needed(config: Config) -> dict[str, float]:
    """What the workers of all roles that a run starts with ask for together."""
    total: dict[str, float] = {"CPU": 0, "GPU": 0}
    for role in (config.rollout, config.reward, config.learner):
        for kind, amount in bundle(role).items():
            total[kind] = total.get(kind, 0) + role.first * amount
    return total


@contextmanager
def connect(config: Config) -> Iterator[bool]:
    """Ray for the length of a run; whether it ends with it, and all actors of this process.

    A cluster already joined by this process is used and left as it was; one that was `started` ends with the run.
    """
    if ray.is_initialized():
        _check(config)
        yield _started.get()
        return
    if config.ray.address == "local":
        start(config, num_cpus=_private_cpus(config))
    else:
        _join(config.ray.address)
    try:
        _check(config)
        yield True
    finally:
        ray.shutdown()


@contextmanager
def started(config: Config) -> Iterator[None]:
    """A private cluster for the length of a block, with a run in it that connects."""
    start(config, num_cpus=_private_cpus(config))
    token = _started.set(True)
    try:
        yield
    finally:
        _started.reset(token)
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
    return config.ray.num_cpus or max(os.cpu_count() or 1, math.ceil(needed(config)["CPU"]))


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
    """A private cluster of this process, on loopback only.

    Its processes inherit `ENVIRONMENT`: a `runtime_env` that says so too would start Python twice for each worker.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away with notice
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
    )


def _check(config: Config) -> None:
    """Say early what a cluster lacks, instead of waiting for it for ever, unless nodes are on their way.

    Ray tells nobody what its autoscaler could bring, only what is up; so the user says whether to wait.
    """
    have = ray.cluster_resources()
    for kind, need in needed(config).items():
        if have.get(kind, 0) >= need:
            continue
        found = f"this run needs {need:g} of the resource {kind} (all its workers together) and the cluster has "
        _missing(config, found + f"{have.get(kind, 0):g}", _remedy(kind))
    up = [node["Labels"].items() for node in ray.nodes() if node["Alive"]]
    for name, role in (("rollout", config.rollout), ("reward", config.reward), ("learner", config.learner)):
        if not any(role.labels.items() <= labels for labels in up):
            found = f"{name}.labels={role.labels}: no node of the cluster has them"
            _missing(config, found, "change them, or start nodes with `--labels='KEY=VALUE,...'`")


def _missing(config: Config, found: str, remedy: str) -> None:
    if not config.ray.wait:
        raise ConfigError(
            f"{found}; {remedy}. Where an autoscaler brings nodes when they are asked for, set ray.wait=true"
        )
    log.warning("%s; waiting for nodes, as ray.wait=true says", found)


def _remedy(kind: str) -> str:
    if kind in ("CPU", "GPU"):
        return f"lower workers or {kind.lower()}s, or join a larger cluster"
    return f"change the resources of rollout, reward and learner, or start nodes with `--resources='{{\"{kind}\": N}}'`"
