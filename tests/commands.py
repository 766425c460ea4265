"""Commands of `redif` in this process."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from redif_ray.cli import main


def here(*words: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported already what takes a new one seconds."""
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["redif", *words]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            return subprocess.CompletedProcess(words, int(end.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("a command ends by SystemExit")


def one_line(text: str) -> str:
    return " ".join(text.split())
