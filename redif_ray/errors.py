"""Errors that a user can cause and mend. The command line prints their message; other errors keep their traceback."""


class UserError(Exception):
    """An error whose message names the thing, the value, what was expected and what to do."""


class Notice(Exception):
    """An end that is no error: the run was finished before, or was asked to stop."""

    exit_code = 0
