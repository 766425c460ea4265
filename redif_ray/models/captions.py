"""Captions that a model does not read as a whole, which it draws all the same."""

from __future__ import annotations

from collections.abc import Sequence

from redif_ray.models.foreign import loading
from redif_ray.models.protocol import DiffusionModel


def caption_warnings(model: DiffusionModel, captions: Sequence[str]) -> list[str]:
    """Return a sentence for each way in which the model reads only a part of some of the captions.

    Raises ModelError for a broken tokeniser.
    """
    with loading(f"a tokeniser of the {type(model).__name__}"):
        ways = {
            "have more tokens than it takes, so it ignores their ends": model.cut_short(captions),
            "have characters that it does not know, so it ignores these": model.unreadable(captions),
        }
    return [
        f"{len(found)} of {len(captions)} captions {what}; the first: {found[0]:.200}"
        for what, found in ways.items()
        if found
    ]
