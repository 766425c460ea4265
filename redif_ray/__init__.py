"""redif-ray: few-step diffusion students by policy gradient, on a Ray cluster.

The names of `redif_ray.api` are also names of this package, imported when they are first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = [  # typed in __init__.pyi
    "Config",
    "ConfigError",
    "DistilledRun",
    "Evaluation",
    "FoundSchedules",
    "Interrupted",
    "RoundReport",
    "SweepResult",
    "Table",
    "UserError",
    "distill",
    "evaluate_run",
    "export_student",
    "find_schedule",
    "load_config",
    "load_student",
    "make_reference",
    "run_sweep",
    "sample_images",
    "train_judge",
    "train_teacher",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'redif_ray' has no attribute {name!r}")
    return getattr(import_module("redif_ray.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
