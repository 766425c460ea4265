"""Show that Ray Tune's own searcher and scheduler depend on the order in which trials end, without a Ray cluster.

python benchmarks/tune_order.py
"""

from __future__ import annotations

import logging
import random

import optuna
from ray import tune
from ray.tune.schedulers.async_hyperband import _Bracket  # private: what ASHAScheduler asks, without a cluster
from ray.tune.search.optuna import OptunaSearch

TRIALS, AT_ONCE, ORDERS = 40, 4, 5


class Trial:
    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


def proposals(order: int, at_once: int) -> tuple[float, ...]:
    """Proposals of OptunaSearch, seed 0, for (x - 0.3)^2. order: the seed of which running trial ends next."""
    search = OptunaSearch({"x": tune.uniform(0, 1)}, metric="y", mode="min", seed=0)
    luck, running, found = random.Random(order), dict[str, float](), list[float]()
    while len(found) < TRIALS or running:
        while len(found) < TRIALS and len(running) < at_once:
            name = str(len(found))
            running[name] = search.suggest(name)["x"]
            found.append(running[name])
        name = luck.choice(sorted(running))
        search.on_trial_complete(name, {"y": (running.pop(name) - 0.3) ** 2, "training_iteration": 1})
    return tuple(found)


def survivors(order: int) -> list[int]:
    """Return which of nine trials with the scores 0 to 8, higher being better, go on at ASHA's first rung."""
    bracket, arrivals = _Bracket(1, 9, 3, 0), list(range(9))
    random.Random(order).shuffle(arrivals)
    return sorted(i for i in arrivals if bracket.on_result(Trial(i), 1, float(i)) != "STOP")


def main() -> None:
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for at_once in (1, AT_ONCE):
        runs = [proposals(order, at_once) for order in range(ORDERS)]
        same = next((i for i, values in enumerate(zip(*runs, strict=True)) if len(set(values)) > 1), TRIALS)
        print(
            f"OptunaSearch, {at_once} at once: {len(set(runs))} lists of proposals in {ORDERS} orders, "
            f"the same up to number {same}"
        )
    print(f"ASHAScheduler: {[survivors(order) for order in range(ORDERS)]} go on")


if __name__ == "__main__":
    main()
