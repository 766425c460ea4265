"""`redif benchmark pipeline`: its parts one after the other, each added to the report when it is done."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from redif_ray.benchmark.first_step import first_step
from redif_ray.benchmark.overhead import overhead
from redif_ray.benchmark.overlap import overlap
from redif_ray.benchmark.part import Part
from redif_ray.benchmark.publishing import publishing
from redif_ray.benchmark.scaling import FASHION_MNIST, scaling
from redif_ray.benchmark.soak import soak
from redif_ray.benchmark.startup import startup
from redif_ray.errors import UserError
from redif_ray.pipeline.interrupt import Interrupted, StopRequest, stop_requests

PARTS: dict[str, Callable[[Path, StopRequest, Console], Part]] = {
    "first_step": first_step, "overhead": overhead, "one_core": partial(overhead, pinned=True), "overlap": overlap,
    "scaling": scaling, "control": partial(scaling, sizes=FASHION_MNIST, strong=(16, 64), name="control"),
    "publishing": publishing, "soak": soak, "startup": startup,
}  # fmt: skip


def benchmark(parts: Sequence[str], out: Path, console: Console) -> Path:
    """Measure `parts`, all where none is named, and write `pipeline.json` and `pipeline.md` in the folder `out`.

    Parts that are in the report already and are not asked for stay. Raises UserError for a part that is not known.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise UserError(f"{unknown[0]} is no part of the benchmark; expected some of {', '.join(PARTS)}")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "pipeline.json"
    with stop_requests() as stop:
        for name in parts or PARTS:
            console.print(f"{name} ...", highlight=False)
            with tempfile.TemporaryDirectory(prefix="redif-") as folder, Path(os.devnull).open("w") as nowhere:
                try:
                    part = PARTS[name](Path(folder), stop, Console(file=nowhere))
                except Interrupted:
                    raise Interrupted(f"stopped; what was measured before is in {out}") from None
            found: dict[str, Any] = json.loads(path.read_text())["parts"] if path.exists() else {}
            found[name] = asdict(part) | {"machine": _machine(), "date": time.strftime("%Y-%m-%d")}
            path.write_text(json.dumps({"schema": 1, "parts": found}, indent=1) + "\n")
            (out / "pipeline.md").write_text(_report(found))
            console.print(part.markdown(), highlight=False, soft_wrap=True, markup=False)
    return out / "pipeline.md"


def _report(found: Mapping[str, Any]) -> str:
    parts = []
    for name in PARTS:
        if name in found:
            told = dict(found[name])
            machine, date = told.pop("machine"), told.pop("date")
            parts.append(f"{Part(**told).markdown()}\n\n{date}, {machine}.")
    return "\n\n".join(["# The pipeline, measured", "`redif benchmark pipeline` writes this.", *parts]) + "\n"


def _machine() -> str:
    return f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}"
