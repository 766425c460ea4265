"""The most memory that each worker process of a `redif` takes on its device, noted by the processes themselves.

From inside a container `nvidia-smi` does not tell one process from another. Ray calls `watched` as it starts, and
`watch` as each of its worker processes starts; which of them the environment says.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOTES, DEVICE = "REDIF_PEAKS", "REDIF_PEAKS_DEVICE"  # variables: the folder of a file for each process, cuda or cpu
LOOK_SECONDS = 0.2


def environment(notes: Path, where: str) -> dict[str, str]:
    """Return the environment of the `redif` to watch. notes: an empty folder. where: "cuda", or "cpu": main memory."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "RAY_RUNTIME_ENV_HOOK": f"{__name__}.watched",
        "PYTHONPATH": os.pathsep.join(paths),
        NOTES: str(notes),
        DEVICE: where,
    }


def noted(notes: Path) -> list[tuple[str, float]]:
    """Return the title of each process, as Ray set it last, and its peak in MB."""
    found = [path.read_text().split(" ", 1) for path in notes.iterdir() if not path.suffix]
    return [(title, float(mb)) for mb, title in found]


def watched(runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the environment of a job with `watch` in it."""
    return {**(runtime_env or {}), "worker_process_setup_hook": f"{__name__}.watch"}


def watch() -> None:
    """Note the peak of this process, in a thread, until the process ends."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    path, last = Path(os.environ[NOTES], str(os.getpid())), ""
    while True:
        title = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode()
        text = f"{_peak_mb(os.environ[DEVICE]):.1f} {title}"
        if text != last:
            partial = path.with_suffix(".partial")  # the process may be killed as it writes
            partial.write_text(text)
            partial.replace(path)
            last = text
        time.sleep(LOOK_SECONDS)


def _peak_mb(where: str) -> float:
    """Return the most memory that this process has had. On a GPU: of tensors, 0 before the first."""
    if where == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    torch = sys.modules.get("torch")
    try:
        return torch.cuda.max_memory_allocated() / 1e6 if torch is not None and torch.cuda.is_initialized() else 0.0
    except AttributeError:  # torch is being imported
        return 0.0
