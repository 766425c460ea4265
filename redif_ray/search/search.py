"""The job of `redif search`: from a configuration to `schedule.yaml`, the best schedule for each number of steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from rich.console import Console

from redif_ray.cluster.connect import connect
from redif_ray.cluster.placement import reserved
from redif_ray.config import Config, ConfigError, Student
from redif_ray.data.conditions import Conditions
from redif_ray.diffusion import schedules
from redif_ray.diffusion.schedules import Schedule, Times
from redif_ray.errors import UserError
from redif_ray.evaluation.encoders import make_encoder
from redif_ray.interrupt import Interrupted, StopRequest, stop_requests
from redif_ray.job.batches import with_batches
from redif_ray.job.preflight import preflight
from redif_ray.job.session import all_ready, beside_driver, one_thread, workers
from redif_ray.models.registry import teacher_outline
from redif_ray.planning import factory
from redif_ray.planning.paths import absolute
from redif_ray.runs.backup import refuse
from redif_ray.runs.folder import RunFolder
from redif_ray.search import gits
from redif_ray.search.evaluation import Evaluation
from redif_ray.search.evaluator import Evaluator, SearchActor
from redif_ray.search.finalists import Finalist, measure, write_results
from redif_ray.search.job import Job
from redif_ray.search.plan import Plan, Trial
from redif_ray.search.records import Records
from redif_ray.trials.journal import Journal
from redif_ray.trials.names import SEARCH, TRIALS
from redif_ray.trials.tuning import TRIAL, run_trials, tidy

# Names of the searched schedules in the table -> whether the network's timesteps differ from those of the levels.
KINDS = {"searched": False, "searched, network timesteps": True}


def search(config: Config, *, resume: bool = False, console: Console | None = None) -> Path:
    """Run the search to its end and return its folder, `<run.root>/<run.name>-search`. Raises errors as `distill`."""
    with stop_requests() as stop:
        config = searched(config)
        conditions = preflight(config)
        _check_size(config)
        if config.search.frechet.weight:
            make_encoder(config.search.frechet.encoder, teacher_outline(config.teacher).image_shape)
        stop.check()
        console = console or Console()
        config = with_batches(config, console, resume=resume, roles=("reward",))
        folder = RunFolder.open(config, resume=resume)
        try:
            folder.keep_conditions(conditions)
            with Records.open(config, folder) as records:
                _search(config, conditions, folder, records, stop, console)
            return folder.path
        except Interrupted:
            raise
        except Exception as error:
            folder.keep_failure(error)
            raise
        except KeyboardInterrupt:  # the second Ctrl-C
            raise stop.interrupted(f"the search left at once; finished trials are in {folder.path}") from None
        finally:
            folder.close()


def _check_size(config: Config) -> None:
    """Raise ConfigError where the searched student makes images of another size than the teacher."""
    if config.search.student is None:
        return
    teacher, student = (teacher_outline(config.teacher, source) for source in (None, config.search.student))
    if student.image_shape != teacher.image_shape:
        _, height, width = student.image_shape
        raise ConfigError(
            f"search.student={config.search.student} makes images of {student.image_shape}, the teacher of "
            f"{teacher.image_shape}; set teacher.height={height} teacher.width={width}"
        )


def searched(config: Config) -> Config:
    """Return the configuration of the search for a recipe.

    Reward workers do all of the work, so rollout and learner get no resources; a learned reward term is left out. A
    file that `student.schedule` names is replaced by the default schedule: it may be the file that this search writes.
    """
    refuse(config, "search")
    if config.student.schedule not in schedules.NAMES:
        config = config.model_copy(
            update={"student": config.student.model_copy(update={"schedule": Student().schedule})}
        )
    config = absolute(config)
    tree = config.model_dump()
    tree["run"]["name"] += SEARCH
    tree["tracking"]["experiment"] += SEARCH  # a run for each trial would hide the others on the experiment's page
    tree["rollout"] |= {"cpus": 0, "gpus": 0, "resources": {}, "labels": {}}
    tree["learner"] |= {"workers": 1, "fsdp": False, "cpus": 0, "gpus": 0, "resources": {}, "labels": {}}
    tree["reward"]["terms"] = {name: tree["reward"]["terms"][name] for name in config.reward.fixed}
    if config.search.student is not None:
        tree["search"]["student"] = str(_student(Path(config.search.student)).resolve())
    return Config.model_validate(tree)


def _student(path: Path) -> Path:
    """Return the exported student in a run's folder, or `path` itself if it is an exported student."""
    folder = path / "student" if (path / "config.yaml").is_file() else path
    if not (folder / "model_index.json").is_file():
        raise ConfigError(
            f"search.student={path}: no model_index.json in {folder}; give a finished run or an exported student"
        )
    return folder


