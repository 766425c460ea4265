"""The end of a run: every arm on the same held-out noises, the summary, the report, the exported student."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from redif_ray.checkpoint import load_checkpoint, unpack, weights_sha256
from redif_ray.config import Config, ConfigError, assign, parse_override, read_yaml, validate
from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation import plots
from redif_ray.evaluation.arm import evaluate_arm, limits
from redif_ray.evaluation.changes import Change, changes
from redif_ray.evaluation.judge import Judge, load_judge
from redif_ray.evaluation.report import gap_closed, write_report
from redif_ray.evaluation.summary import Summary
from redif_ray.export import export_student
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_model, model_folder
from redif_ray.models.student import make_student, set_weights
from redif_ray.pipeline import build
from redif_ray.pipeline.accounting import Accounts
from redif_ray.pipeline.cluster import connect
from redif_ray.pipeline.learner import Outcome
from redif_ray.pipeline.metrics import read_rows
from redif_ray.pipeline.run_folder import RunError, RunFolder
from redif_ray.pipeline.session import INITIAL, Samples, Session, session
from redif_ray.rewards.base import RewardInputs
from redif_ray.tracking import Tracker, tracking_uri

GAPS = {"teacher_few": "the untrained student", "teacher_best": "the teacher's best schedule at the same NFE"}
GRID = 10  # images a row of the side-by-side picture
ARM_NAMES = {
    "teacher_few": "untrained student", "teacher_best": "teacher, best schedule", "warm_start": "after warm start",
    "student": "trained student", "teacher_full": "teacher, full steps",
}


def finish(run: Session, outcome: Outcome, console: Console) -> None:
    """Evaluate, export, report; `summary.json` is written last, so that its presence means a finished run."""
    config, folder = run.config, run.folder.path
    accounts = Accounts(config, run.teacher)
    accounts.load(outcome.ledger)
    tensors, meta = load_checkpoint(folder / "checkpoints" / "best")
    weights = unpack("deploy", tensors)
    console.print(f"evaluating on {config.evaluation.held_out} held-out noises")
    measured = measure(run, weights, int(meta["version"]), accounts)
    summary = {
        "schema": 1, "name": config.run.name, "student_steps": config.student.steps, "seed": config.run.seed,
        **measured.fields, "calibration": run.folder.state["calibration"], "compute": accounts.ledger.state(),
        "policy_version": int(meta["version"]), "weights_sha256": weights_sha256(weights),
        "mlflow": {"tracking_uri": tracking_uri(config) or "", "run_id": run.folder.state.get("mlflow_run_id") or ""},
        "notes": {**measured.notes, **_work(run)},
    }
    shutil.rmtree(folder / "student", ignore_errors=True)  # of a run that was cut short between export and summary
    _export(run.teacher, config, weights, folder / "student", summary)
    metrics = read_rows(folder / "metrics.jsonl")
    plots.side_by_side(folder / "samples.png", [(label, images[:GRID]) for label, images in measured.images])
    plots.reward_curve(folder / "reward.png", metrics)
    plots.schedule(folder / "schedule.png", build.student_schedule(run.teacher, config.student))
    write_report(folder, summary, metrics)
    _track(run, summary)
    run.folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
    console.print(result_table(summary))
    console.print(_closing_words(run, summary), highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Measured:
    """`fields` of the summary that an evaluation decides, the images of each arm, and what is noted beside them."""

    fields: dict[str, Any]
    images: list[tuple[str, np.ndarray]]
    notes: dict[str, Any]


def measure(run: Session, weights: dict[str, torch.Tensor], version: int, accounts: Accounts) -> Measured:
    """Every arm on the same held-out noises, against the same judge."""
    config, count = run.config, run.config.evaluation.held_out
    judge = load_judge(config.evaluation.judge)
    final = f"final-{version}"
    run.publish(final, {k: v.numpy() for k, v in weights.items()})
    few, warm, student = _held_out(run, INITIAL, accounts), _warm_start(run, accounts), _held_out(run, final, accounts)
    arms = {
        name: None if samples is None else _arm(run, judge, samples, samples.images, config.student.steps)
        for name, samples in (("teacher_few", few), ("warm_start", warm), ("student", student))
    }
    full_calls = solvers.network_calls(config.teacher.solver, config.teacher.steps)
    arms["teacher_full"] = _arm(run, judge, student, student.targets, full_calls)
    name, best = best_teacher(run)
    arms["teacher_best"] = _arm(run, judge, student, best, config.student.steps)
    gains = {"over the untrained student": _gains(run, judge, student, few)}
    if warm is not None:
        gains["over the warm start"] = _gains(run, judge, student, warm)
    rows = [("teacher", student.targets), (ARM_NAMES["teacher_few"], few.images)]
    rows += [] if warm is None else [(ARM_NAMES["warm_start"], warm.images)]
    fields = {
        "held_out": count, "judge": judge.name, "arms": arms, "limits": limits(judge, count, config.run.seed),
    }
    notes = {"teacher_best": name, "student_gain": gains}
    return Measured(fields, [*rows, (ARM_NAMES["student"], student.images)], notes)


def _gains(run: Session, judge: Judge, first: Samples, second: Samples) -> dict[str, Change]:
    return changes(
        judge, torch.from_numpy(first.images), torch.from_numpy(second.images),
        {name: (values, second.terms[name]) for name, values in first.terms.items()},
        resamples=run.config.evaluation.bootstrap, seed=run.config.run.seed,
    )


def _held_out(run: Session, key: str, accounts: Accounts) -> Samples:
    samples = run.sample(Stream.HELD_OUT, run.config.evaluation.held_out, key)
    accounts.add_evaluation(samples.metas)
    return samples


def _warm_start(run: Session, accounts: Accounts) -> Samples | None:
    path = run.folder.path / "checkpoints" / "warm_start"
    if not path.exists() or run.plan.rounds == run.plan.warm_rounds:
        return None
    tensors, meta = load_checkpoint(path)
    key = f"warm-{meta['version']}"
    run.publish(key, {k: v.numpy() for k, v in unpack("deploy", tensors).items()})
    return _held_out(run, key, accounts)


def _arm(run: Session, judge: Judge, paired_with: Samples, images: np.ndarray, nfe: int) -> dict[str, Any]:
    rewards = build.rewards(run.config, run.teacher, "cpu")

    @torch.no_grad()
    def terms(student: torch.Tensor, teacher: torch.Tensor) -> dict[str, torch.Tensor]:
        return rewards(RewardInputs(student, teacher, paired_with.conditions))

    guidance = run.config.student.guidance
    return evaluate_arm(
        torch.from_numpy(images), paired_with.conditions, judge, nfe=nfe * run.teacher.calls_per_step(guidance),
        teacher_images=torch.from_numpy(paired_with.targets), terms=terms,
        resamples=run.config.evaluation.bootstrap, seed=run.config.run.seed,
    )


def best_teacher(run: Session) -> tuple[str, np.ndarray]:
    """The teacher's best named schedule and solver at the student's NFE: chosen on the search noises by paired mse, then
    sampled on the held-out ones. Returns (name, images)."""
    config, steps = run.config, run.config.student.steps
    found = run.sample(Stream.SEARCH, config.evaluation.search, INITIAL)
    scores: dict[tuple[str, str], float] = {}
    for solver in ("euler", "dpmpp_2m"):
        for name in _named_schedules(run, steps):
            images = _teacher_samples(run, Stream.SEARCH, config.evaluation.search, solver, name)
            scores[solver, name] = float(np.square(images - found.targets).mean())
    solver, name = min(scores, key=lambda k: scores[k])
    return f"{solver} on {name}", _teacher_samples(run, Stream.HELD_OUT, config.evaluation.held_out, solver, name)


def _named_schedules(run: Session, steps: int) -> list[str]:
    """The named schedules that the teacher's noise process has, each set of levels once."""
    found: dict[tuple[float, ...], str] = {}
    for name in schedules.NAMES:
        try:
            levels = schedules.build(run.teacher.process, steps, name).levels
        except ValueError:  # made for another noise process, which its message says
            continue
        found.setdefault(tuple(levels.timestep.tolist()), name)
    return list(found.values())


