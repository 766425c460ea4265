"""One arm of the comparison: every metric of one way to make images, with confidence intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from redif_ray.evaluation.bootstrap import captions_of, interval
from redif_ray.evaluation.features import Draw, shuffled
from redif_ray.evaluation.frechet import frechet_floor
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.paired import cosine, psnr
from redif_ray.evaluation.prdc import ceiling, prdc
from redif_ray.types import Seen


def evaluate_arm(seen: Seen, judge: Judge, *, nfe: int, teacher: Seen, resamples: int, seed: int) -> dict[str, Any]:
    """Return the fields of `summary.Arm` for one arm's n images.

    seen: measurements of the arm's images. Class accuracy is None unless all conditions are class indices that the
        judge knows, and the captions' cosine is None unless all conditions are text and the judge is a CLIP.
    nfe: network calls per image.
    teacher: measurements of the full-step teacher's images of the same noises and conditions, for the paired metrics.
        The set metrics compare with the judge's reference instead, because a student looks far too good against its
        paired images.
    resamples: number of bootstrap resamples.
    seed: seed of the resamples and of the reference rows, which every arm with this seed shares.
    Raises ValueError for measurements of other noises or conditions and for fewer reference images than n.
    """
    features, reference = seen.judged, judge.reference
    n = len(features)
    if seen.conditions != teacher.conditions:
        raise ValueError(
            f"{n} images and {len(teacher.conditions)} of the teacher; expected the same conditions, one for each"
        )
    if n > len(reference):
        raise ValueError(f"{n} images; expected at most the {len(reference)} reference images of judge {judge.name}")
    distance, error = judge.kid(features)
    captions = captions_of(seen.conditions)
    fit = {name: float(values.mean()) for name, values in seen.fit.items()}
    return {
        "nfe": nfe,
        "frechet": judge.frechet(features),
        "frechet_ci": list(interval(judge.frechet, [features], resamples=resamples, seed=seed, clusters=captions)),
        "kid": distance,
        "kid_se": error,
        **prdc(features, reference[shuffled(len(reference), Draw.REFERENCE, seed)[:n]]),
        "class_accuracy": fit.get("class_accuracy"),
        "caption_cosine": fit.get("caption_cosine"),
        "paired": _paired(seen, teacher),
    }


def limits(judge: Judge, n: int, seed: int) -> dict[str, float | None]:
    """Return the fields of `summary.Limits`: the scores of real images in the place of an arm's.

    n: number of images per arm. As many reference images are compared with others of them, or one half with the other
        where the reference holds fewer than 2 n images.
    """
    reference = judge.reference
    count = min(n, len(reference) // 2)
    return {
        "count": count,
        "frechet": frechet_floor(reference, count, seed),
        **ceiling(reference, count, seed),
        "class_accuracy": judge.fit.get("class_accuracy"),
    }


def _paired(seen: Seen, teacher: Seen) -> dict[str, float]:
    values: dict[str, np.ndarray] = {
        "pixel_mse": seen.pixel_mse,
        "pixel_psnr": psnr(seen.pixel_mse),
        "judge_cosine": cosine(seen.judged, teacher.judged),
    }
    further = {name: value.astype(np.float64) for name, value in seen.terms.items()}
    for name, value in further.items():
        if name in values:
            raise ValueError(f"paired metric {name!r} is built in; choose another name")
        if value.shape != seen.pixel_mse.shape or not np.isfinite(value).all():
            count = len(seen.pixel_mse)
            raise ValueError(f"paired metric {name!r} is {value.shape} or NaN; expected {count} finite numbers")
    return {name: float(value.mean()) for name, value in (values | further).items()}
