"""One arm of the comparison: every metric of one way to make images, with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from redif_ray.evaluation.bootstrap import captions_of, interval
from redif_ray.evaluation.features import Draw, shuffled
from redif_ray.evaluation.frechet import frechet_floor
from redif_ray.evaluation.judge import Judge, Seen
from redif_ray.evaluation.paired import cosine, mse, psnr
from redif_ray.evaluation.prdc import ceiling, prdc
from redif_ray.types import Condition


def evaluate_arm(
    seen: Seen,
    conditions: Sequence[Condition],
    judge: Judge,
    *,
    nfe: int,
    teacher: Seen,
    terms: Mapping[str, np.ndarray],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return the fields of `summary.Arm` for one arm's images.

    seen: the arm's n images and the judge's features of them.
    conditions: one per image. Class accuracy is None unless all conditions are class indices, and the captions' cosine
        is None unless all conditions are text.
    nfe: network calls per image.
    teacher: the full-step teacher's images of the same noises and conditions, for the paired metrics. The set metrics
        compare with the judge's reference instead, because a student looks far too good against its paired images.
    terms: {name: values [n]}, further paired metrics beside `pixel_mse`, `pixel_psnr` and `judge_cosine`, such as the
        reward terms of a run.
    resamples: number of bootstrap resamples.
    seed: seed of the resamples and of the reference rows, which every arm with this seed shares.
    Raises ValueError for inputs of different lengths and for fewer reference images than n.
    """
    images, features = seen.images, seen.features
    n = len(images)
    if len(conditions) != n or images.shape != teacher.images.shape:
        shapes = f"images {tuple(images.shape)}, teacher images {tuple(teacher.images.shape)}"
        raise ValueError(f"{shapes}, {len(conditions)} conditions; expected one of each")
    reference = judge.reference_features()
    if n > len(reference):
        raise ValueError(f"{n} images; expected at most the {len(reference)} reference images of judge {judge.name}")
    distance, error = judge.kid(features)
    captions = captions_of(conditions)
    labels = [int(c) for c in conditions if isinstance(c, int | np.integer)]
    return {
        "nfe": nfe,
        "frechet": judge.frechet(features),
        "frechet_ci": list(interval(judge.frechet, [features], resamples=resamples, seed=seed, clusters=captions)),
        "kid": distance,
        "kid_se": error,
        **prdc(features, reference[shuffled(len(reference), Draw.REFERENCE, seed)[:n]]),
        "class_accuracy": judge.class_accuracy(features, labels) if len(labels) == n else None,
        "caption_cosine": judge.caption_cosine(features, captions) if captions else None,
        "paired": _paired(seen, teacher, terms),
    }


def limits(judge: Judge, n: int, seed: int) -> dict[str, float]:
    """Return the scores of real images: the Fréchet distance's floor and the other set metrics' ceilings.

    n: number of images per arm. Two disjoint sets of n reference images are compared, or the two halves of a reference
        that holds fewer than 2 n images.
    """
    reference = judge.reference_features()
    count = min(n, len(reference) // 2)
    return {"frechet": frechet_floor(reference, count, seed), **ceiling(reference, count, seed)}


def _paired(seen: Seen, teacher: Seen, terms: Mapping[str, np.ndarray]) -> dict[str, float]:
    images = seen.images
    values: dict[str, np.ndarray] = {
        "pixel_mse": mse(images, teacher.images),
        "pixel_psnr": psnr(images, teacher.images),
        "judge_cosine": cosine(seen.features, teacher.features),
    }
    further = {name: value.astype(np.float64) for name, value in terms.items()}
    for name, value in further.items():
        if name in values:
            raise ValueError(f"paired metric {name!r} is built in; choose another name")
        if value.shape != (len(images),) or not np.isfinite(value).all():
            raise ValueError(f"paired metric {name!r} is {value.shape} or NaN; expected {len(images)} finite numbers")
    return {name: float(value.mean()) for name, value in (values | further).items()}
