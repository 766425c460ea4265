"""What went wrong in a worker, out of the wrapping that Ray puts around it."""

from __future__ import annotations

from ray.exceptions import RayTaskError


def cause(error: BaseException) -> BaseException:
    """The exception that was raised first, by whichever process."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error
