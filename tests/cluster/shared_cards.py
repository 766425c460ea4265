"""A program that prints on which GPU Ray puts ranks and workers that share GPUs, and the placement groups left.

python shared_cards.py CARDS: on a cluster of its own, whose GPUs are numbers alone.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray

from redif_ray.cluster.placement import reserved
from redif_ray.config import Workers, load
from redif_ray.interrupt import StopRequest


class Where:
    def card(self) -> Any:
        return ray.get_gpu_ids()


def main(cards: int) -> None:
    ray.init(address="local", num_cpus=4 * cards, num_gpus=cards, include_dashboard=False, log_to_driver=False)
    config = load(
        None,
        [
            "pipeline.colocate=true",
            f"rollout={{max_workers: {cards}, gpus: 0.2, groups: {cards}}}",
            f"reward={{max_workers: {cards}, gpus: 0.2}}",
            f"learner={{workers: {cards}, gpus: 0.6}}",
        ],
    )
    roles: dict[str, Workers] = {"rollout": config.rollout, "reward": config.reward}
    with reserved(roles, config.learner, StopRequest(), shared=True) as places:
        actors = {
            name: [
                ray.remote(Where).options(num_cpus=1, num_gpus=role.gpus, **places.options(name, role, i)).remote()
                for i in range(cards)
            ]
            for name, role in roles.items()
        }
        places.let_learner_in()
        group = ray.util.placement_group([{"CPU": 1, "GPU": 0.6}] * cards, strategy="PACK")  # as Ray Train asks
        assert group.wait(60)
        inside = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        actors["learner"] = [
            ray.remote(Where)
            .options(num_cpus=1, num_gpus=0.6, scheduling_strategy=inside(group, placement_group_bundle_index=i))
            .remote()
            for i in range(cards)
        ]
        found = {name: ray.get([actor.card.remote() for actor in own]) for name, own in actors.items()}
        ray.util.remove_placement_group(group)
    left = [group["state"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    print(json.dumps(found | {"left": left}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