def _search(
    config: Config, conditions: Conditions, folder: RunFolder, records: Records, stop: StopRequest, console: Console
) -> None:
    model = teacher_outline(config.teacher, config.search.student)
    model.parts_sha256(factory.digests(config))  # computed once, before every worker asks for the digests
    with connect(config), evaluator(config, conditions, folder, stop) as actor:
        job = Job(config, folder, model, actor, stop, console, records)
        steps = config.search.steps or (config.student.steps,)
        starts = _starts(job, steps)
        job.weights = _weights(job, next(iter(starts[steps[0]].values())))
        finalists = [Finalist(n, name, s.times.levels, "start") for n in steps for name, s in starts[n].items()]
        if config.search.engine != "gradient":
            finalists += _tuned(job, starts)
        if config.search.engine != "tune":
            finalists += _descended(job, starts)
        stop.check()
        result = measure(job, sorted(finalists, key=lambda finalist: finalist.steps))
        write_results(job, result)
    tidy(folder.path)


@contextmanager
def evaluator(
    config: Config,
    conditions: Conditions,
    folder: RunFolder,
    stop: StopRequest,
    worker: type = SearchActor,
    kind: type = Evaluator,
) -> Iterator[Any]:
    """Start the workers and their evaluator, yield the evaluator's handle, and stop all actors at the end of the block.

    worker, kind: the actor class of the workers, and the class of the evaluator.
    """
    with one_thread(), reserved({"search": config.reward}, None, stop) as places, folder.token() as token:
        hired = partial(workers, worker, "search", config.reward, config=config, token=token, places=places)
        first, more = (list(hired(later=later).values()) for later in (False, True))
        handle = beside_driver(kind, max_concurrency=1000).remote(config, conditions, [*first, *more])
        try:
            all_ready(first, stop)
            yield handle
        finally:
            for actor in (*first, *more, handle):
                ray.kill(actor)


def _starts(job: Job, steps: tuple[int, ...]) -> dict[int, dict[str, Schedule]]:
    """Return, by N and name, every named schedule and the GITS schedule of each discount."""
    process, levels = job.model.process, gits.grid(job.model.process)
    for base in job.config.search.bases or ():
        schedules.build(process, steps[0], base)  # raises where the process has no such schedule
    cost = job.get(job.evaluator.costs.remote())
    starts: dict[int, dict[str, Schedule]] = {}
    for n in steps:
        starts[n] = schedules.named(process, n)
        for gamma in gits.GAMMAS:
            times = levels.levels.timestep[gits.best_path(cost, n, gamma)].tolist()
            starts[n][f"gits {gamma:g}"] = schedules.explicit(process, times, f"gits {gamma:g}")
    return starts


def _weights(job: Job, reference: Schedule) -> dict[str, float]:
    """Return the weight of each reward term in the distance.

    The weight of a normalised term is divided by the term's std over the bank, on the images of `reference`.
    """
    terms = job.get(job.evaluator.bank_terms.remote(reference.times, job.config.search.rungs[-1]))
    weights = {}
    for name, term in job.config.reward.terms.items():
        spread = float(np.std(terms[name])) if term.normalise == "std" else 1.0
        if spread == 0:
            raise UserError(
                f"reward.terms.{name}.normalise=std: the term is constant over the bank; set normalise=none"
            )
        weights[name] = term.weight / spread
    return weights


