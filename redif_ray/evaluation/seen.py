"""Measurements of images, and pictures of the first few, which a reward worker sends in place of the images.

Images of real sizes are too large to travel and to be collected, so they stay in the process that made them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from redif_ray.evaluation.encoders import Encoder, embedded, fit
from redif_ray.evaluation.paired import mse
from redif_ray.types import LARGEST, PICTURES, Seen, WorkUnit, told


def see(
    unit: WorkUnit, images: Tensor, teacher: Tensor, terms: Mapping[str, np.ndarray], encoder: Encoder | None
) -> Seen:
    """Measure images [G, C, H, W], float in [0, 1], of a work unit's groups, beside the teacher's.

    terms: their reward terms, [G] each. encoder: the judge's encoder, which is on the images' device; None: no judge.
    """
    conditions = tuple(told(condition) for condition in unit.conditions)
    features = None if encoder is None else embedded(encoder, images, images.device)
    shown = [i for i, group in enumerate(unit.groups) if group < PICTURES]
    return Seen(
        conditions,
        mse(images, teacher),
        dict(terms),
        float(teacher.min()),
        features,
        {} if encoder is None or features is None else fit(encoder, features, conditions),
        picture(images[shown]),
        picture(teacher[shown]),
    )


def picture(images: Tensor) -> np.ndarray:
    """Return images [n, C, H, W], float in [0, 1], as uint8, reduced by a whole factor to at most LARGEST pixels."""
    factor = math.ceil(max(images.shape[-2:]) / LARGEST)
    if factor > 1:
        images = torch.nn.functional.avg_pool2d(images, factor, ceil_mode=True)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def joined(parts: Sequence[Seen]) -> Seen:
    """Return the measurements of successive work units as one."""
    features = [part.features for part in parts if part.features is not None]
    return Seen(
        tuple(c for part in parts for c in part.conditions),
        np.concatenate([part.pixel_mse for part in parts]),
        joined_terms([part.terms for part in parts]),
        min(part.darkest for part in parts),
        np.concatenate(features) if len(features) == len(parts) else None,
        joined_terms([part.fit for part in parts]),
        np.concatenate([part.pictures for part in parts]),
        np.concatenate([part.teacher_pictures for part in parts]),
    )


def joined_terms(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate values by name of successive work units."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