def _teacher_samples(run: Session, stream: Stream, count: int, solver: str, schedule: str) -> np.ndarray:
    """The teacher's images [count, C, H, W] at the student's number of steps."""
    answers = [
        run.reward[i % len(run.reward)].sample.options(num_returns=2).remote(shard, solver, schedule, run.config.student.steps)
        for i, shard in enumerate(run.plan.deploy(stream, count))
    ]
    return np.concatenate(ray.get([data for _, data in answers]))


def _work(run: Session) -> dict[str, Any]:
    """How busy each worker was since this process started, and how often one was lost."""
    status = ray.get(run.coordinator.status.remote())
    workers = {
        name: {"busy": seconds / status["seconds"], "shards": status["shards"][name]}
        for name, seconds in sorted(status["busy"].items())
    }
    return {"workers": workers, "lost": status["lost"]}


def _export(
    teacher: DiffusionModel, config: Config, weights: dict[str, torch.Tensor], out: Path, summary: dict[str, Any] | None
) -> None:
    student = make_student(teacher, config.student.lora)
    set_weights(student, weights)
    export_student(
        student, build.student_schedule(teacher, config.student), out, name=config.run.name,
        guidance=config.student.guidance, teacher=model_folder(config.teacher.model), summary=summary,
    )


def export_checkpoint(run: Path, out: Path, checkpoint: str) -> Path:
    """`redif export`: a checkpoint of a run as a diffusers folder."""
    config, weights, _ = _load(run, checkpoint)
    _export(load_model(config.teacher.model), config, weights, out, None)
    return out


