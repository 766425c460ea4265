"""The job of `redif search --adaptive`: train agents and compare them with the searched schedules.

Results lie in `adaptive/` of the search's folder. An agent is a safetensors file with its training settings in the
header; an agent whose file has the same settings is not trained again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from redif_ray.adaptive.report import Front, compared, write_results
from redif_ray.adaptive.tasks import Goal
from redif_ray.adaptive.worker import AdaptiveActor, AdaptiveEvaluator
from redif_ray.cluster.connect import connect
from redif_ray.config import Config, ConfigError
from redif_ray.data.conditions import Conditions
from redif_ray.files import atomic_file
from redif_ray.interrupt import StopRequest, stop_requests
from redif_ray.job.batches import with_batches
from redif_ray.job.preflight import preflight
from redif_ray.job.session import get
from redif_ray.models.registry import teacher_outline
from redif_ray.runs.folder import RunFolder
from redif_ray.runs.jsonl import read_rows
from redif_ray.search.finalists import MEASURED, chosen
from redif_ray.search.records import Records
from redif_ray.search.search import evaluator, search, searched

FOLDER = "adaptive"
SETTINGS = "settings"  # metadata key of an agent's file; its value holds the training settings as JSON


@dataclass(slots=True)
class Job:
    """Everything that the steps of the job share."""

    config: Config
    conditions: Conditions
    folder: RunFolder
    stop: StopRequest
    console: Console
    records: Records
    weights: dict[str, float]  # by name, the weight of each reward term in the distance

    @property
    def path(self) -> Path:
        return self.folder.path / FOLDER


def adapt(config: Config, *, resume: bool = False, console: Console | None = None) -> Path:
    """Search, unless a finished search is resumed, then train agents and compare them. Returns the search's folder."""
    own = searched(config)
    check(own)
    console = console or Console()
    path = Path(own.run.root) / own.run.name
    if not (resume and (path / "summary.json").exists()):
        search(config, resume=resume, console=console)
    with stop_requests() as stop:
        conditions = preflight(own)
        own = with_batches(own, console, resume=True, roles=("reward",))
        folder = RunFolder.open(own, resume=True, finished=True)
        try:
            folder.keep_conditions(conditions)
            weights = json.loads((folder.path / "summary.json").read_text())["weights"]
            with Records.open(own, folder) as records:
                _adapt(Job(own, conditions, folder, stop, console, records, weights))
            return folder.path
        except KeyboardInterrupt:  # the second Ctrl-C
            raise stop.interrupted(f"the job left at once; trained agents are in {folder.path / FOLDER}") from None
        finally:
            folder.close()


def check(config: Config) -> None:
    """Raise ConfigError where agents cannot be compared with the schedules that `config` searches."""
    s, steps = config.search, config.search.steps or (config.student.steps,)
    if len(steps) < 2:
        raise ConfigError(f"search.steps={list(steps)}: agents are compared between numbers of steps; give two or more")
    if s.adaptive.max_calls < max(steps):
        raise ConfigError(
            f"search.adaptive.max_calls={s.adaptive.max_calls}: expected at least {max(steps)}, the largest "
            "of search.steps"
        )
    if s.frechet.weight:
        raise ConfigError(
            f"search.frechet.weight={s.frechet.weight:g}: agents are rewarded image by image; set it to 0"
        )
    if s.network_timestep_trials or s.descent.network_timesteps:
        trials = s.network_timestep_trials
        key = f"network_timestep_trials={trials}" if trials else "descent.network_timesteps=true"
        raise ConfigError(f"search.{key}: agents call the network at the levels that they visit; leave this key out")
    if config.reward.runtime_env is not None:
        raise ConfigError(
            "reward.runtime_env: RLlib, which trains the agents, starts its processes without a runtime environment; "
            "leave this key out and install the packages of the rewards on the nodes"
        )
    if s.solver != "euler":
        raise ConfigError(f"search.solver={s.solver}: agents move by euler; set search.solver=euler")


def goals(config: Config, winners: dict[int, dict[str, Any]]) -> list[Goal]:
    """Return one goal for each price; an agent starts as the searched schedule that is best at its price.

    winners: by N, the row of the searched schedule, with its distance on the bank.
    Unset prices are the distance that a call saves on the bank around each N that lies between two others, or between
    the only two. Raises ConfigError where no such price is above 0.
    """
    bank = {n: float(winners[n]["bank"]) for n in sorted(winners)}
    steps = list(bank)
    around = list(zip(steps, steps[2:], strict=False)) or [(steps[0], steps[-1])]
    slopes = [(bank[a] - bank[b]) / (b - a) for a, b in around]
    prices = config.search.adaptive.prices or tuple(slope for slope in slopes if slope > 0)
    if not prices:
        raise ConfigError(
            "search.adaptive.prices: no price can be derived, because more steps save no distance on the bank; "
            "give prices"
        )
    best = [min(steps, key=lambda n: bank[n] + price * n) for price in prices]
    return [
        Goal(price, n, tuple(winners[n]["timesteps"]), config.search.adaptive.max_calls)
        for price, n in zip(prices, best, strict=True)
    ]


