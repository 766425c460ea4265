"""The actors of a run, and the driver's calls to them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import cloudpickle
from ray.exceptions import RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from threadpoolctl import threadpool_limits

from redif_ray.cluster.elastic import Growth
from redif_ray.cluster.placement import Places, reserved
from redif_ray.config import LEARNED, Config, ConfigError, Reward, Workers
from redif_ray.coordinator.client import ask
from redif_ray.coordinator.coordinator import Coordinator
from redif_ray.data.conditions import Conditions
from redif_ray.diffusion.noise import Stream
from redif_ray.errors import UserError
from redif_ray.evaluation.seen import joined
from redif_ray.faults import RESTARTABLE, cause, fetched
from redif_ray.interrupt import StopRequest
from redif_ray.job.metrics_writer import MetricsWriter
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import teacher_outline
from redif_ray.planning import factory
from redif_ray.planning.nodes import share_cards
from redif_ray.planning.rounds import RoundPlan, versions_kept
from redif_ray.runs.folder import RunFolder
from redif_ray.types import Meta, Seen, Way, WorkUnit
from redif_ray.weights.publisher import Publisher
from redif_ray.weights.store import WeightStore, learned_key
from redif_ray.workers import runtime_env
from redif_ray.workers.actors import RewardActor, RolloutActor

POLL_SECONDS, TOLD_SECONDS = 0.5, 20.0
AT_ONCE = 2  # calls in flight per reward worker: one that runs and one that waits
FLUSH_SECONDS = 5  # time for the tracking store to take the last metrics at the end


@dataclass(slots=True)
class Session:
    """The handles of a running job, all of which are rebuilt from the configuration and the run folder."""

    config: Config
    folder: RunFolder
    teacher: DiffusionModel
    plan: RoundPlan
    publisher: Publisher
    writer: Any
    coordinator: Any
    started: list[Any]
    growth: Growth
    places: Places
    stop: StopRequest
    token: Path  # file by which a process checks that its node sees the run folder
    learned: int = 0  # version of the learned reward that `sample` scores with, if the run has one

    def get(self, references: Any) -> Any:
        """Return `get(references)` with the duties of `look_after` meanwhile."""
        return get(references, self.stop, self.look_after)

    def look_after(self) -> None:
        """Refill a restarted weight store and let new workers join. Every loop that waits must call this."""
        self.publisher.look_after()
        self.growth.look_after()

    def ready(self, tell: Callable[[str], object]) -> None:
        """Wait until all workers that the run starts with are ready, and tell how many are. Raises as `all_ready`."""
        all_ready(self.started, self.stop, self.look_after, tell)

    def ask_reward(self, method: str, calls: Iterable[tuple[Any, ...]]) -> tuple[list[Meta], list[Any]]:
        """Return the metas and data of calls to the reward workers; see `ask`."""

        def meanwhile() -> None:
            self.stop.check()
            self.look_after()

        most = AT_ONCE * self.config.reward.max_workers
        return ask(self.coordinator, method, calls, at_once=most, get=self.get, meanwhile=meanwhile)

    def see(
        self, units: Sequence[WorkUnit], sources: Sequence[WorkUnit | Way], *, judged: bool = True
    ) -> tuple[Seen, list[Meta]]:
        """Return measurements of the teacher's images of each unit's groups, and the metas of the calls.

        sources: where each unit's images come from; see `TeacherRewardWorker.see`.
        """
        store, learned = self.publisher.store, learned_key(self.config, self.learned)
        calls = [(unit, source, store, learned, judged) for unit, source in zip(units, sources, strict=True)]
        metas, seen = self.ask_reward("see", calls)
        return joined(seen), metas

    def sample(self, stream: Stream, count: int, key: str) -> tuple[Seen, list[Meta]]:
        """Return measurements of the deployed student on the first `count` groups of a stream, and the metas.

        key: name of the student's weights in the weight store.
        """
        learned = learned_key(self.config, self.learned)
        deploy = self.coordinator.deploy
        data = fetched(lambda lost: deploy.remote(int(stream), count, 0, key, learned, lost), self.get)
        return joined([scored.seen for (scored,) in data.parts.values()]), [m for metas in data.metas for m in metas]

    def diversity(self, key: str) -> tuple[np.ndarray, list[Meta]]:
        """Return how far apart images of one condition are, [conditions, 2] of student and teacher, and the metas.

        key: as in `sample`.
        """
        deploy, count = self.coordinator.deploy, self.config.evaluation.diversity.count
        data = fetched(lambda lost: deploy.remote(int(Stream.DIVERSITY), count, 0, key, None, lost), self.get)
        found = [scored.diversity for (scored,) in data.parts.values()]
        return np.concatenate(found), [m for metas in data.metas for m in metas]


def get(references: Any, stop: StopRequest, meanwhile: Callable[[], object] = lambda: None) -> Any:
    """Return `ray.get` of one reference or a list of them, unless the user asks to stop meanwhile.

    meanwhile: function that is called repeatedly during the wait.
    Raises Interrupted on a request to stop, and the original error of a worker, without Ray's wrapper, where it is a
    UserError or an OSError.
    """
    waiting = references if isinstance(references, list) else [references]
    while waiting:
        stop.check()
        meanwhile()
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS)
    try:
        return ray.get(references)
    except ray.exceptions.RayTaskError as error:
        inner = cause(error)
        raise (inner if isinstance(inner, UserError | OSError) else error) from None


def all_ready(
    actors: Iterable[Any],
    stop: StopRequest,
    meanwhile: Callable[[], object] = lambda: None,
    tell: Callable[[str], object] = lambda _: None,
) -> None:
    """Wait until every actor has loaded its data. Raises the error of the first actor that fails, and as `get`.

    tell: is told every `TOLD_SECONDS` how many are ready, and then that all are.
    """
    waiting, last, told = [actor.ready.remote() for actor in actors], time.monotonic(), False
    count = len(waiting)
    while waiting:
        stop.check()
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=POLL_SECONDS)
        if (now := time.monotonic()) - last >= TOLD_SECONDS:
            last, told = now, bool(waiting)
            tell(f"{count - len(waiting)} of {count} workers are ready")
        try:
            get(ready, stop, meanwhile)
        except RuntimeEnvSetupError as error:
            raise ConfigError(runtime_env.failed(error)) from error
    if told:
        tell(f"all {count} workers are ready")


@contextmanager
def session(config: Config, conditions: Conditions, folder: RunFolder, stop: StopRequest) -> Iterator[Session]:
    """Wait for room in the cluster, start the actors of a run there, and stop them at the end of the block.

    The driver must be connected to Ray. The actors load while the caller goes on; see `Session.ready`.
    """
    teacher = teacher_outline(config.teacher)
    teacher.parts_sha256(factory.digests(config))  # unless they are in the cache, where the workers look for them
    plan = RoundPlan(config, conditions)
    roles = {"rollout": config.rollout, "reward": config.reward}
    room = reserved(roles, config.learner, stop, shared=share_cards(config))
    with one_thread(), room as places, folder.token() as token:
        writer = beside_driver(MetricsWriter, **RESTARTABLE).remote(
            str(folder.path),
            config.tracking_uri,
            config.experiment,
            config.run.name,
            folder.state.get("mlflow_run_id"),
            {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")},
        )
        # Handles are pickled, because Ray warns of references among the arguments of a restartable actor.
        pickled = cloudpickle.dumps(writer)
        hired = partial(workers, config=config, token=token, places=places, writer=pickled)

        def more() -> dict[str, Any]:
            late = hired(RolloutActor, "rollout", config.rollout, later=True)
            return late | hired(RewardActor, "reward", config.reward, later=True)

        weights = beside_driver(WeightStore, **RESTARTABLE).remote(versions_kept(config), pickled)
        rollout = list(hired(RolloutActor, "rollout", config.rollout).values())
        reward = list(hired(RewardActor, "reward", config.reward).values())
        handles = cloudpickle.dumps((weights, writer, rollout, reward))
        kind = beside_driver(Coordinator, max_concurrency=100, **RESTARTABLE)
        coordinator = kind.remote(config, str(folder.path), handles, teacher.takes_captions)
        started = [*rollout, *reward, writer]
        growth = Growth(more if any(role.first < role.max_workers for role in roles.values()) else None, coordinator)
        try:
            publisher = Publisher(weights)
            if (first := factory.learned_reward(config, teacher, "cpu")) is not None:
                publisher.publish(f"{LEARNED}-0", first.network.state_dict())
            yield Session(
                config, folder, teacher, plan, publisher, writer, coordinator, started, growth, places, stop, token
            )
        finally:
            growth.stop()
            ray.wait([writer.flush.remote()], timeout=FLUSH_SECONDS)
            for actor in [coordinator, *rollout, *reward, weights, writer]:  # it would ask for lost workers again
                ray.kill(actor)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch and NumPy compute in one thread in this process during the block, and in as many as before after it.

    Two threads of NumPy's linear algebra wait for each other at every small matrix, and on a busy machine for long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


def beside_driver(kind: Any, **options: Any) -> Any:
    """Return the actor class or the task `kind`, pinned to the driver's node, for what a run has only one of.

    Ray might place the actor on a node that is taken away. The driver's node is lost only with the driver. An SQLite
    store is also written from a single machine then.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here, **options)


def workers(
    kind: type,
    name: str,
    role: Workers,
    *,
    config: Config,
    token: Path,
    places: Places,
    later: bool = False,
    writer: bytes | None = None,
) -> dict[str, Any]:
    """Create the actors of a role that a run starts with, or those that join later, as {name: actor}.

    Ray restarts a dead actor wherever there is room. writer: see `Actor`.
    """
    asked: dict[str, Any] = {"num_cpus": role.cpus, "num_gpus": role.gpus, "resources": role.resources, **RESTARTABLE}
    variables = {}
    if isinstance(role, Reward) and role.runtime_env is not None:
        asked["runtime_env"], variables = runtime_env.for_ray(role), runtime_env.handed_over(role)

    def actor(number: int) -> Any:
        options = asked | places.options(name, role, number)
        return ray.remote(kind).options(**options).remote(f"{name}-{number}", config, token, variables, writer)

    return {f"{name}-{i}": actor(i) for i in (range(role.first, role.max_workers) if later else range(role.first))}
