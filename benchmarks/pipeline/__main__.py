"""Measure what Ray costs and brings a run, as ratios taken side by side, in an hour.

python -m benchmarks.pipeline overhead overlap
"""

from __future__ import annotations

from functools import partial

from benchmarks.pipeline.cards import cards
from benchmarks.pipeline.first_step import first_step
from benchmarks.pipeline.overhead import overhead
from benchmarks.pipeline.overlap import overlap
from benchmarks.pipeline.publishing import publishing
from benchmarks.pipeline.scaling import FASHION_MNIST, scaling
from benchmarks.pipeline.soak import soak
from benchmarks.pipeline.startup import startup
from benchmarks.suite import Suite

PIPELINE = Suite(
    "pipeline",
    "The pipeline, measured",
    {
        "first_step": first_step,
        "overhead": overhead,
        "one_core": partial(overhead, pinned=True),
        "overlap": overlap,
        "scaling": scaling,
        "control": partial(scaling, sizes=FASHION_MNIST, strong=(16, 64), name="control"),
        "cards": cards,
        "publishing": publishing,
        "soak": soak,
        "startup": startup,
    },
)

if __name__ == "__main__":
    PIPELINE.main(__doc__)
