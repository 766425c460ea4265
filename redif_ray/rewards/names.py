"""Names of the reward terms, told without torch: what is wrong with a term is known before a run starts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redif_ray.config import Term

NAMES = (
    "mse",
    "psnr",
    "ssim",
    "gradient_mse",
    "blurred_mse",
    "feature_cosine",
    "classifier",
    "histogram_kl",
    "jpeg_compressibility",
    "clip",
    "text_image",
    "pick_score",
    "hps",
    "image_reward",
    "dino",
    "perception",
    "lpips",
    "aesthetic",
    "discriminator",
)
ALONE = frozenset(  # terms that score the student's image without the teacher's
    ("classifier", "jpeg_compressibility", "text_image", "pick_score", "hps", "image_reward", "aesthetic")
)


def read_teacher(terms: Mapping[str, Term]) -> bool:
    """Tell whether a term reads the teacher's images; a function or a service does without `teacher: false`."""
    return any(label not in ALONE and term.options.get("teacher", True) for label, term in terms.items())


def problem(label: str, options: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a term's name, or with the file of its function; None where nothing is."""
    if label in NAMES:
        return None
    if (target := options.get("callable")) is not None:
        source = str(target).rpartition(":")[0]
        if source.endswith(".py") and not Path(source).is_file():
            return f"reward.terms.{label}: callable {target!r}: cannot import {source}: FileNotFoundError: no such file"
        return None
    if "url" in options:
        return None
    close = difflib.get_close_matches(label, NAMES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return (
        f"unknown reward term {label!r}{hint}; known: {', '.join(NAMES)}; a function of your own may have any other "
        "name with options: {callable: 'package.module:function'}, and a service with options: {url: 'http://...'}"
    )
