"""Measure what a checkpoint costs training: without an upload, with one to a slow disk, and if training waited for it.

    python -m benchmarks.upload --mb 200 --mb-per-second 20

Taken in turns, so that what else the machine does falls on all alike. Between checkpoints there are matrix products on
one thread; how much slower the upload makes them is the last line.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from pyarrow import fs

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "job"))
from slow_disk import SlowDisk

from redif_ray.checkpoint import save_checkpoint
from redif_ray.runs.backup_store import WRITER, Remote
from redif_ray.runs.backup_thread import Uploader
from redif_ray.runs.folder import prune_checkpoints

REPEATS, ROUND = 3, 3.0  # seconds of work after a checkpoint


class Training:
    """A run of nothing but checkpoints and matrix products."""

    def __init__(self, folder: Path, mb: int) -> None:
        self.folder, self.round = folder, 0
        self.tensors, self.matrix = {"weights": torch.rand(mb * 250_000)}, torch.rand(256, 256)

    def checkpoint(self, hand: Callable[[], object]) -> float:
        """Seconds, with what `hand` takes."""
        self.round += 1
        self.tensors["weights"][0] = self.round  # what is there already would not be sent again
        started = time.perf_counter()
        save_checkpoint(self.folder / "checkpoints" / f"round-{self.round:06d}", self.tensors, {"round": self.round})
        hand()
        prune_checkpoints(self.folder / "checkpoints", 1)
        return time.perf_counter() - started

    def work(self) -> int:
        """Products in the time of a round."""
        done, until = 0, time.perf_counter() + ROUND
        while time.perf_counter() < until:
            self.matrix @ self.matrix
            done += 1
        return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--mb-per-second", type=float, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as root:
        disk = SlowDisk()
        disk.seconds_a_mb = 1 / options.mb_per_second
        remote = Remote(fs.PyFileSystem(disk), f"{root}/remote", "slow://disk")
        remote.write(WRITER, b"w")
        run = Training(Path(root, "run"), options.mb)
        own = Uploader(lambda: remote, run.folder, ("run", "w"), 1, lambda: None)
        for _ in range(REPEATS):
            found["without"].append(run.checkpoint(lambda: None))
            alone = run.work()
            began = time.perf_counter()
            found["with"].append(run.checkpoint(own.hand))
            found["work"].append(run.work() / alone)
            own.wait()
            found["waiting"].append(time.perf_counter() - began)
            run.checkpoint(own.hand)
            found["busy"].append(run.checkpoint(own.hand))
            own.wait()
            assert [copy.round for copy in remote.copies()] == [run.round]
        own.leave()
    middle = {name: statistics.median(values) for name, values in found.items()}
    print(f"a checkpoint of {options.mb} MB, {options.mb_per_second:g} MB/s, medians of {REPEATS}")
    for name, what in (
        ("without", "without an upload"),
        ("with", "handed over"),
        ("waiting", "until it is there"),
        ("busy", "handed over, another on its way"),
    ):
        print(f"{what:32} {middle[name]:7.3f} s, ratio {middle[name] / middle['without']:.2f}")
    print(f"work beside an upload, of that without one: {middle['work']:.3f}")
    print({name: [round(v, 3) for v in values] for name, values in found.items()})


if __name__ == "__main__":
    main()
