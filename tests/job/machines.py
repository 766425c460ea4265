"""Machines on one kernel: each has an address, a host name, a /tmp/ray and a /dev/shm of its own, and a cable to pull.

They are network, mount and UTS namespaces that a bridge joins; making them takes root on Linux and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

NETWORK = "198.18.77"  # of the range that is set aside for benchmarks of networks
BRIDGE = "redif"
TOKEN = "machines-of-a-test-that-nobody-else-is-to-enter"
OWN = ("/tmp/ray", "/dev/shm")


def possible() -> bool:
    """Whether this process may make namespaces and cables."""
    if not (shutil.which("ip") and shutil.which("unshare") and shutil.which("nsenter") and os.geteuid() == 0):
        return False
    made = "ip link add x type veth peer name y"
    return subprocess.run(["unshare", "--net", "--mount", "sh", "-c", made], capture_output=True).returncode == 0


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Machine:
    """hidden: a folder of the host that this machine has another one in the place of."""

    def __init__(self, number: int, hidden: Path | None = None) -> None:
        self.number, self.address = number, f"{NETWORK}.{10 + number}"
        own = [*OWN, *([] if hidden is None else [str(hidden)])]
        names = rf"127.0.0.1 localhost\n127.0.1.1 m{number}\n"  # as Debian has them: its own name does not lead out
        script = [
            f"hostname m{number}",
            *(f"mkdir -p {path} && mount -t tmpfs tmpfs {path}" for path in own),
            f"printf '{names}' > /dev/shm/hosts",
            "mount --bind /dev/shm/hosts /etc/hosts",
            "exec sleep infinity",
        ]
        command = " && ".join(script)
        self.holder = subprocess.Popen(["unshare", "--net", "--mount", "--uts", "sh", "-c", command])
        while psutil.Process(self.holder.pid).name() != "sleep":
            time.sleep(0.01)
        near, far = f"{BRIDGE}{number}", f"{BRIDGE}{number}e"
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", str(self.holder.pid))
        _ip("link", "set", near, "master", BRIDGE, "up")
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", far)
        self.run("ip", "link", "set", far, "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "route", "add", "default", "via", f"{NETWORK}.1")

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A process on this machine; its output is one text."""
        inside = ["nsenter", "-t", str(self.holder.pid), "--net", "--mount", "--uts"]
        variables = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        return subprocess.Popen(
            [*inside, *command], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *command: str) -> str:
        process = self.start(*command)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    def cut(self) -> None:
        """Pull its cable: nobody is told that it is gone."""
        _ip("link", "set", f"{BRIDGE}{self.number}", "down")

    def processes(self) -> Iterator[psutil.Process]:
        mine = self._network(self.holder.pid)
        for process in psutil.process_iter():
            with suppress(OSError):  # it has ended
                if self._network(process.pid) == mine:
                    yield process

    @staticmethod
    def _network(pid: int) -> int:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino

    def runs(self, title: str) -> bool:
        """Whether a process of this name is on it."""
        for process in self.processes():
            with suppress(psutil.Error):
                if process.name().startswith(title) or " ".join(process.cmdline()).startswith(title):
                    return True
        return False

    def stop(self) -> None:
        for process in [p for p in self.processes() if p.pid != self.holder.pid]:
            with suppress(psutil.Error):
                process.kill()
        self.holder.kill()
        self.holder.wait()
        _ip("link", "del", f"{BRIDGE}{self.number}")  # the kernel takes its time for a network that nobody is in


@contextmanager
def machines(*hidden: Path | None) -> Iterator[list[Machine]]:
    """As many as there are arguments, for the length of a block."""
    _ip("link", "add", BRIDGE, "type", "bridge")
    made: list[Machine] = []
    try:
        _ip("addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for number, path in enumerate(hidden):
            made.append(Machine(number, path))
        yield made
    finally:
        for machine in made:
            machine.stop()
        _ip("link", "del", BRIDGE)
