"""A trial as Ray Tune sees it: a whole run in a thread of the trial's process, and a score after each rung.

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
from redif_ray.runs.folder import RunFinished
from redif_ray.runs.fork import fork
from redif_ray.runs.jsonl import read_rows
from redif_ray.sweep.plan import Run
from redif_ray.sweep.space import configured

POLL_SECONDS = 0.5
LEAVE_SECONDS = 300  # that a run which is cut gets to finish its round and keep a checkpoint


class Board:
    """Where the driver says that trials are to stop."""

    def __init__(self) -> None:
        self.stopping = False

    def stop(self) -> None:
        self.stopping = True

    def stopped(self) -> bool:
        return self.stopping


class RunTrial(Trainable):
    """root: of the trials' run folders; parent: the sweep's MLflow run; variables: for the runs to hand over."""

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
        """The next trial in this process, which has imported all that it needs."""
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
        """Wait for the next rung: {"score"}, {"error"} or {"left"}."""
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
        """Also of a trial that is cut: its run keeps a checkpoint and leaves."""
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
            except BaseException as error:  # the trial's failure, whatever it is; the sweep goes on
                traceback.print_exc(file=log)
                self.error = f"{type(error).__name__}: {error}; see {log.name}"
            console.print(time.strftime("%F %T"), self.error, highlight=False, markup=False)


def score_at(rows: Sequence[Mapping[str, Any]], rung: int, metric: str) -> float | None:
    """The metric of the student that a run would deploy after round `rung`: its best by validation reward.

    As in the learner, the warm start's students count only where nothing came after. None: not yet validated.
    """
    seen = [row for row in rows if "validation/reward" in row and 0 <= row["round"] < rung]
    if not seen or max(row["round"] for row in seen) < rung - 1:
        return None
    own = [row for row in seen if row["phase"] != "warm_start"] or seen
    return float(max(own, key=lambda row: row["validation/reward"])[metric])
