"""Stable Diffusion 1.5 and XL with random weights through the whole pipeline, beside plain loops of diffusers.

    python -m benchmarks.gpu [sd15] [sdxl] [run] [--out FOLDER]

`run` is a whole run of Stable Diffusion 1.5, by `redif distill`, in some minutes of one GPU.
"""

from __future__ import annotations

from functools import partial

from benchmarks.gpu.networks import Case, networks
from benchmarks.gpu.random_pipelines import SD15, SDXL
from benchmarks.gpu.whole_run import whole_run
from benchmarks.suite import Suite

CASES = (
    Case("sd15", "Stable Diffusion 1.5, adapters of rank 4", SD15, "sd15_coco_5step"),
    Case("sdxl", "Stable Diffusion XL, adapters of rank 32", SDXL, "sdxl_4step_lora"),
)
GPU = Suite(
    "gpu",
    "Large networks on one GPU",
    {**{case.name: partial(networks, case=case) for case in CASES}, "run": whole_run},
)

if __name__ == "__main__":
    GPU.main(__doc__)
