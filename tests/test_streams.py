"""A reader that leaves, a stream that is closed and a full disk end no command."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PRINTS = """
import os, sys
from redif_ray.streams import keep_streams
keep_streams()
for number in range(20_000):
    print("Fréchet", number)
print("an error", file=sys.stderr)
file = open({path!r}, "w")
assert file.fileno() > 2
file.write("all was printed")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "end", ["| head -1", "2>&1 | head -1", "> /dev/full 2>&1", ">&-", "<&- >&- 2>&-", "| (sleep 0.3; exit)"]
)
def test_what_cannot_be_printed_is_left_out(end: str, tmp_path: Path) -> None:
    path = tmp_path / "last"
    command = shlex.join([sys.executable, "-c", PRINTS.format(path=str(path))])
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} {end}"], capture_output=True, text=True)
    assert done.returncode == 0 and path.read_text() == "all was printed"
    assert done.stderr in ("", "an error\n")
    assert done.stdout == ("Fréchet 0\n" if "head" in end else "")


@pytest.mark.slow
def test_every_character_is_printed_and_a_reader_is_waited_for(tmp_path: Path) -> None:
    code = "import os; os.set_blocking(1, False)" + PRINTS.format(path=str(tmp_path / "last"))
    command = shlex.join(["env", "PYTHONIOENCODING=ascii", sys.executable, "-c", code])
    reader = 'python3 -c "import sys, time; time.sleep(0.3); sys.stdout.write(sys.stdin.read())"'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} | {reader}"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"Fr\\xe9chet {number}" for number in range(20_000)]
