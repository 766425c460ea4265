"""What a checkpoint costs training, without an upload, with one to a slow disk, and if it waited for it.

    python benchmarks/upload.py --mb 200 --mb-per-second 20

Between checkpoints there are matrix products on one thread; how much slower the upload makes them is the last line.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pyarrow import fs

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "pipeline"))
from slow_disk import SlowDisk

from redif_ray.checkpoint import save_checkpoint
from redif_ray.pipeline.remote import WRITER, Remote
from redif_ray.pipeline.run_folder import prune_checkpoints
from redif_ray.pipeline.uploader import Uploader

CHECKPOINTS, ROUND = 6, 3.0  # seconds of work between two of them


def measure(folder: Path, mb: int, hand: Callable[[], object]) -> tuple[float, float]:
    """(median seconds that a checkpoint takes, products a second between checkpoints)."""
    tensors, matrix = {"weights": torch.rand(mb * 250_000)}, torch.rand(256, 256)
    waited, done = [], 0
    for round in range(1, CHECKPOINTS + 1):
        started = time.perf_counter()
        save_checkpoint(folder / "checkpoints" / f"round-{round:06d}", tensors, {"round": round})
        hand()
        prune_checkpoints(folder / "checkpoints", 1)
        waited.append(time.perf_counter() - started)
        until = time.perf_counter() + ROUND
        while time.perf_counter() < until:
            matrix @ matrix
            done += 1
    return statistics.median(waited), done / (CHECKPOINTS * ROUND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--mb-per-second", type=float, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        disk = SlowDisk()
        disk.seconds_a_mb = 1 / options.mb_per_second
        remote = Remote(fs.PyFileSystem(disk), f"{root}/remote", "slow://disk")
        remote.write(WRITER, b"w")
        own = Uploader(lambda: remote, Path(root, "with"), ("run", "w"), 1, lambda: None)
        without, alone = measure(Path(root, "without"), options.mb, lambda: None)
        beside, shared = measure(Path(root, "with"), options.mb, own.hand)
        through = len(remote.rounds())
        waiting, _ = measure(Path(root, "with"), options.mb, lambda: (own.hand(), own.wait()))
        own.leave()
    print(f"a checkpoint of {options.mb} MB, {options.mb_per_second:g} MB/s, medians of {CHECKPOINTS}")
    print(f"without an upload    {without:.3f} s")
    print(f"with one             {beside:.3f} s, ratio {beside / without:.3f}; {through} of {CHECKPOINTS} copied")
    print(f"if it waited for it  {waiting:.3f} s, ratio {waiting / without:.1f}")
    print(f"work between them    {shared / alone:.3f} of what is done without an upload")


if __name__ == "__main__":
    main()
