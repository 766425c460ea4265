"""A trial of Ray Tune: a run in a thread of the trial's process, with a score after each rung.

The run's workers are children of the trial's actor, so that Ray places them in the trial's placement group.
"""

from __future__ import annotations

import math
import os
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.tune import Trainable
from rich.console import Console

from redif_ray.config import Config
from redif_ray.errors import UserError
from redif_ray.interrupt import Interrupted, StopRequest
from redif_ray.job.distill import run_part
from redif_ray.masking import masked
from redif_ray.runs.folder import RunFinished
from redif_ray.runs.fork import fork
from redif_ray.runs.jsonl import read_rows
from redif_ray.sweep.plan import Run
from redif_ray.sweep.space import configured

POLL_SECONDS = 0.5
LEAVE_SECONDS = 300  # time for a stopped run to finish its round and write a checkpoint


class Board:
    """The actor by which the driver tells all trials to stop."""

    def __init__(self) -> None:
        self.stopping = False

    def stop(self) -> None:
        self.stopping = True

    def stopped(self) -> bool:
        return self.stopping


class RunTrial(Trainable):
    """A trial of a sweep.

    recipe: configuration of the runs before their settings; root: folder of the run folders; board: actor handle of
    `Board`; parent: id of the sweep's MLflow run; variables: environment variables for reward workers.
    """

    def setup(
        self,
        config: dict[str, Any],
        recipe: Config,
        root: str,
        board: Any,
        parent: str | None,
        variables: Mapping[str, str],
    ) -> None:
        os.environ.update(variables)
        self.recipe, self.root, self.board, self.parent = recipe, Path(root), board, parent
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial in this process, which saves the imports."""
        if hasattr(self, "thread"):
            self.cleanup()
        self.run = Run(**new_config)
        named = {"run.name": self.run.name, "run.root": str(self.root), "run.seed": self.run.seed, "sweep": {}}
        self.own, self.folder = configured(self.recipe, self.run.settings | named), self.root / self.run.name
        self.halt, self.error, self.complete = StopRequest(), "", False
        self.thread = threading.Thread(target=self._work, name="run", daemon=True)
        self.thread.start()
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next rung and return {"score"}, {"error"} or {"left"}, see `trials.tuning`."""
        rung = self.run.rungs[self.iteration]
        while True:
            alive = self.thread.is_alive()
            score = score_at(read_rows(self.folder / "metrics.jsonl"), rung, self.recipe.sweep.metric)
            if score is not None and (self.complete or rung < self.run.until):
                return {"score": score}
            if not alive:
                return {"score": math.nan, **({"error": self.error} if self.error else {"left": True})}
            if ray.get(self.board.stopped.remote()):
                self.halt.requested = True
            self.thread.join(POLL_SECONDS)

    def cleanup(self) -> None:
        """Stop the run, also that of a cut trial; the run writes a checkpoint first."""
        self.halt.requested = True
        self.thread.join(LEAVE_SECONDS)

    def _work(self) -> None:
        with (self.root / f"{self.run.name}.log").open("a") as log:
            console = Console(file=log, width=120)
            try:
                resume = (self.folder / "config.yaml").exists()
                if self.run.source is not None and not resume:
                    fork(self.root / self.run.source, self.own)
                    resume = True
                until = None if self.run.finish else self.run.until
                run_part(self.own, self.halt, until=until, parent=self.parent, resume=resume, console=console)
                self.complete = True
                return
            except RunFinished:
                self.complete = True
                return
            except Interrupted:
                return
            except UserError as error:
                self.error = f"{type(error).__name__}: {error}"
            except BaseException as error:  # any failure is the trial's alone; the sweep goes on
                log.write(masked(traceback.format_exc()))
                self.error = masked(f"{type(error).__name__}: {error}; see {log.name}")
            console.print(time.strftime("%F %T"), self.error, highlight=False, markup=False)


def score_at(rows: Sequence[Mapping[str, Any]], rung: int, metric: str) -> float | None:
    """Return the metric of the student that a run would deploy after round `rung`: the best by validation reward.

    As in the learner, students of the warm start count only where none came after. None: `rung` is not validated yet.
    """
    validated = [row for row in rows if "validation/reward" in row and 0 <= row["round"] < rung]
    if not validated or max(row["round"] for row in validated) < rung - 1:
        return None
    candidates = [row for row in validated if row["phase"] != "warm_start"] or validated
    return float(max(candidates, key=lambda row: row["validation/reward"])[metric])