def evaluate(run: Path, overrides: list[str], *, checkpoint: str, console: Console) -> Path:
    """`redif evaluate`: the arms of a run once more; writes evaluation-<held_out>.json beside its summary."""
    config, weights, version = _load(run, checkpoint)
    changed = [o for o in overrides if not o.startswith(("evaluation.", "ray.", "rollout.workers", "reward.workers"))]
    if changed:
        raise ConfigError(f"{changed[0]}: an evaluation may change evaluation.*, ray.* and numbers of workers; expected one of these")
    tree = config.model_dump()
    for text in overrides:
        assign(tree, *parse_override(text))
    tree["tracking"]["uri"] = "off"
    config = validate(tree)
    with RunFolder.reopen(run) as folder, connect(config), session(config, folder) as opened:
        measured = measure(opened, weights, version, Accounts(config, opened.teacher))
        name = f"evaluation-{config.evaluation.held_out}.json"
        folder.write(name, json.dumps({**measured.fields, "notes": measured.notes}, indent=1) + "\n")
    console.print(result_table(measured.fields))
    return run / name


def _load(run: Path, checkpoint: str) -> tuple[Config, dict[str, torch.Tensor], int]:
    """Configuration, deployed weights and policy version of a checkpoint of a run."""
    if not (run / "config.yaml").is_file():
        raise RunError(f"{run} is not a run folder: it has no config.yaml")
    tensors, meta = load_checkpoint(run / "checkpoints" / checkpoint)
    weights = unpack("deploy", tensors) or unpack("average/average", tensors) or unpack("student", tensors)
    return validate(read_yaml(run / "config.yaml")), weights, int(meta.get("version", meta.get("round", 0)))


def _track(run: Session, summary: dict[str, Any]) -> None:
    """Final numbers, pictures, the report and the student, into the run's MLflow run."""
    uri, folder = tracking_uri(run.config), run.folder.path
    if uri is None:
        return
    ray.get(run.writer.flush.remote())
    tracker = Tracker(uri, run.config.tracking.experiment, run.config.run.name, run.folder.state["mlflow_run_id"])
    for arm, values in summary["arms"].items():
        if values:
            scalars = {k: v for k, v in values.items() if isinstance(v, int | float)}
            paired = {f"paired_{k}": v for k, v in values["paired"].items()}
            tracker.summary({f"final/{arm}/{k}": v for k, v in (scalars | paired).items()})
    for path in [*sorted(folder.glob("*.png")), folder / "report.md"]:
        tracker.artifact(path)
    tracker.model(folder / "student")
    tracker.finish()


def result_table(summary: dict[str, Any]) -> Table:
    view = Table(title=f"{summary['held_out']} held-out noises, judge {summary['judge']}", title_justify="left", box=SIMPLE)
    first = next(iter(summary["arms"]["student"]["paired"]))
    for column in ("", "NFE", "Fréchet", "KID x1000", "recall", f"paired {first}"):
        view.add_column(column, justify="left" if not column else "right")
    for name in ARM_NAMES:
        arm = summary["arms"].get(name)
        if arm:
            low, high = arm["frechet_ci"]
            view.add_row(
                ARM_NAMES[name], str(arm["nfe"]), f"{arm['frechet']:.2f} [{low:.2f}, {high:.2f}]",
                f"{1e3 * arm['kid']:.2f} ± {1e3 * arm['kid_se']:.2f}", f"{arm['recall']:.3f}", f"{arm['paired'][first]:.5f}",
            )
    return view


def _sentence(text: str, change: Change) -> str:
    return f"Fréchet change {text}: {change['change']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}]"


def _closing_words(run: Session, summary: dict[str, Any]) -> str:
    folder, uri = run.folder.path, tracking_uri(run.config)
    found = Summary.model_validate(summary)
    shares = {text: gap_closed(found, start) for start, text in GAPS.items()}
    lines = [
        *(f"Fréchet gap closed from {text}: {share:.0%}" for text, share in shares.items() if share is not None),
        *(_sentence(text, change["frechet"]) for text, change in summary["notes"]["student_gain"].items()),
        f"run folder   {folder}",
        f"report       {folder / 'report.md'}",
        f"sample       redif sample {folder} --count 16 --out samples.png",
    ]
    if uri:
        lines.append(f"MLflow       mlflow ui --backend-store-uri {uri}")
    return "\n".join(lines)
