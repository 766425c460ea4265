"""What a search keeps in its folder and tells MLflow while it runs."""

from __future__ import annotations

from typing import Any

from redif_ray.diffusion.schedules import Times
from redif_ray.search.plan import Trial
from redif_ray.trials import records


class Records(records.Records):
    """With a nested run a trial, and what the levels' own gradient has found."""

    def trial(self, trial: Trial) -> None:
        if self.tracker is None:
            return
        name = f"N={trial.steps} {trial.stage} {trial.number}"
        params = {"steps": trial.steps, "stage": trial.stage, **trial.params, "timesteps": trial.timesteps}
        if trial.network_timesteps is not None:
            params["network_timesteps"] = trial.network_timesteps
        if trial.error is not None:
            params["error"] = trial.error
        metrics = {f"distance/{i}": score for i, score in enumerate(trial.scores)}
        if trial.scores:
            metrics["distance"] = trial.scores[-1]
        status = "FINISHED" if trial.error is None else "FAILED"
        self.thread.submit(self.tracker.child, name, params, metrics, status)

    def descent(self, steps: int) -> tuple[float, Times] | None:
        """(score on the bank, times) of the gradient's schedule, where a search that was cut short had found it."""
        known: dict[str, Any] = self.folder.state.get("descents", {})
        if str(steps) not in known:
            return None
        score, levels, network_timesteps = known[str(steps)]
        return score, Times(tuple(levels), None if network_timesteps is None else tuple(network_timesteps))

    def keep_descent(self, steps: int, score: float, times: Times) -> None:
        self.folder.update_state(descents={**self.folder.state.get("descents", {}), str(steps): (score, *times)})
