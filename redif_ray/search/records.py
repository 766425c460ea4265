"""The records of a running search, in its folder and in MLflow."""

from __future__ import annotations

from typing import Any

from redif_ray.diffusion.schedules import Times
from redif_ray.search.plan import Trial
from redif_ray.trials import records


class Records(records.Records):
    """Records with a nested MLflow run for each trial, and with the results of gradient descent."""

    def trial(self, trial: Trial) -> None:
        """Log a finished trial as a nested run of MLflow, if tracking is on."""
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
        self.write(self.tracker.child, name, params, metrics, status)

    def descent(self, steps: int) -> tuple[float, Times] | None:
        """Return the kept (score on the bank, times) of gradient descent at N = `steps`, or None if there is none."""
        kept: dict[str, Any] = self.folder.state.get("descents", {})
        if str(steps) not in kept:
            return None
        score, levels, network_timesteps = kept[str(steps)]
        return score, Times(tuple(levels), None if network_timesteps is None else tuple(network_timesteps))

    def keep_descent(self, steps: int, score: float, times: Times) -> None:
        """Keep the result of gradient descent at N = `steps`, so that a resumed search does not repeat the descent."""
        self.folder.update_state(descents={**self.folder.state.get("descents", {}), str(steps): (score, *times)})
