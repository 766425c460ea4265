"""`redif evaluate`: measure a run's student and its controls again: other noises, another judge, another size."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from rich.console import Console

from redif_ray.cluster.connect import connect
from redif_ray.config import LEARNED, Config, ConfigError, override, validate
from redif_ray.config.changes import may_differ
from redif_ray.evaluation.table import result_table
from redif_ray.interrupt import stop_requests
from redif_ray.job.batches import with_batches
from redif_ray.job.measure import measure
from redif_ray.job.preflight import check_judge
from redif_ray.job.progress import EVALUATION, Progress
from redif_ray.job.rehearsal import rehearse
from redif_ray.job.session import session
from redif_ray.learner.compute import Accounts
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import teacher_outline
from redif_ray.planning import factory
from redif_ray.planning.nodes import share_cards
from redif_ray.planning.paths import found_encoder
from redif_ray.runs import timeline
from redif_ray.runs.deployed import checkpoint_key, checkpoint_named, deployed_weights
from redif_ray.runs.folder import RunFolder, stored_config
from redif_ray.workers.runtime_env import handed_over

log = logging.getLogger(__name__)
NO_LEARNER = {"workers": 1, "fsdp": False, "cpus": 0, "gpus": 0, "resources": {}, "labels": {}}


def evaluate(
    run: Path, overrides: list[str], *, checkpoint: str, console: Console, size: tuple[int, int] | None = None
) -> Path:
    """Run `redif evaluate`: measure the arms of a run again and return the path of evaluation-<held_out>.json.

    run: run folder. overrides: KEY=VALUE texts. checkpoint: name of a folder below `checkpoints/`. size: (height,
    width) of all images in pixels; None: the run's. What is measured at another size than the run's lies in the
    folder <height>x<width> below the run folder.
    Raises UserError, and Interrupted after Ctrl-C or SIGTERM.
    """
    run = run.resolve()  # a relative path would mean another folder in the workers' working directories
    stored = stored_config(run)
    config = evaluated(stored, overrides, size)
    checkpoint = checkpoint_named(run, checkpoint)
    _, version = deployed_weights(run, checkpoint)  # raises for a checkpoint that is missing or broken
    rehearse(config)
    config = _placed(config, run)
    teacher = teacher_outline(config.teacher)
    own = teacher if config.teacher == stored.teacher else teacher_outline(stored.teacher)
    _check(config, own, teacher)
    config = with_batches(config, console, roles=("rollout", "reward"))
    with stop_requests("nothing was written; run the command again") as stop, RunFolder.reopen(run) as folder:
        conditions = folder.conditions() or factory.conditions(config, teacher)
        folder.keep_conditions(conditions)
        with connect(config), session(config, conditions, folder, stop) as opened:
            opened.ready(console.print)
            opened.growth.start()
            with Progress(console, {EVALUATION: 1.0}, known=False) as progress:
                measured = measure(opened, checkpoint_key(checkpoint, version), Accounts(config), progress)
        name = f"evaluation-{config.evaluation.held_out}.json"
        if teacher.image_shape != own.image_shape:
            name = f"{'x'.join(str(edge) for edge in teacher.image_shape[1:])}/{name}"
        result = {**measured.fields, "notes": measured.notes}
        folder.write(name, json.dumps(result, indent=1) + "\n")
        timeline.draw(folder)
    console.print(result_table(result))
    return run / name


def _placed(config: Config, run: Path) -> Config:
    """Return the configuration of the run in the folder `run`, also where another run has its first place by now."""
    return config.model_copy(update={"run": config.run.model_copy(update={"root": str(run.parent), "name": run.name})})


def _check(config: Config, own: DiffusionModel, teacher: DiffusionModel) -> None:
    """Raise UserError where the judge or a reward does not take the images of `teacher`, before Ray starts.

    own: the teacher at the run's size.
    """
    check_judge(config, teacher.image_shape, config.evaluation.held_out)
    handed_over(config.reward)
    if LEARNED in config.reward.terms and teacher.image_shape != own.image_shape:
        raise ConfigError(
            f"reward.terms.{LEARNED} has learned from images of {own.image_shape} and takes no others, the teacher "
            f"makes {teacher.image_shape}; leave out --height and --width"
        )
    if config.reward.runtime_env is None:  # otherwise only reward workers can build the terms
        factory.rewards(config, teacher, "cpu")


def evaluated(config: Config, overrides: list[str], size: tuple[int, int] | None = None) -> Config:
    """Return a run's configuration for its evaluation: with overrides, without tracking and a learner's resources.

    size: (height, width) of all images in pixels; None: the run's.
    On a private cluster of a machine without a GPU, what a run computed on GPUs is computed on CPUs, in float32.
    Raises ConfigError for an override of a key that an evaluation may not change.
    """
    changed = [o for o in overrides if not may_differ(o.partition("=")[0].strip(), "evaluate")]
    if changed:
        raise ConfigError(
            f"{changed[0]}: an evaluation may change evaluation.*, ray.*, networks.precision, and the numbers, GPUs, "
            "resources and labels of workers, and the size by --height and --width; leave this override out"
        )
    tree = config.model_dump()
    if size is not None:
        tree["teacher"]["height"], tree["teacher"]["width"] = size
    for text in overrides:
        override(tree, text)
    asks = tree["rollout"]["gpus"] or tree["reward"]["gpus"]
    if asks and tree["ray"]["address"] == "local" and not torch.cuda.is_available():
        log.warning("this machine has no GPU, so the evaluation computes on CPUs, in float32")
        for text in ("rollout.gpus=0", "reward.gpus=0", "networks.precision=float32"):
            override(tree, text)
    part = tree["rollout"]["gpus"] + tree["reward"]["gpus"]
    if share_cards(config) and 0 < part < 1:  # the workers have the ranks' part too, or two pairs would share a GPU
        for role in ("rollout", "reward"):
            tree[role]["gpus"] /= part
    tree["tracking"]["uri"] = "off"
    tree["learner"] |= NO_LEARNER
    for place, key in ((tree["evaluation"], "judge"), (tree["evaluation"]["diversity"], "encoder")):
        if place[key] is not None:
            place[key] = found_encoder(place[key])  # workers have other working directories
    evaluation_config: Config = validate(tree)
    return evaluation_config