def _tuned(job: Job, starts: dict[int, dict[str, Schedule]]) -> list[Finalist]:
    """Run the trials in Ray Tune and return the best finished ones at each N."""
    config = job.config
    plan = Plan(config.search, config.run.seed, job.model.process, starts)
    total, began = len(plan.slots), time.monotonic()

    def report(trial: Trial) -> None:
        job.records.trial(trial)
        if trial.error is not None:
            job.console.print(f"trial {trial.number} at {trial.steps} steps failed: {trial.error}", highlight=False)
        done = len(plan.trials)
        if done % 20 == 0 or done == total:
            left = (time.monotonic() - began) / max(1, done - restored) * (total - done)
            best = "  ".join(f"N={n} {_best_so_far(plan, n)}" for n in starts)
            line = f"trial {done:4d}/{total}  best {best}  {left:4.0f} s of trials left"
            job.console.print(line, highlight=False, soft_wrap=True)

    journal = Journal(plan, job.folder.path / TRIALS, report)
    restored = len(plan.trials)
    job.folder.update_state(trials=total)
    if restored < total:
        which = ", ".join(map(str, starts))
        job.console.print(
            f"{total - restored} of {total} schedules of {which} steps are to be tried, in {job.folder.path}; best: "
            "the least distance of their images from the teacher's, by the reward's terms. The best are measured on "
            "held-out noises then, beside the named ones",
            highlight=False,
            soft_wrap=True,
        )
    with job.records.timed("tune"):
        trainable = tune.with_parameters(
            Evaluation, evaluator=job.evaluator, rungs=config.search.rungs, weights=job.weights
        )
        run_trials(journal, trainable, job.stop, resources=TRIAL, concurrent=config.search.concurrent)
    job.stop.check()
    failed = [t for t in plan.trials.values() if t.error is not None]
    if len(failed) == total:
        raise UserError(f"all {total} trials of the search failed; the first error: {failed[0].error}")
    best = [(name, _best(plan, n, other)) for n in starts for name, other in KINDS.items()]
    return [
        Finalist(t.steps, name, t.times.levels, "tune", t.scores[-1], t.times.network_timesteps)
        for name, t in best
        if t
    ]


def _best_so_far(plan: Plan, steps: int) -> str:
    scores = [t.scores[-1] for other in KINDS.values() if (t := _best(plan, steps, other))]
    return f"{min(scores):.5f}" if scores else "-"


def _best(plan: Plan, steps: int, other: bool) -> Trial | None:
    """Return the best trial on the whole bank, or None if there is none.

    There is none with network timesteps of their own where all these trials were worse and cut.
    """
    try:
        return plan.best(steps, other=other)
    except ValueError:
        return None


def _descended(job: Job, starts: dict[int, dict[str, Schedule]]) -> list[Finalist]:
    """Return, by N, the best schedule on the bank among the best start and the results of gradient descent from it."""
    missing = [n for n in starts if job.records.descent(n) is None]
    with job.records.timed("gradient"):
        bases = {n: min((_score(job, s.times), s.times.levels) for s in starts[n].values())[1] for n in missing}
        asked = {n: job.evaluator.descend.remote(bases[n], job.weights) for n in missing}
        for n in missing:
            candidates = [Times(bases[n]), *job.get(asked[n])]
            scores = [_score(job, times) for times in candidates]
            best = min(scores)
            job.records.keep_descent(n, best, candidates[scores.index(best)])
            job.console.print(f"gradient  N={n} {best:.5f}", highlight=False)
    kept = {n: result for n in starts if (result := job.records.descent(n))}
    return [
        Finalist(n, "searched by gradient", times.levels, "gradient", score, times.network_timesteps)
        for n, (score, times) in kept.items()
    ]


def _score(job: Job, times: Times) -> float:
    value: float = job.get(job.evaluator.scores.remote(times, job.config.search.rungs[-1], job.weights))
    return value
