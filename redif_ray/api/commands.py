"""Configurations, and the jobs that are run by them: one function for each command, which the command line calls.

A configuration is a recipe with overrides. `recipe` is a YAML file, the name of a shipped one, a mapping such as the
YAML holds, or a Config. `overrides` are the command line's texts, such as "learner.lr=1e-5". `sections` are the same as
keywords: learner={"lr": 1e-5}. A section is merged into the recipe's, a value takes the place of the recipe's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console

from redif_ray.api.changes import changes
from redif_ray.api.inputs import stored
from redif_ray.api.results import DistilledRun, Evaluation, FoundSchedules, SweepResult
from redif_ray.config import Config, assign, parse_override, read_yaml, resolve, validate
from redif_ray.runs.round_report import RoundReport

if TYPE_CHECKING:
    from pydantic import BaseModel

Recipe: TypeAlias = str | Path | Mapping[str, Any] | Config
RunLike: TypeAlias = str | Path | DistilledRun


def load_config(recipe: Recipe, /, *overrides: str, **sections: Any) -> Config:
    """Return the configuration of a recipe with overrides.

    A section is merged into the recipe's, and a value takes the place of the recipe's: reward={"terms": {...}} names
    all terms, reward={"terms.own": {...}} adds one.
    A function may stand where the configuration names one of a file (`reward.terms.NAME`, `learner.loss`, ...), and a
    list of captions or labels, or of mappings with a caption, in `conditions.source`. Both are written to
    `<run.root>/.inputs`, where every worker and a resumed run find them.
    Raises ConfigError that names the key.
    """
    config: Config = resolved(recipe, overrides, sections, Config)
    return config


def distill(
    recipe: Recipe,
    /,
    *overrides: str,
    resume: bool = False,
    on_round: Callable[[RoundReport], object] = lambda _: None,
    console: Console | None = None,
    **sections: Any,
) -> DistilledRun:
    """Distil a teacher into a few-step student, and return the finished run.

    recipe, overrides, sections: see `load_config`.
    resume: continue the run of this name from its last checkpoint; a finished one is returned as it is.
    on_round: function that is called after each round, in this process. An error that it raises ends the run, which can
        be resumed.
    console: where progress is printed; None: the standard output. `Console(quiet=True)` prints nothing.
    Raises UserError, and Interrupted after Ctrl-C (in a notebook: the interrupt of its kernel), once the round in hand
    and its checkpoint are done.
    """
    config = load_config(recipe, *overrides, **sections)
    from redif_ray.job.launch import distill as run

    out = console or Console()
    return DistilledRun.read(_finished(lambda: run(config, resume=resume, console=out, on_round=on_round), out))


def find_schedule(
    recipe: Recipe,
    /,
    *overrides: str,
    adaptive: bool = False,
    resume: bool = False,
    console: Console | None = None,
    **sections: Any,
) -> FoundSchedules:
    """Find the step schedules that bring a teacher, or a trained student, closest to the teacher's images.

    recipe, overrides, sections: see `load_config`; the section `search` says what is searched.
    adaptive: after the search, train agents that choose the levels of each image; `adaptive/adaptive.md` in the
        search's folder compares them. resume, console and errors: see `distill`.
    """
    config, out = load_config(recipe, *overrides, **sections), console or Console()
    if adaptive:
        from redif_ray.adaptive.job import adapt as run
    else:
        from redif_ray.search.search import search as run
    return FoundSchedules.read(_finished(lambda: run(config, resume=resume, console=out), out))


def run_sweep(
    recipe: Recipe,
    /,
    *overrides: str,
    resume: bool = False,
    console: Console | None = None,
    **sections: Any,
) -> SweepResult:
    """Try settings of a recipe over whole runs, and test whether the best settings beat chance.

    recipe, overrides, sections: see `load_config`; the section `sweep` says what varies. resume, console and errors:
    see `distill`.
    """
    config, out = load_config(recipe, *overrides, **sections), console or Console()
    from redif_ray.sweep.sweep import sweep as run

    return SweepResult.read(_finished(lambda: run(config, resume=resume, console=out), out))


def evaluate_run(
    run: RunLike,
    /,
    *overrides: str,
    checkpoint: str = "best",
    size: tuple[int, int] | None = None,
    console: Console | None = None,
    **sections: Any,
) -> Evaluation:
    """Measure a run's student and its control arms again: on other noises, by another judge, at another size.

    run: a run or its folder. overrides, sections: see `load_config`, such as evaluation={"held_out": 10000}.
    checkpoint: best, warm_start, or the name of a folder below `checkpoints/`.
    size: (height, width) of all images in pixels; None: the run's. console and errors: see `distill`.
    """
    texts = [f"{'.'.join(path)}={_typed(value)}" for path, value in changes(sections, Config)]
    from redif_ray.job.evaluate import evaluate

    out = console or Console()
    file = evaluate(_folder(run), [*overrides, *texts], checkpoint=checkpoint, console=out, size=size)
    return Evaluation.read(file)


def export_student(
    run: RunLike, out: str | Path, *, checkpoint: str = "best", schedule: str | Path | None = None
) -> Path:
    """Write a checkpoint of a run as a diffusers folder that loads without redif-ray, and return the folder.

    run: a run or its folder. out: the folder to write, which must not exist. checkpoint: see `evaluate_run`.
    schedule: the `schedule.yaml` of a search; None: the run's own schedule.
    """
    from redif_ray.job.export import export_checkpoint

    return export_checkpoint(_folder(run), Path(out), checkpoint, None if schedule is None else Path(schedule))


def resolved(recipe: Recipe, overrides: tuple[str, ...], given: Mapping[str, Any], model: type[BaseModel]) -> Any:
    """Return the recipe with overrides as a `model`."""
    tree = {} if isinstance(recipe, Mapping) else _tree(recipe)
    recipes = changes(recipe, model) if isinstance(recipe, Mapping) else ()
    for path, value in (*recipes, *(parse_override(text, model) for text in overrides), *changes(given, model)):
        assign(tree, path, value)
    return validate(stored(tree), model)


def _tree(recipe: str | Path | Config) -> dict[str, Any]:
    return recipe.model_dump() if isinstance(recipe, Config) else read_yaml(resolve(recipe))


def _finished(run: Callable[[], Path], console: Console) -> Path:
    """Return the folder of a job; one that was finished before is said to be so, and is a result like any other."""
    from redif_ray.interrupt import Interrupted
    from redif_ray.runs.folder import RunFinished

    try:
        return run()
    except Interrupted as stopped:
        stopped.add_note("in Python: the same call with resume=True")
        raise
    except RunFinished as finished:
        console.print(str(finished), highlight=False, soft_wrap=True)
        return finished.folder


def _typed(value: Any) -> str:
    """Return a value as it is typed after the `=` of an override."""
    return value if isinstance(value, str) else json.dumps(value)


def _folder(run: RunLike) -> Path:
    return run.folder if isinstance(run, DistilledRun) else Path(run)
