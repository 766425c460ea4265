"""What a user can cause and mend. The command line prints these as one message; everything else keeps its traceback."""


class UserError(Exception):
    """The message names the thing, the value, what was expected and what to do."""


class Notice(Exception):
    """Not an error, but the end: a run that was finished before, or was asked to stop."""

    exit_code = 0
