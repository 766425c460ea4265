"""The job of `redif sweep`: runs with settings from a space, then repeats that compare the best with the recipe."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from redif_ray.cluster.connect import connect, needed
from redif_ray.cluster.placement import bundles
from redif_ray.config import Config, dump
from redif_ray.errors import UserError
from redif_ray.interrupt import Interrupted, StopRequest, stop_requests
from redif_ray.job.batches import with_batches
from redif_ray.job.preflight import check_rounds, preflight
from redif_ray.job.session import beside_driver
from redif_ray.planning import cost
from redif_ray.planning.paths import absolute
from redif_ray.runs.backup import refuse
from redif_ray.runs.folder import RunFolder
from redif_ray.runs.status import duration
from redif_ray.sweep.job import Job
from redif_ray.sweep.plan import Plan, Trial
from redif_ray.sweep.population import Population
from redif_ray.sweep.repeats import Repeats
from redif_ray.sweep.report import settings_text, write_results
from redif_ray.sweep.selection import Selection
from redif_ray.sweep.space import configured, read_space
from redif_ray.sweep.trial import Board, RunTrial
from redif_ray.trials.journal import Journal
from redif_ray.trials.names import SWEEP, TESTS, TRIALS
from redif_ray.trials.records import Records
from redif_ray.trials.tuning import TRIAL, run_trials, tidy
from redif_ray.workers.runtime_env import handed_over

RUNS = "trials"
RETRIES = 3  # restarts of a trial whose process is lost; the run resumes from its checkpoint
POLL_SECONDS = 0.5


def sweep(config: Config, *, resume: bool = False, console: Console | None = None) -> Path:
    """Run the job to its end and return its folder, `<run.root>/<run.name>-sweep`. Raises the errors of `distill`."""
    with stop_requests() as stop:
        refuse(config, "sweep")
        config = absolute(config)
        space = read_space(config)
        plan: Selection | Population = (
            Population(config, space) if config.sweep.scheduler == "pbt" else Selection(config, space)
        )
        check_rounds(config)
        preflight(config)
        stop.check()
        console = console or Console()
        config = configured(config, {"run.name": config.run.name + SWEEP, **_cpus(config)})
        config = with_batches(config, console, resume=resume, runs=config.sweep.concurrent)
        folder = RunFolder.open(config, resume=resume)
        try:
            with Records.open(config, folder) as records:
                uri = config.tracking_uri or "off"
                recipe = configured(config, {"tracking.uri": uri, "ray.num_cpus": None})
                _sweep(Job(config, recipe, folder, records, stop, console), plan)
            return folder.path
        except Interrupted:
            raise
        except Exception as error:
            folder.keep_failure(error)
            raise
        except KeyboardInterrupt:  # the second Ctrl-C
            raise stop.interrupted(f"stopped at once; the finished trials are in {folder.path}") from None
        finally:
            folder.close()


def _cpus(config: Config) -> dict[str, Any]:
    """Return the setting by which a private cluster has CPUs for all concurrent trials, or {} for any other cluster."""
    if config.ray.address != "local" or config.ray.num_cpus is not None:
        return {}
    return {"ray.num_cpus": max(os.cpu_count() or 1, math.ceil(config.sweep.concurrent * needed(config)["CPU"]))}


def _sweep(job: Job, plan: Selection | Population) -> None:
    job.folder.update_state(trials=len(plan.slots))
    with connect(job.config):
        expected = cost.estimate(job.recipe)
        trained = expected.total_seconds - expected.seconds["evaluation"]  # the rest of a run is the same
        tests = 2 * job.config.sweep.repeats * expected.total_seconds
        with job.records.timed("trials"):
            _run(job, plan, TRIALS, "runs are to be trained", trained, after=tests)
        best = plan.best()
        job.console.print(f"best: {best.run}, {job.config.sweep.metric} {best.score:+.5f}", highlight=False)
        repeats = Repeats(job.config, plan.history())
        job.folder.update_state(tests=len(repeats.slots))
        what = "whole runs are to test the best settings and the recipe, on seeds that had no part in the choice"
        with job.records.timed("repeats"):
            _run(job, repeats, TESTS, what, expected.total_seconds)
    tidy(job.folder.path)
    job.folder.write(
        "best.yaml",
        dump(
            configured(
                job.recipe,
                {
                    **best.settings,
                    "run.name": f"{job.recipe.run.name.removesuffix(SWEEP)}-best",
                    "sweep": {},
                    "tracking": job.config.tracking.model_dump(),
                },
            )
        ),
    )
    write_results(job, plan, repeats)


def _run(job: Job, plan: Plan, journal_name: str, what: str, each: float, after: float = 0.0) -> None:
    """Run the trials that a plan still lacks. Raises UserError where every trial failed.

    what: in words. each: the expected seconds of a trial; after: of what follows them.
    """
    total, began = len(plan.slots), time.monotonic()

    def report(trial: Trial) -> None:
        done = len(plan.trials)
        taken = (time.monotonic() - began) / max(1, done - restored)
        left = duration(taken * (total - done) + after * taken / each)
        result = f"failed: {trial.error}" if trial.error else f"{trial.score:+.5f}"
        job.console.print(
            f"{done:3d}/{total}  {trial.run:<14} {result}  {settings_text(trial.settings)}  about {left} left",
            highlight=False,
            soft_wrap=True,
        )

    journal = Journal(plan, job.folder.path / journal_name, report)
    restored = len(plan.trials)
    runs = job.folder.path / RUNS
    runs.mkdir(exist_ok=True)
    if (lacking := total - restored) > 0:
        then = f", and about {duration(after)} of tests follow" if after else ""
        job.console.print(
            f"{lacking} of {total} {what}: about {duration(each)} each and {duration(lacking * each)} one after the "
            f"other{then}. They are in {runs}, each with what it prints in a .log beside it",
            highlight=False,
            soft_wrap=True,
        )
    tracker = job.records.tracker
    with _board(job.stop) as board:
        trial = tune.with_parameters(
            RunTrial,
            recipe=job.recipe,
            root=str(runs),
            board=board,
            parent=tracker.run_id if tracker else None,
            variables=handed_over(job.recipe.reward),
        )
        run_trials(journal, trial, job.stop, resources=_bundles(job.recipe), concurrent=_room(job), retries=RETRIES)
    job.stop.check()
    failed = [t for t in plan.trials.values() if t.error is not None]
    if total and len(failed) == total:
        raise UserError(f"all {total} runs failed; the first one with {failed[0].error}")


@contextmanager
def _board(stop: StopRequest) -> Iterator[Any]:
    """Start the board that tells trials that the user asked to stop; Tune itself would wait for them."""
    board, over = beside_driver(Board).remote(), threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            if stop.requested:
                board.stop.remote()

    thread = threading.Thread(target=watch, name="board", daemon=True)
    thread.start()
    try:
        yield board
    finally:
        over.set()
        thread.join()
        ray.kill(board)


def _bundles(config: Config) -> Any:
    """Return the placement group of a trial and its rollout and reward workers. Ray Train makes one for the ranks."""
    asked, labels = bundles((config.rollout, config.reward))
    return tune.PlacementGroupFactory([dict(TRIAL), *asked], bundle_label_selector=[{}, *labels])


def _room(job: Job) -> int:
    """Return the number of trials to run at once: as many as the cluster has room for with all of their roles.

    Otherwise a trial could wait for its learner while its workers hold the room of another trial. The known trials of a
    proposal do not depend on this number.
    """
    resources = ray.cluster_resources()
    fits = [int((resources.get(kind, 0) + 1e-6) // need) for kind, need in needed(job.recipe).items() if need]
    return max(1, min([job.config.sweep.concurrent, *fits]))
