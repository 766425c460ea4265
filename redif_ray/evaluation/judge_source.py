"""Sources of judges, told without torch: the shipped ones, their folders, and which bring reference images."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
JUDGES = {  # name: (classifier, reference images)
    "fashion-mnist": (ASSETS / "judges/fashion_mnist_b", ASSETS / "reference/fashion_mnist_test.parquet"),
}
RANDOM_FEATURES = "random-features"
REFERENCE = "reference.parquet"


def needs_reference(source: str) -> bool:
    """Tell whether a judge has no reference images of its own and needs the teacher's.

    Random features and CLIP have none.
    """
    return source == RANDOM_FEATURES or (source not in JUDGES and not (Path(source) / REFERENCE).is_file())


def judge_files(source: str) -> tuple[Path, Path]:
    """Return the folder of a judge's classifier and the path of its reference images."""
    return JUDGES.get(source, (Path(source), Path(source) / REFERENCE))
