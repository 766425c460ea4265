"""Errors that a user can cause and mend. The command line prints their message; other errors keep their traceback."""

from redif_ray.masking import masked


class UserError(Exception):
    """An error whose message names the thing, the value, what was expected and what to do. It holds no secrets."""

    def __init__(self, message: str = "", *more: object) -> None:
        super().__init__(masked(message), *more)


class Notice(Exception):
    """An end that is no error: the run was finished before, or was asked to stop. The message holds no secrets."""

    exit_code = 0

    def __init__(self, message: str = "", *more: object) -> None:
        super().__init__(masked(message), *more)