def _adapt(job: Job) -> None:
    rows = read_rows(job.folder.path / MEASURED)
    winners = chosen(rows)
    aims = goals(job.config, winners)
    job.path.mkdir(exist_ok=True)
    with connect(job.config):
        _train_missing(job, aims)
        job.stop.check()
        with _evaluator(job) as actor:
            answers = [actor.adapted.remote(aim, _arrays(_agent(job, aim)), job.weights) for aim in aims]
            measured = get(answers, job.stop)
    fronts = [
        Front("searched", list(winners.values())),
        Front("uniform-trailing", [row for row in rows if row["name"] == "uniform_trailing"]),
    ]
    e = job.config.evaluation
    agents = [
        compared(aim, result, fronts[0], resamples=e.bootstrap, seed=job.config.run.seed) | {"file": _file(aim)}
        for aim, result in zip(aims, measured, strict=True)
    ]
    factor = teacher_outline(job.config.teacher).calls_per_step(job.config.student.guidance)
    write_results(job.path, job.config, agents, [front for front in fronts if front.rows], factor)
    if job.records.tracker is not None:
        for agent in agents:
            numbers = {key: value for key, value in agent.items() if isinstance(value, float)}
            job.records.tracker.child(f"agent {agent['price']:.4g}", {"price": agent["price"]}, numbers)
        files = [job.path / "adaptive.md", job.path / "adaptive.png", *(job.path / agent["file"] for agent in agents)]
        job.records.summary({}, files)
    job.console.print(f"agents       {job.path / 'adaptive.md'}", highlight=False, soft_wrap=True)


def _train_missing(job: Job, aims: Sequence[Goal]) -> None:
    missing = [aim for aim in aims if _agent(job, aim) is None]
    if not missing:
        return
    with job.records.timed("adaptive"):
        with _evaluator(job) as actor:
            targets = np.concatenate(ray.get(get(actor.training_targets.remote(), job.stop)))
            conditions = tuple(get(actor.training_conditions.remote(), job.stop))
        reference = ray.put(targets)
        for aim in missing:
            _train(job, aim, conditions, reference)


def _train(job: Job, aim: Goal, conditions: tuple[Any, ...], targets: Any) -> None:
    """Train an agent for all iterations and save it."""
    from redif_ray.adaptive import agent  # here, because RLlib takes seconds to import

    training = agent.Training(job.config, aim, job.weights, conditions, targets)
    count, began = job.config.search.adaptive.iterations, time.monotonic()
    teacher, student = job.config.teacher, job.config.search.student
    process = teacher_outline(teacher, student).process
    with agent.ppo(training, process) as algorithm:
        job.stop.listen()  # again, because RLlib may have replaced the signal handlers
        for i in range(count):
            job.stop.check()
            mean_return = agent.mean_return(algorithm.train())
            if (i + 1) % 10 == 0 or i + 1 == count:
                left = (time.monotonic() - began) / (i + 1) * (count - i - 1)
                line = f"price {aim.price:.4g}  iteration {i + 1:3d}/{count}  distance + price x calls "
                line += f"{-mean_return * aim.price:.5f}  {left:4.0f} s left"
                job.console.print(line, highlight=False, soft_wrap=True)
        trained = agent.weights(algorithm)
    with atomic_file(job.path / _file(aim)) as partial:
        save_file(trained, partial, metadata={SETTINGS: _settings(job, aim)})


def _evaluator(job: Job) -> AbstractContextManager[Any]:
    return evaluator(job.config, job.conditions, job.folder, job.stop, AdaptiveActor, AdaptiveEvaluator)


def _file(aim: Goal) -> str:
    return f"agent-{aim.price:.6g}.safetensors"


def _settings(job: Job, aim: Goal) -> str:
    a = job.config.search.adaptive.model_dump(exclude={"prices"})
    return json.dumps({"goal": asdict(aim), "adaptive": a, "weights": job.weights}, sort_keys=True)


def _agent(job: Job, aim: Goal) -> dict[str, Tensor] | None:
    """Return the saved policy's parameters, or None if no file has the settings of this job and goal."""
    path = job.path / _file(aim)
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get(SETTINGS) != _settings(job, aim):
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _arrays(agent: dict[str, Tensor] | None) -> dict[str, np.ndarray]:
    assert agent is not None
    return {name: value.to(torch.float32).numpy() for name, value in agent.items()}
