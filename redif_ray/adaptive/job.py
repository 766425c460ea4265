"""The job behind `redif search --adaptive`: agents against the schedules that a search found, in `<search>/adaptive/`.

An agent is a safetensors file that says what it was trained with; one that is there already is not trained again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import contextmanager
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
from redif_ray.job.preflight import preflight
from redif_ray.job.session import get
from redif_ray.models.registry import load_model, load_teacher
from redif_ray.runs.folder import RunFolder
from redif_ray.runs.jsonl import read_rows
from redif_ray.search.finalists import MEASURED, chosen
from redif_ray.search.records import Records
from redif_ray.search.search import evaluator, search, searched

FOLDER = "adaptive"
SETTINGS = "settings"  # the key of an agent's file that holds what it was trained with


@dataclass(slots=True)
class Job:
    config: Config
    conditions: Conditions
    folder: RunFolder
    stop: StopRequest
    console: Console
    records: Records
    weights: dict[str, float]  # of each reward term in the distance

    @property
    def path(self) -> Path:
        return self.folder.path / FOLDER


def adapt(config: Config, *, resume: bool = False, console: Console | None = None) -> Path:
    """Search, unless that is done, then train agents and compare them. Returns the folder of the search."""
    own = searched(config)
    check(own)
    console = console or Console()
    path = Path(own.run.root) / own.run.name
    if not (resume and (path / "summary.json").exists()):
        search(config, resume=resume, console=console)
    with stop_requests() as stop:
        conditions = preflight(own)
        folder = RunFolder.open(own, resume=True, finished=True)
        try:
            folder.keep_conditions(conditions)
            weights = json.loads((folder.path / "summary.json").read_text())["weights"]
            with Records.open(own, folder) as records:
                _adapt(Job(own, conditions, folder, stop, console, records, weights))
            return folder.path
        except KeyboardInterrupt:  # the second Ctrl-C
            raise stop.interrupted(f"left at once; trained agents are in {folder.path / FOLDER}") from None
        finally:
            folder.close()


def check(config: Config) -> None:
    """Whether agents can be compared with what this configuration searches. Raises ConfigError."""
    s, steps = config.search, config.search.steps or (config.student.steps,)
    if len(steps) < 2:
        raise ConfigError(f"search.steps={list(steps)}: an agent is compared between numbers of steps; expected two")
    if s.adaptive.max_calls < max(steps):
        raise ConfigError(
            f"search.adaptive.max_calls={s.adaptive.max_calls}: expected at least {max(steps)}, the most "
            "of search.steps"
        )
    if s.frechet.weight:
        raise ConfigError(f"search.frechet.weight={s.frechet.weight:g}: agents are rewarded by the image; expected 0")
    if s.network_timestep_trials or s.descent.network_timesteps:
        trials = s.network_timestep_trials
        key = f"network_timestep_trials={trials}" if trials else "descent.network_timesteps=true"
        raise ConfigError(f"search.{key}: agents call the network at the levels that they visit; leave it out")
    if config.reward.runtime_env is not None:
        raise ConfigError(
            "reward.runtime_env: agents are trained in processes of RLlib, which take no environment; "
            "leave it out, and install what the rewards need on the nodes"
        )
    if s.solver != "euler":
        raise ConfigError(f"search.solver={s.solver}: an agent moves by euler; expected that")


def goals(config: Config, found: dict[int, dict[str, Any]]) -> list[Goal]:
    """One a price. found: by N, the row of the searched schedule; an agent starts as the one that is best at its price.

    Without prices, what a call saves on the bank around each N between two others, or between the only two.
    """
    bank = {n: float(found[n]["bank"]) for n in sorted(found)}
    steps = list(bank)
    around = list(zip(steps, steps[2:], strict=False)) or [(steps[0], steps[-1])]
    slopes = [(bank[a] - bank[b]) / (b - a) for a, b in around]
    prices = config.search.adaptive.prices or tuple(slope for slope in slopes if slope > 0)
    if not prices:
        raise ConfigError("more steps save no distance here, so that no price follows; set search.adaptive.prices")
    best = [min(steps, key=lambda n: bank[n] + price * n) for price in prices]
    return [
        Goal(price, n, tuple(found[n]["timesteps"]), config.search.adaptive.max_calls)
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
        with _evaluator(job) as between:
            answers = [between.adapted.remote(aim, _arrays(_agent(job, aim)), job.weights) for aim in aims]
            measured = get(answers, job.stop)
    fronts = [
        Front("searched", list(winners.values())),
        Front("uniform-trailing", [row for row in rows if row["name"] == "uniform_trailing"]),
    ]
    e = job.config.evaluation
    agents = [
        compared(aim, found, fronts[0], resamples=e.bootstrap, seed=job.config.run.seed) | {"file": _file(aim)}
        for aim, found in zip(aims, measured, strict=True)
    ]
    factor = load_teacher(job.config.teacher).calls_per_step(job.config.student.guidance)
    write_results(job.path, job.config, agents, [front for front in fronts if front.rows], factor)
    if job.records.tracker is not None:
        for agent in agents:
            numbers = {key: value for key, value in agent.items() if isinstance(value, float)}
            job.records.tracker.child(f"agent {agent['price']:.4g}", {"price": agent["price"]}, numbers, "FINISHED")
        files = [job.path / "adaptive.md", job.path / "adaptive.png", *(job.path / agent["file"] for agent in agents)]
        job.records.summary({}, files)
    job.console.print(f"agents       {job.path / 'adaptive.md'}", highlight=False, soft_wrap=True)


def _train_missing(job: Job, aims: Sequence[Goal]) -> None:
    missing = [aim for aim in aims if _agent(job, aim) is None]
    if not missing:
        return
    with job.records.timed("adaptive"):
        with _evaluator(job) as between:
            targets = np.concatenate(ray.get(get(between.training_targets.remote(), job.stop)))
            conditions = tuple(get(between.training_conditions.remote(), job.stop))
        reference = ray.put(targets)
        for aim in missing:
            _train(job, aim, conditions, reference)


def _train(job: Job, aim: Goal, conditions: tuple[Any, ...], targets: Any) -> None:
    """Train an agent to its end and keep it."""
    from redif_ray.adaptive import agent  # RLlib takes seconds to import

    training = agent.Training(job.config, aim, job.weights, conditions, targets)
    count, began = job.config.search.adaptive.iterations, time.monotonic()
    teacher, student = job.config.teacher, job.config.search.student
    process = load_model(student or teacher.model, family=teacher.family).process
    with agent.ppo(training, process) as algorithm:
        job.stop.listen()  # again: RLlib may have taken the signals
        for i in range(count):
            job.stop.check()
            seen = agent.progress(algorithm.train())
            if (i + 1) % 10 == 0 or i + 1 == count:
                left = (time.monotonic() - began) / (i + 1) * (count - i - 1)
                line = f"price {aim.price:.4g}  iteration {i + 1:3d}/{count}  distance + price x calls "
                line += f"{-seen['return'] * aim.price:.5f}  {left:4.0f} s left"
                job.console.print(line, highlight=False, soft_wrap=True)
        trained = agent.weights(algorithm)
    with atomic_file(job.path / _file(aim)) as partial:
        save_file(trained, partial, metadata={SETTINGS: _settings(job, aim)})


@contextmanager
def _evaluator(job: Job) -> Any:
    with evaluator(job.config, job.conditions, job.folder, job.stop, AdaptiveActor, AdaptiveEvaluator) as between:
        yield between


def _file(aim: Goal) -> str:
    return f"agent-{aim.price:.6g}.safetensors"


def _settings(job: Job, aim: Goal) -> str:
    a = job.config.search.adaptive.model_dump(exclude={"prices"})
    return json.dumps({"goal": asdict(aim), "adaptive": a, "weights": job.weights}, sort_keys=True)


def _agent(job: Job, aim: Goal) -> dict[str, Tensor] | None:
    """The policy's parameters, where it was trained with these settings."""
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
