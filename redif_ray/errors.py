"""Errors that a user can cause and mend. The command line prints their message; other errors keep their traceback."""

import re
from collections.abc import Iterable

from redif_ray.masking import masked

MOST = 200  # characters of a value in a message
LISTED = 20  # names in a message
MOST_WORDS = 400  # characters of a library's error in a message
OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")
CLASS = re.compile(r"<class '(?:[\w.]+\.)?(\w+)'>")
ADDRESS = re.compile(r"(?:\b(?:at|to|from)\s+)?\S*://\S*")


def brief(value: object) -> str:
    """Return a value as a message shows it: without secrets, on one line, without the middle of a long text."""
    text = masked(repr(value))
    return text if len(text) <= MOST else f"{text[: MOST // 2]}...{text[-MOST // 4 :]}"


def listed(names: Iterable[object]) -> str:
    """Return names, such as those of columns, as a message shows them: not too many, each on one line and not long."""
    texts = [str(name) for name in names]
    shown = [text if text.isprintable() and 0 < len(text) <= MOST else brief(text) for text in texts[:LISTED]]
    return ", ".join(shown) + (f" and {len(texts) - LISTED:,} more" if len(texts) > LISTED else "")


def visible(text: str) -> str:
    """Return a text with escapes for what a terminal does not print or takes for a command; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def words_of(error: BaseException) -> str:
    """Return a library's error as text: one line of bounded length, without addresses of pages and of objects.

    Classes are shown by their names. It is the name of the error's class where the error has no text.
    """
    text = " ".join(ADDRESS.sub("", CLASS.sub(r"\1", OBJECT.sub("", str(error)))).split()) or type(error).__name__
    return text if len(text) <= MOST_WORDS else f"{text[: MOST_WORDS - 3]}..."


def in_words(error: BaseException) -> str:
    """Return the class and the text of a library's error; see `words_of`."""
    kind, text = type(error).__name__, words_of(error)
    return kind if text == kind else f"{kind}: {text}"


class UserError(Exception):
    """An error whose message names the thing, the value, what was expected and what to do. It holds no secrets.

    exit_code: with which a command ends.
    """

    exit_code = 2

    def __init__(self, message: str = "", *more: object) -> None:
        super().__init__(visible(masked(message)), *more)


class LostError(UserError):
    """Something was lost that a run cannot go on without, and that may be there at the next attempt."""

    exit_code = 3


class Notice(Exception):
    """An end that is no error: the run was finished before, or was asked to stop. The message holds no secrets."""

    exit_code = 0

    def __init__(self, message: str = "", *more: object) -> None:
        super().__init__(visible(masked(message)), *more)
