"""Errors that a user can cause and mend. The command line prints their message; other errors keep their traceback."""

from redif_ray.masking import masked

MOST = 200  # characters of a value in a message


def brief(value: object) -> str:
    """Return a value as a message shows it: without secrets, on one line, without the middle of a long text."""
    text = masked(repr(value))
    return text if len(text) <= MOST else f"{text[: MOST // 2]}...{text[-MOST // 4 :]}"


class UserError(Exception):
    """An error whose message names the thing, the value, what was expected and what to do. It holds no secrets.

    exit_code: with which a command ends.
    """

    exit_code = 2

    def __init__(self, message: str = "", *more: object) -> None:
        super().__init__(masked(message), *more)


class LostError(UserError):
    """Something was lost that a run cannot go on without, and that may be there at the next attempt."""

    exit_code = 3


class Notice(Exception):
    """An end that is no error: the run was finished before, or was asked to stop. The message holds no secrets."""

    exit_code = 0

    def __init__(self, message: str = "", *more: object) -> None:
        super().__init__(masked(message), *more)
