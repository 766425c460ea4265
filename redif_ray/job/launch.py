"""`redif distill`: imports the job while Ray starts, because each takes seconds and neither needs the other."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from redif_ray.cluster.connect import joined, started
from redif_ray.config import Config, ConfigError
from redif_ray.config.uris import revealed
from redif_ray.interrupt import Interrupted, noted, stop_requests
from redif_ray.job.rehearsal import rehearse
from redif_ray.models.foreign import read_index
from redif_ray.models.locate import local_folder
from redif_ray.models.quantization import check_installed
from redif_ray.rewards.names import problem
from redif_ray.runs.folder import RunFolder, check_same, check_unfinished
from redif_ray.runs.round_report import RoundReport
from redif_ray.workers.lazy_import import imported

JOB = "redif_ray.job.distill:distill"


def distill(
    config: Config, *, resume: bool, console: Console, on_round: Callable[[RoundReport], object] = lambda _: None
) -> Path:
    """Run the job from the main thread and return the run folder.

    Raises the errors of the job and Interrupted. What can be known without torch is raised at once, and errors of the
    user's own code before Ray starts.
    """
    check(config, resume=resume)
    try:
        with stop_requests() as stop:
            rehearse(config, stop=stop)
        with _job(config) as run:
            folder: Path = run(config, resume=resume, console=console, on_round=on_round)
    except KeyboardInterrupt:  # raised by the second signal, as Ray starts or ends
        raise Interrupted("stopped at once; continue with --resume", noted() or signal.SIGINT) from None
    return folder


def check(config: Config, *, resume: bool) -> None:
    """Raise UserError or RunFinished for what is wrong with a run and can be told without Ray, mostly without torch."""
    revealed(config.model_dump(), "")
    check_model(config)
    if config.networks.quantize != "none":
        check_installed(f"networks.quantize={config.networks.quantize}")
    if config.learner.optimizer != "adamw":
        check_installed(f"learner.optimizer={config.learner.optimizer}")
    for label, term in config.reward.terms.items() if config.reward.runtime_env is None else ():
        if (wrong := problem(label, term.options)) is not None:
            raise ConfigError(wrong)
    if config.checkpoint.upload is None:  # with an upload, the folder to resume may have to be fetched first
        path = RunFolder.place(config, resume=resume)
        if resume and (path / "summary.json").exists():
            from redif_ray.job.batches import with_batches  # imports torch
            from redif_ray.planning.paths import absolute

            check_same(path, with_batches(absolute(config), Console(quiet=True), resume=True))
            check_unfinished(path)


def check_model(config: Config) -> None:
    """Raise UserError where a teacher or a LoRA of the configuration is not there, or has no index."""
    for model in filter(None, (config.teacher.model, config.teacher.base)):
        if (folder := local_folder(model)) is not None:
            read_index(folder)
    for file in config.teacher.lora:
        if not Path(file).exists():
            raise ConfigError(f"teacher.lora={file}: no such file or folder; expected a LoRA's .safetensors")


@contextmanager
def _job(config: Config) -> Iterator[Any]:
    """Yield the imported job, inside a private cluster if the configuration asks for one and there is none yet."""
    if config.ray.address != "local" or joined():
        yield imported(JOB)
        return
    with stop_requests() as stop, ThreadPoolExecutor(1) as beside:
        job = beside.submit(imported, JOB)
        with started(config):  # in the main thread, because Ray's processes end with the thread that starts them
            ready = job.result()
            stop.check()
            yield ready
