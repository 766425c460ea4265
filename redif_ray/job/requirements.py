"""`redif doctor CONFIG`: compare the devices, memory and disk that a run needs with those available."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table

from redif_ray.cluster.connect import needed
from redif_ray.cluster.nodes import nodes
from redif_ray.config import Config
from redif_ray.job.preflight import checked_models
from redif_ray.models.registry import teacher_outline
from redif_ray.planning import cost, messages, split
from redif_ray.planning.batches import chosen
from redif_ray.planning.disk import disk
from redif_ray.planning.gpu_memory import tightest_gpu_mb
from redif_ray.planning.host_memory import tightest_node_mb
from redif_ray.planning.memory import Footprints, footprints, workers
from redif_ray.planning.nodes import Node, total


@dataclass(frozen=True, slots=True)
class Need:
    """One need of a run.

    what: name of the resource. needed, available: amounts in `unit`; available None: unknown.
    """

    what: str
    needed: float
    unit: str
    available: float | None

    @property
    def met(self) -> bool:
        return self.available is None or self.needed <= self.available


def needs(config: Config, found: Footprints, cluster: Sequence[Node]) -> list[Need]:
    """List the needs of a run: devices, GPU memory, object store and main memory of the cluster, and disk here.

    Of a memory, the need is that of the node which has the least to spare. found: the footprints of the workers.
    cluster: the nodes that they may be placed on.
    """
    have = total(cluster)
    asked = {kind: amount for kind, amount in needed(config).items() if amount}
    rows = [_devices(kind, amount, have.get(kind, 0), config.ray.wait) for kind, amount in asked.items()]
    if "GPU" in asked:
        gpu, smallest = tightest_gpu_mb(config, found.roles, cluster)
        rows.append(Need("memory of a GPU", gpu, "MB", smallest))
    rows.append(Need("object store", messages.store(config).total / 1e6, "MB", sum(node.store for node in cluster)))
    main, there = tightest_node_mb(config, found, cluster)
    rows.append(Need("main memory", main, "MB", there))
    root = Path(config.run.root).resolve()
    existing = next(path for path in (root, *root.parents) if path.exists())
    rows.append(Need("disk", disk_mb(config, found), "MB", shutil.disk_usage(existing).free / 1e6))
    return rows


def _devices(kind: str, asked: float, up: float, wait: bool) -> Need:
    """Return the need of devices. With `ray.wait`, more than is up is unknown, because an autoscaler may add nodes."""
    names = {"CPU": "logical CPUs", "GPU": "GPUs"}
    return Need(names.get(kind, kind), asked, "", None if wait and up < asked else up)


def report(config: Config) -> tuple[Group, list[Need]]:
    """Return a report and the list of needs that are not met.

    The report has each role's memory per worker and every need, the nodes, which batches were chosen, and how several
    GPUs can be used. Raises ModelError for a teacher or a start of the student that a run would refuse.
    """
    checked_models(config)
    cluster = nodes(config)
    config, why = chosen(config, cluster)
    found = footprints(config)
    rows = needs(config, found, cluster)
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
        stock = "unknown" if need.available is None else f"of {need.available:,.0f} {need.unit}"
        view.add_row(need.what, f"{need.needed:,.0f}", need.unit, stock, "" if need.met else "[bold red]too little[/]")
    parts = [view, _machines(cluster), *([why] if why else ()), *_split(config, found, cluster)]
    return Group(*parts), [need for need in rows if not need.met]


def _split(config: Config, found: Footprints, cluster: Sequence[Node]) -> list[Table]:
    """Return a table of ways to use the GPUs, where the run asks for GPUs and there are several."""
    number = split.gpus(config, cluster)
    if number < 2 or not all(share for _, share in workers(config).values()):
        return []
    ways = split.ways(config, found.roles, split.work(config), number)
    seen = [mb for node in cluster for _, mb in node.gpus]
    return [split.table(ways, number, min(seen, default=None))]


def _machines(cluster: Sequence[Node]) -> Table:
    """Return a table of the nodes, those that are alike in one row."""
    view = Table(box=None, padding=(0, 1))
    for column in ("nodes", "logical CPUs", "GPUs", "MB of main memory", "of object store"):
        view.add_column(column, justify="left" if column == "GPUs" else "right")
    for row, count in Counter(map(_machine, cluster)).items():
        view.add_row(str(count), *row)
    return view


def _machine(node: Node) -> tuple[str, ...]:
    counted = node.resources.get("GPU", 0)
    kinds = Counter(f"{name} of {mb:,.0f} MB" for name, mb in node.gpus)
    seen = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    gpus = seen or (f"{counted:g}, unknown" if counted else "none")
    return f"{node.resources.get('CPU', 0):g}", gpus, f"{node.memory:,.0f}", f"{node.store:,.0f}"


def duration(config: Config) -> str:
    """Return the estimated time of a run, in words."""
    return cost.duration(cost.estimate(config))


def disk_mb(config: Config, found: Footprints) -> float:
    """Return the disk space in MB of a run, if each group has a caption of its own. Raises ModelError."""
    return disk(config, teacher_outline(config.teacher), numbers=(found.trained, found.network)).total / 1e6
