"""A message shows values, names and errors of others in part, on one line, and as a terminal can print them."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from redif_ray.errors import LISTED, MOST, MOST_WORDS, UserError, in_words, listed, words_of


def test_an_error_of_a_library_is_one_short_line_without_addresses() -> None:
    try:
        Image.open(io.BytesIO(b"x"))
    except UnidentifiedImageError as error:
        assert words_of(error) == "cannot identify image file"
    assert words_of(ValueError("a\n  b, see https://example.org/c and d")) == "a b, see and d"
    assert words_of(OSError("no way to 'https://example.org' to load the files")) == "no way to load the files"
    assert len(words_of(ValueError("x" * 10_000))) == MOST_WORDS
    assert (words_of(KeyError()), in_words(KeyError())) == ("KeyError", "KeyError")
    assert words_of(TypeError(f"got: {Image.Image}, {int}")) == "got: Image, int"
    assert in_words(ValueError("no")) == "ValueError: no"


def test_names_are_few_and_short() -> None:
    assert listed(["a", "b c", 3]) == "a, b c, 3"
    assert listed(range(LISTED + 2)).endswith(f", {LISTED - 1} and 2 more")
    assert listed(["", "a\nb"]) == r"'', 'a\nb'"
    assert len(listed(["x" * 10_000])) < MOST


def test_a_message_holds_no_commands_for_a_terminal() -> None:
    """Names of files and columns may hold any character; new lines are the message's own."""
    assert str(UserError("a\x1b[2Jb\n\u202egpj.exe \udce9 \u00e9 \U0001f600")) == (
        "a\\x1b[2Jb\n\\u202egpj.exe \\udce9 \u00e9 \U0001f600"
    )
