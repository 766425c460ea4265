"""Joining or starting a Ray cluster. A run stops the cluster that it started and leaves one that it joined."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from redif_ray.busy import SHORT_WAITS

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    **SHORT_WAITS,
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402  # reads the environment that was set above

from redif_ray.cluster import private  # noqa: E402
from redif_ray.config import Config, ConfigError  # noqa: E402
from redif_ray.config.uris import Uri  # noqa: E402
from redif_ray.planning.nodes import bundle  # noqa: E402

log = logging.getLogger(__name__)
_started = ContextVar("started", default=False)


def needed(config: Config) -> dict[str, float]:
    """Return the sum of the resources of all workers that a run starts with, by name."""
    total: dict[str, float] = {"CPU": 0, "GPU": 0}
    for role in (config.rollout, config.reward, config.learner):
        for kind, amount in bundle(role).items():
            total[kind] = total.get(kind, 0) + role.first * amount
    return total


@contextmanager
def connect(config: Config) -> Iterator[bool]:
    """Connect to Ray while the block runs; yield whether Ray, with all actors of this process, ends after the block.

    A cluster that this process has joined before is used and left as it was; a cluster of `started` ends with the run.
    Raises ConfigError where the cluster cannot be joined or has too few resources.
    """
    if joined():
        _check(config)
        yield _started.get()
        return
    if config.ray.address == "local":
        with started(config):
            _check(config)
            yield True
        return
    join(config.ray.address)
    try:
        _check(config)
        yield True
    finally:
        ray.shutdown()


@contextmanager
def started(config: Config) -> Iterator[None]:
    """Start a private cluster while the block runs; a run in the block connects to it."""
    start(config)
    token = _started.set(True)
    try:
        with private.watched():
            yield
    finally:
        _started.reset(token)
        ray.shutdown()


def joined() -> bool:
    """Tell whether this process is connected to a cluster already, so that its runs use that one."""
    return ray.is_initialized()


def in_own_cluster() -> bool:
    """Tell whether this code runs in a block of `started`, which has a private cluster."""
    return _started.get()


def private_cpus(config: Config) -> int:
    """Return the number of logical CPUs that a private cluster has."""
    return config.ray.num_cpus or max(os.cpu_count() or 1, math.ceil(needed(config)["CPU"]))


def join(address: Uri) -> None:
    """Join the cluster at an address other than local. Raises ConfigError."""
    try:
        with private.signals_left_alone():
            ray.init(
                address=address.reveal("ray.address"),
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {name: os.environ[name] for name in ENVIRONMENT}},
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"ray.address={address}: this process cannot join a Ray cluster at that address ({error}); start a cluster "
            "with `ray start --head`, or use ray.address=local. If the cluster asks for a token, which is Ray's "
            "default, an address other than auto needs RAY_AUTH_MODE=token and the token (see `ray get-auth-token`)"
        ) from None


def start(config: Config) -> None:
    """Start a private cluster of this process. Raises ConfigError where Ray cannot start here."""
    private.start(config, private_cpus(config))


def warn_of_small_store(kept: int) -> None:
    """Log a warning where the cluster's object stores are smaller than `kept`, the bytes that a run keeps in them."""
    have = ray.cluster_resources().get("object_store_memory", 0.0)
    if have < kept:
        log.warning(
            "the object stores of the cluster hold %.0f MB together and this run keeps up to %.0f MB there, so Ray "
            "writes objects to disk; set ray.object_store_mb=%.0f, or start the nodes of a cluster of your own with "
            "`ray start --object-store-memory=%.0f`",
            have / 1e6,
            kept / 1e6,
            math.ceil(kept / 1e6),
            kept,
        )


def _check(config: Config) -> None:
    """Raise ConfigError if the cluster lacks resources or labels that the run needs; with `ray.wait`, only warn.

    Ray does not tell which nodes its autoscaler could add, so the user says with `ray.wait` whether to wait for them.
    """
    have = ray.cluster_resources()
    for kind, need in needed(config).items():
        if have.get(kind, 0) >= need:
            continue
        problem = f"this run needs {need:g} of the resource {kind} (all its workers together) and the cluster has "
        _missing(config, problem + f"{have.get(kind, 0):g}", _remedy(kind))
    up = [node["Labels"].items() for node in ray.nodes() if node["Alive"]]
    for name, role in (("rollout", config.rollout), ("reward", config.reward), ("learner", config.learner)):
        if not any(role.labels.items() <= labels for labels in up):
            problem = f"{name}.labels={role.labels}: no node of the cluster has them"
            _missing(config, problem, "change them, or start nodes with `--labels='KEY=VALUE,...'`")


def _missing(config: Config, problem: str, remedy: str) -> None:
    if not config.ray.wait:
        raise ConfigError(f"{problem}; {remedy}. If an autoscaler adds nodes on demand, set ray.wait=true")
    log.warning("%s; waiting for nodes, since ray.wait=true", problem)


def _remedy(kind: str) -> str:
    if kind in ("CPU", "GPU"):
        return f"lower the number of workers or their {kind.lower()}s, or join a larger cluster"
    return f"change the resources of rollout, reward and learner, or start nodes with `--resources='{{\"{kind}\": N}}'`"
