"""An update of two ranks that sums gradients during the last backward pass, beside one that sums them after it.

    python -m benchmarks.sums [--layers 24] [--width 2048] [--pairs 8]

Both ranks are processes of one thread on this machine, with gloo. The network has `layers` times `width` squared
weights. The two ways take turns; each update has two backward passes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn import Linear, ReLU, Sequential

from redif_ray.learner.ranks import Ranks
from redif_ray.learning.gradients import Gradients, copies

ROWS = 192


def rank(number: int, store: str, layers: int, width: int, pairs: int) -> None:
    """Measure as one of two ranks; the first one prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    torch.manual_seed(0)
    network = Sequential(*[module for _ in range(layers) for module in (Linear(width, width), ReLU())])
    optimizer, x = torch.optim.SGD(network.parameters()), torch.randn(ROWS, width)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(pairs + 1):
        for overlap in (True, False) if pair % 2 else (False, True):
            dist.barrier()
            began = time.perf_counter()
            own = Gradients(optimizer, Ranks(number, 2).all_reduce)
            own.add(network(x).square().mean(), last=False)
            own.add(network(x).square().mean(), last=overlap)
            own.sum()
            dist.barrier()
            seconds[overlap] += [time.perf_counter() - began] if pair else []  # the first pair warms up
    if number == 0:
        ratios = [during / after for during, after in zip(seconds[True], seconds[False], strict=True)]
        during, after = (statistics.mean(seconds[overlap]) for overlap in (True, False))
        print(f"{during:.3f} s with sums during the pass, {after:.3f} s with sums after it: {during / after:.3f} of it")
        print("pairs:", ", ".join(f"{ratio:.3f}" for ratio in ratios))
        weights = list(network.parameters())
        all_of_them = sum(p.numel() * p.element_size() for p in weights)
        print(f"copies of gradients: {copies(weights) / 1e6:.0f} MB of {all_of_them / 1e6:.0f}")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="redif-") as folder:
        store = str(Path(folder) / "store")
        spawn(rank, (store, options.layers, options.width, options.pairs), nprocs=2)


if __name__ == "__main__":
    main()
