"""One arm of the comparison: every metric of one way to make images, with its uncertainty."""

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
    """The fields of `summary.Arm` for images as `judge` sees them, made at `nfe` network calls an image.

    conditions: one an image; class accuracy is None unless all are class indices, the captions' cosine unless all are
        text.
    teacher: the full-step teacher's images of the same noises and conditions. Set metrics compare with the judge's
        reference instead: against its own paired images a student looks far too good.
    terms: further pair metrics, [n] each by name, beside `pixel_mse`, `pixel_psnr` and `judge_cosine`: a run's reward
        terms, say.
    The same seed gives every arm the same reference rows and the same resamples.
    """
    images, features = seen.images, seen.features
    n = len(images)
    if len(conditions) != n or images.shape != teacher.images.shape:
        shapes = f"images {tuple(images.shape)}, teacher images {tuple(teacher.images.shape)}"
        raise ValueError(f"{shapes}, {len(conditions)} conditions; expected one of each")
    reference = judge.reference_features()
    if n > len(reference):
        raise ValueError(f"{n} images, judge {judge.name} has {len(reference)} reference images; expected no more")
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
    """What reference images get at this n: the Fréchet distance's floor and the ceilings of the other set metrics.

    Both compare disjoint sets of reference images; where there are fewer than 2 n, `n` is half of the reference.
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
