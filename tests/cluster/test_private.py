"""The private cluster of a command: its folder, its token, and what happens when Ray dies."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from redif_ray.cluster import private
from redif_ray.config import ConfigError, load

LONG = "x" * 100


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files whose path is short, as pytest's own is not."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_ray_has_a_folder_that_no_other_user_enters(short: Path) -> None:
    folder = private.ray_folder()
    assert folder == short / f"redif-{os.getuid()}" / "ray"
    folder.parent.chmod(0o755)
    assert private.ray_folder() == folder and mode(folder.parent) == 0o700


def test_where_sockets_would_not_fit_it_lies_in_tmp(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short / LONG))
    assert private.ray_folder() == Path("/tmp") / f"redif-{os.getuid()}" / "ray"
    assert not (short / LONG).exists()


def test_ray_tmpdir_goes_before_all(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short / "asked"))
    assert private.ray_folder() == short / "asked" / f"redif-{os.getuid()}" / "ray"
    monkeypatch.setenv("RAY_TMPDIR", str(short / LONG))
    with pytest.raises(
        ConfigError, match=r"xxx is longer than Ray's sockets allow.*set RAY_TMPDIR to a path of at most"
    ):
        private.ray_folder()


def test_a_folder_of_another_user_is_not_entered(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    (short / "theirs").mkdir()
    (short / f"redif-{os.getuid()}").symlink_to(short / "theirs")
    with pytest.raises(ConfigError, match="belongs to another user"):
        private.ray_folder()
    assert not list((short / "theirs").iterdir())


def test_a_folder_that_cannot_be_written_is_named(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(short / "file"))
    with pytest.raises(ConfigError, match=r"Not a directory: '.*/file/redif-"):
        private.ray_folder()


def test_only_ray_s_processes_see_its_variables(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of Ray make sockets of their own in TMPDIR, as Python's multiprocessing does, so theirs is short."""
    seen: list[dict[str, str]] = []
    monkeypatch.setenv("TMPDIR", str(short / LONG))
    monkeypatch.setattr(tempfile, "tempdir", str(short / LONG))
    monkeypatch.setattr(private, "ask_for_a_token", lambda: None)
    monkeypatch.setattr(private.ray, "init", lambda **_: seen.append(dict(os.environ)))
    private.start(load("smoke"), 1)
    assert seen[0]["TMPDIR"] == f"/tmp/redif-{os.getuid()}" and seen[0][private.LOOPBACK] == "0"
    assert os.environ["TMPDIR"] == str(short / LONG) and private.LOOPBACK not in os.environ


@pytest.mark.parametrize("error", [ValueError("too little"), Exception("The last lines of the log:\n  too little\n")])
def test_a_ray_that_cannot_start_is_one_line(error: Exception, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(private, "ask_for_a_token", lambda: None)
    monkeypatch.setattr(private.ray, "init", fail)
    with pytest.raises(ConfigError, match=r"^Ray cannot start on this machine: +too little$"):
        private.start(load("smoke"), 1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_token_is_asked_for_and_only_its_user_reads_it(home: Path) -> None:
    private.ask_for_a_token()
    token = home / ".ray" / "auth_token"
    first = token.read_text()
    assert len(first) == 64 and mode(token) == 0o600
    assert "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ
    token.chmod(0o644)
    private.ask_for_a_token()
    assert token.read_text() == first and mode(token) == 0o600


@pytest.mark.slow
def test_first_commands_that_start_at_once_have_one_token(home: Path) -> None:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another command that is about to write
        later = threading.Thread(target=private.ask_for_a_token)
        later.start()
        later.join(1)
        assert later.is_alive()
        file.write("a" * 64)
    later.join(60)
    assert path.read_text() == "a" * 64


@pytest.mark.parametrize("place", ["missing", "file"])
def test_without_a_home_the_token_is_in_no_file(place: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    monkeypatch.setenv("HOME", str(home / place))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.delenv("RAY_AUTH_TOKEN")  # restored after the test
    private.ask_for_a_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64 and not (home / "missing").exists()


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


WATCHES = """
import subprocess, sys, time
from redif_ray.cluster import connect, private
from redif_ray.interrupt import stop_requests
with stop_requests():
    with private.watched():  # without daemons
        pass
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    raylet, helper = (subprocess.Popen(["sleep", seconds], **quiet) for seconds in ("10", "11"))
    while {private.psutil.Process(each.pid).name() for each in (raylet, helper)} != {"sleep"}:
        time.sleep(0.01)
    private.DAEMONS = (sys.argv[1],)
    with private.watched():
        print(raylet.pid, helper.pid, flush=True)
        time.sleep(2)
print("went on")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name", "code", "words"),
    [
        (None, "sleep", 3, "error: process {} of Ray, which this command had started, is dead"),
        (None, "raylet", 0, ""),
        (signal.SIGTERM, "sleep", 143, "stopped at once, since Ray's processes were ended too"),
        (signal.SIGTERM, "raylet", 143, "stopped at once, since Ray's processes were ended too"),
    ],
)
def test_a_command_ends_at_once_where_ray_dies(number: signal.Signals | None, name: str, code: int, words: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHES, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    daemon, helper = map(int, process.stdout.readline().split())
    if number is not None:
        process.send_signal(number)
        time.sleep(0.2)
    os.kill(daemon, signal.SIGKILL)
    output, said = process.communicate(timeout=20)
    assert process.returncode == code and words.format(daemon) in said
    assert runs(helper) == (not words)
    assert ("run the command again, with --resume" in said) == bool(words) and ("went on" in output) == (not words)
