"""`redif doctor CONFIG`: compare the devices, memory and disk that a run needs with those available."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.table import Table

from redif_ray.cluster.connect import needed, resources
from redif_ray.config import Config
from redif_ray.data.conditions import Conditions
from redif_ray.models.registry import teacher_outline
from redif_ray.planning import cost, messages
from redif_ray.planning.disk import disk
from redif_ray.planning.host_memory import main_memory_mb
from redif_ray.planning.memory import OVERHEAD_MB, Footprint, Footprints, footprints, workers


@dataclass(frozen=True, slots=True)
class Need:
    """One need of a run.

    what: name of the resource. needed, available: amounts in `unit`; available None: unknown from this machine.
    """

    what: str
    needed: float
    unit: str
    available: float | None

    @property
    def met(self) -> bool:
        return self.available is None or self.needed <= self.available


def needs(config: Config, found: Footprints) -> list[Need]:
    """List the needs of a run: devices of the cluster, memory of the fullest GPU, main memory and disk of this machine.

    found: the footprints of the workers.
    """
    have, local = resources(config), config.ray.address == "local"
    asked = {kind: amount for kind, amount in needed(config).items() if amount}
    rows = [_devices(kind, amount, have.get(kind, 0), config.ray.wait) for kind, amount in asked.items()]
    if "GPU" in asked:
        cards = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
        smallest = min(cards) / 1e6 if cards else None
        rows.append(Need("memory of a GPU", fullest_gpu_mb(config, found.roles), "MB", smallest))
    rows.append(_object_store(config, have.get("object_store_memory")))
    memory = psutil.virtual_memory().available / 1e6 if local else None
    rows.append(Need("main memory", main_memory_mb(config, found), "MB", memory))
    root = Path(config.run.root).resolve()
    existing = next(path for path in (root, *root.parents) if path.exists())
    rows.append(Need("disk", disk_mb(config, found), "MB", shutil.disk_usage(existing).free / 1e6))
    return rows


def _object_store(config: Config, have: float | None) -> Need:
    """Return the need of object store. have: bytes of the cluster's; None for a private cluster that is not up yet.

    Ray gives 30 % of the memory that is free to a private cluster's store, unless `ray.object_store_mb` is set.
    """
    if have is None:
        usual = 0.3 * psutil.virtual_memory().available
        have = usual if config.ray.object_store_mb is None else config.ray.object_store_mb * 1e6
    return Need("object store", messages.store(config).total / 1e6, "MB", have / 1e6)


def _devices(kind: str, asked: float, up: float, wait: bool) -> Need:
    """Return the need of devices. With `ray.wait`, more than is up is unknown, because an autoscaler may add nodes."""
    return Need(f"{kind}s" if kind in ("CPU", "GPU") else kind, asked, "", None if wait and up < asked else up)


def report(config: Config) -> tuple[Table, list[Need]]:
    """Return a table of each role's memory per worker and of every need, and the list of needs that are not met."""
    found = footprints(config)
    rows = needs(config, found)
    view = Table(title=f"{config.run.name}: {config.teacher.model}", title_justify="left", box=None, padding=(0, 1))
    for column in ("MB of a worker", "number", "on", "weights", "training", "batch", "activations"):
        view.add_column(column, justify="left" if column in ("MB of a worker", "on") else "right")
    for role, one in found.roles.items():
        number, gpus = workers(config)[role]
        numbers = (f"{mb:,.0f}" for mb in (one.weights, one.training, one.batch, one.activations))
        view.add_row(role, str(number), f"{gpus:g} GPU" if gpus else "CPU", *numbers)
        if one.start == one.total:
            view.add_row(f"{role}, as it starts", str(number), "", f"{one.start:,.0f}", "", "", "")
    view.add_section()
    for need in rows:
        stock = "unknown from here" if need.available is None else f"of {need.available:,.0f} {need.unit}"
        view.add_row(need.what, f"{need.needed:,.0f}", need.unit, stock, "" if need.met else "[bold red]too little[/]")
    return view, [need for need in rows if not need.met]


def duration(config: Config) -> str:
    """Return the estimated time of a run, in words."""
    return cost.duration(cost.estimate(config, Conditions((None,), (None,))))


def fullest_gpu_mb(config: Config, roles: dict[str, Footprint]) -> float:
    """Return the memory in MB of the fullest GPU.

    Workers whose shares fit on one GPU may be placed there together, and their memory is added up. With
    `pipeline.colocate` the learner and the other workers take turns, so only the larger of the two counts.
    """
    shares = [(role, gpus) for role, (number, gpus) in workers(config).items() if gpus for _ in range(number)]
    shares.sort(key=lambda share: -roles[share[0]].total)
    fullest = 0.0
    for i, (role, share) in enumerate(shares):
        room, together = 1 - min(share, 1), [role]
        for other, more in shares[:i] + shares[i + 1 :]:
            if more <= room + 1e-9:
                room, together = room - more, [*together, other]
        fullest = max(fullest, _together_mb(config, together, roles))
    return fullest


def _together_mb(config: Config, together: list[str], roles: dict[str, Footprint]) -> float:
    learner = sum(roles[role].total for role in together if role == "learner")
    others = sum(roles[role].total for role in together if role != "learner")
    mb = max(learner, others) if config.pipeline.colocate else learner + others
    return mb + OVERHEAD_MB * len(together)


def disk_mb(config: Config, found: Footprints) -> float:
    """Return the disk space in MB of a run, if each group has a caption of its own. Raises ModelError."""
    return disk(config, teacher_outline(config.teacher), numbers=(found.trained, found.network)).total / 1e6
