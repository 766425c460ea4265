"""The command `redif make-reference`: a judge's reference images, from the user's own."""

from __future__ import annotations

from pathlib import Path

from redif_ray.data.errors import DataError
from redif_ray.data.images import ImageSet, load_images, write_parquet
from redif_ray.data.layouts.columns import NO_LABELS
from redif_ray.data.pixels import WHITE
from redif_ray.evaluation.judge_source import REFERENCE
from redif_ray.models.classifier import load_classifier


def read_reference(source: str, judge: Path, *, split: str = "test", background: str = WHITE) -> ImageSet:
    """Return images of `source` in the size and the colours that the classifier in the folder `judge` takes.

    split: of sources that have splits; others are read whole. background: colour behind transparent pixels.
    Raises DataError, ClassifierError and FileExistsError.
    """
    if (judge / REFERENCE).exists():
        raise FileExistsError(f"{judge / REFERENCE} exists; move it away, or choose another judge")
    taken = load_classifier(judge).image_shape
    images = load_images(
        source, split=split, size=taken[1] if taken[1] == taken[2] else None, background=background, label=NO_LABELS
    )
    if images.images.shape[1] < taken[0]:
        images = ImageSet(images.images.repeat(taken[0], 1), images.labels, images.classes, images.findings)
    if images.images.shape[1:] != taken:
        raise DataError(
            f"{source} holds images of {images.images.shape[1:]} (channels, height, width), and the judge {judge} "
            f"takes {taken}; give images of its kind"
        )
    return images


def write_reference(images: ImageSet, judge: Path) -> Path:
    """Write the reference images of the judge in the folder `judge` and return their file."""
    write_parquet(judge / REFERENCE, images)
    return judge / REFERENCE
