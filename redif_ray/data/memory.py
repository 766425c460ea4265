"""A bound on the memory that data take: what would not fit is refused before it is read."""

from __future__ import annotations

import psutil

from redif_ray.data.errors import DataError

SHARE = 0.4  # of the free memory, for images that are held once more while they are stacked


def check_memory(size: int, name: str) -> None:
    """Raise DataError if `size` bytes are more than the share of the free memory that data may take."""
    free = psutil.virtual_memory().available
    if size > SHARE * free:
        raise DataError(
            f"{name}: its images take {size / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free; set a "
            "smaller size, or give fewer images"
        )
