"""`redif benchmark pipeline`: what Ray costs and brings."""

from __future__ import annotations

from functools import partial

from redif_ray.benchmark.first_step import first_step
from redif_ray.benchmark.overhead import overhead
from redif_ray.benchmark.overlap import overlap
from redif_ray.benchmark.publishing import publishing
from redif_ray.benchmark.scaling import FASHION_MNIST, scaling
from redif_ray.benchmark.soak import soak
from redif_ray.benchmark.startup import startup
from redif_ray.benchmark.suite import Suite

PIPELINE = Suite("pipeline", "The pipeline, measured", {
    "first_step": first_step, "overhead": overhead, "one_core": partial(overhead, pinned=True), "overlap": overlap,
    "scaling": scaling, "control": partial(scaling, sizes=FASHION_MNIST, strong=(16, 64), name="control"),
    "publishing": publishing, "soak": soak, "startup": startup,
})  # fmt: skip
