"""The end of a run: evaluation of every arm, summary, report and exported student."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from shlex import quote
from typing import Any

import ray

from redif_ray.checkpoint import weights_sha256
from redif_ray.evaluation import plots
from redif_ray.evaluation.page import write_page
from redif_ray.evaluation.report import claims, gap_closed, poor_teacher, short_report, write_report
from redif_ray.evaluation.summary import Summary
from redif_ray.evaluation.table import result_table
from redif_ray.job.export import export_deployed
from redif_ray.job.measure import measure
from redif_ray.job.progress import END, EVALUATION, Progress
from redif_ray.job.session import Session, beside_driver
from redif_ray.learner.compute import Accounts
from redif_ray.learner.ray_train import Outcome
from redif_ray.learner.validation import deployed_reward
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import replaced
from redif_ray.planning import factory
from redif_ray.rewards.calibration import by_agreement
from redif_ray.runs.deployed import BEST, checkpoint_key, deployed_weights
from redif_ray.runs.jsonl import read_rows
from redif_ray.runs.mlflow_page import mlflow_page


def finish(run: Session, outcome: Outcome, progress: Progress) -> None:
    """Evaluate the run, export its student and write its report.

    `summary.json` is written last, so that its presence means a finished run.
    """
    config, folder = run.config, run.folder.path
    accounts = Accounts(config)
    accounts.load(outcome.ledger)
    weights, version = deployed_weights(folder, BEST)
    progress.begin(EVALUATION)
    progress.at(0, f"evaluating on {config.evaluation.held_out} held-out noises", line=True)
    measured = measure(run, checkpoint_key(BEST, version), accounts, progress)
    progress.begin(END)
    progress.at(0, "exporting the student and writing the report", line=True)
    summary = {
        "schema": 1,
        "name": config.run.name,
        "student_steps": config.student.steps,
        "seed": config.run.seed,
        **measured.fields,
        "calibration": run.folder.state["calibration"],
        "compute": accounts.ledger.state(),
        "policy_version": version,
        "weights_sha256": weights_sha256(weights),
        "mlflow": {"tracking_uri": config.tracking_uri or "", "run_id": run.folder.state.get("mlflow_run_id") or ""},
        "notes": {**measured.notes, **_work(run), **_family(run)},
    }
    shutil.rmtree(folder / "student", ignore_errors=True)  # left by a start that was cut short after its export
    run.get(beside_driver(export_deployed).remote(config, folder, BEST, folder / "student", summary))
    run.get(run.writer.flush.remote())
    metrics = read_rows(folder / "metrics.jsonl")
    plots.side_by_side(folder / "samples.png", measured.pictures)
    plots.reward_curve(folder / "reward.png", *_rewards(run, metrics))
    plots.schedule(folder / "schedule.png", factory.student_schedule(run.teacher, config.student))
    write_report(folder, summary, metrics)
    write_page(folder, measured.pictures, measured.conditions, run.teacher.class_names)
    shutil.rmtree(folder / ".train", ignore_errors=True)  # Ray Train's own files; the checkpoints are elsewhere
    _track(run, summary)
    run.folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
    progress.stop()
    progress.console.print(result_table(summary))
    progress.console.print(_closing_words(run, summary), highlight=False, soft_wrap=True)


def _rewards(run: Session, metrics: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], float | None]:
    """Return the rows of metrics with all rewards in the unit of validation, and the most that a student can have.

    In training, terms may be divided by their spread in each round, which no two rounds share. A run whose only reward
    is learned has no such unit. The teacher's own images have most where all terms measure agreement with them; of
    other terms nobody knows it, and it is None.
    """
    terms, calibration = list(run.config.reward.fixed), run.folder.state["calibration"]
    if not terms:
        return metrics, None

    def in_unit(row: dict[str, Any]) -> dict[str, Any]:
        if not all(f"reward/{name}" in row for name in terms):
            return row
        means = {name: row[f"reward/{name}"] for name in terms}
        return row | {"reward/mean": deployed_reward(run.config, calibration, means)}

    rows = [in_unit(row) for row in metrics]
    if not all(by_agreement(calibration[name]) for name in terms if run.config.reward.terms[name].weight):
        return rows, None
    return rows, deployed_reward(run.config, calibration, {name: calibration[name]["self"] for name in terms})


def _work(run: Session) -> dict[str, Any]:
    """Return each worker's busy share and work units since the coordinator last started, and all losses of the run."""
    status = ray.get(run.coordinator.status.remote())
    workers = {
        name: {"busy": seconds / status["there"][name], "units": status["units"][name]}
        for name, seconds in sorted(status["busy"].items())
    }
    return {"workers": workers, "lost": ray.get(run.writer.all_lost.remote())}


