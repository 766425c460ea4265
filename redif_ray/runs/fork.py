"""A run that starts from the state of another run: the newest checkpoint, the best student and the metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from redif_ray.config import Config, dump
from redif_ray.data.conditions import CONDITIONS
from redif_ray.files import atomic_folder
from redif_ray.planning.paths import absolute
from redif_ray.runs.folder import RunError, latest_checkpoint


def fork(source: Path, config: Config) -> None:
    """Create the run folder of `config`, which must not exist, so that `--resume` continues from the state of `source`.

    The folder is created whole or not at all, and gets an MLflow run of its own. Raises RunError.
    """
    config = absolute(config)
    path = Path(config.run.root) / config.run.name
    newest = latest_checkpoint(source / "checkpoints")
    if newest is None:
        raise RunError(f"{source} has no checkpoint that {path} could start from")
    try:
        with atomic_folder(path) as partial:
            for kept in (newest, source / "checkpoints" / "best", source / "checkpoints" / "warm_start"):
                if kept.exists():
                    shutil.copytree(kept, partial / "checkpoints" / kept.name)
            for name in ("metrics.jsonl", CONDITIONS):
                shutil.copyfile(source / name, partial / name)
            state = json.loads((source / "run.json").read_text())
            (partial / "run.json").write_text(json.dumps({"calibration": state["calibration"]}, indent=1) + "\n")
            (partial / "config.yaml").write_text(dump(config))
    except OSError as error:
        raise RunError(f"cannot create {path} from the state of {source}: {error}") from error