def _family(run: Session) -> dict[str, Any]:
    """Return a note of the user's own code that loaded the models; empty if a built-in family did."""
    family = run.teacher.family
    return {} if family is None else {"family": {**asdict(family), "replaces": replaced(run.teacher)}}


def _track(run: Session, summary: dict[str, Any]) -> None:
    """Send the result, the plots, the report and the student to the run's MLflow run. Raises TrackingError."""
    uri, folder, checked = run.config.tracking_uri, run.folder.path, Summary.model_validate(summary)
    if uri is None:
        return
    from redif_ray.logged_student import log_student  # MLflow takes seconds to import
    from redif_ray.tracking import Tracker, TrackingError, answered

    tracker = Tracker(uri, run.config.experiment, run.config.run.name, run.folder.state["mlflow_run_id"])
    if not run.get(run.writer.flush.remote()):
        raise TrackingError(f"the MLflow store {uri} did not take the run's metrics; start it again and use --resume")
    with answered(uri):
        tracker.describe(short_report(checked))
        for path in [*sorted(folder.glob("*.png")), folder / "report.md", folder / "report.html"]:
            tracker.artifact(path)
        log_student(
            tracker,
            folder / "student",
            takes=_columns(run.teacher),
            image_shape=run.teacher.image_shape,
            step=checked.policy_version,
            metrics=_verdict(checked),
            name=run.config.run.name,
        )
        tracker.finish()


def _asked(model: DiffusionModel) -> str:
    """Return the options of `redif sample` that say what a student of `model` draws."""
    return '--caption "..."' if model.takes_captions else "--count 16"


def _columns(model: DiffusionModel) -> list[str]:
    """Return the columns of conditions in the input of a student of `model`, as a model of MLflow."""
    takes = {"label": model.num_classes, "caption": model.takes_captions, "picture": model.takes_pictures}
    return [name for name, taken in takes.items() if taken]


def _verdict(summary: Summary) -> dict[str, float]:
    """Return the few numbers by which runs are compared, under their names in MLflow."""
    student = summary.arms.student
    numbers = {
        "frechet": student.frechet,
        "gap_closed": gap_closed(summary),
        "recall": student.recall,
        "class_accuracy": student.class_accuracy,
        "caption_cosine": student.caption_cosine,
        "pixel_mse": student.paired["pixel_mse"],
        "diversity": None if summary.diversity is None else summary.diversity.student,
    }
    return {f"verdict/{name}": value for name, value in numbers.items() if value is not None}


def _closing_words(run: Session, summary: dict[str, Any]) -> str:
    folder, checked = run.folder.path, Summary.model_validate(summary)
    gains = {text: change["frechet"] for text, change in summary["notes"]["student_gain"].items()}
    lines = [
        *([poor] if (poor := poor_teacher(checked)) else []),
        *(f"In Fréchet distance the student {claim}" for claim in claims(checked)),
        *(
            f"Fréchet change {text}: {c['change']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}]"
            for text, c in gains.items()
        ),
        f"run folder   {folder}",
        f"report       {folder / 'report.html'}",
        f"sample       redif sample {quote(str(folder))} {_asked(run.teacher)} --out {quote(run.config.run.name)}.png",
        *(f"{'' if i else 'MLflow':<12} {line}" for i, line in enumerate(mlflow_page(run.config, run.folder.state))),
    ]
    return "\n".join(lines)
