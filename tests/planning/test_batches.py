"""The batches that are chosen by what fits, against what doctor counts for them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from real_sizes import stable_diffusion_xl

from redif_ray.config import Config, load
from redif_ray.planning.batches import MARGIN, MOST, RECOMPUTE, SIZES, Counted, chosen, filled
from redif_ray.planning.gpu_memory import tightest_gpu_mb
from redif_ray.planning.host_memory import main_memory_mb
from redif_ray.planning.memory import OVERHEAD_MB, Footprint, _most_states, footprints
from redif_ray.planning.nodes import ROLES, Node

OPEN = ("learner.microbatch=null", "evaluation.batch=null")
SHARED = ("rollout.gpus=0.25", "reward.gpus=0.25", "learner.gpus=0.5")
APART = ("rollout.labels={size: small}", "reward.labels={size: small}", "learner.labels={size: large}")


def config(*overrides: str) -> Config:
    found: Config = load("smoke", [*OPEN, *overrides])
    return found


def node(memory: float = 1e6, *gpus: float, **labels: str) -> Node:
    """A machine with enough of all else."""
    return Node({"CPU": 64, "GPU": len(gpus)}, labels, tuple(("card", mb) for mb in gpus), memory, 1e6, driver=True)


def numbers(found: Config) -> tuple[int | None, int | None]:
    return found.learner.microbatch, found.evaluation.batch


def needed(found: Config, states: int, images: int) -> float:
    """MB of main memory of a run on CPUs with these two numbers."""
    return main_memory_mb(found, footprints(filled(found, states, images)))


@pytest.mark.slow
def test_where_there_is_room_both_are_the_most() -> None:
    found, why = chosen(config(), [node(128_000)])
    assert numbers(found) == (MOST, MOST)
    assert why == (
        "learner.microbatch=32 and evaluation.batch=32: the largest power of two up to 32 that fits in 128,000 MB of "
        "main memory, of which 90% may be filled"
    )


def test_numbers_that_are_emojistay_and_count_nothing() -> None:
    given = load("smoke")
    assert chosen(given, []) == (given, "")


@pytest.mark.slow
def test_of_two_one_may_be_given() -> None:
    found, why = chosen(config("learner.microbatch=3"), [node()])
    assert numbers(found) == (3, MOST) and why.startswith("evaluation.batch=32: ")


@pytest.mark.slow
@pytest.mark.parametrize("states", [2, 8])
def test_they_are_the_largest_that_fit(states: int) -> None:
    """The numbers are chosen where there is the memory that they need, and the margin; no larger ones fit there."""
    open_ = config("rollout.siblings=4", "teacher.model=emoji", "conditions.source=emoji")
    counted = Counted(open_, ROLES)
    enough = main_memory_mb(open_, counted.at(states, states)) / MARGIN
    found, _ = chosen(open_, [node(enough * 1.0001)])
    assert min(numbers(found)) >= states
    assert needed(found, *numbers(found)) <= MARGIN * enough * 1.0001
    larger = [(2 * numbers(found)[0], numbers(found)[1]), (numbers(found)[0], 2 * numbers(found)[1])]
    for pair in larger:
        assert main_memory_mb(open_, counted.at(*pair)) > MARGIN * enough * 1.0001


@pytest.mark.slow
def test_between_the_two_counts_none_is_too_small() -> None:
    """For each number, what is taken to be needed is at least what doctor counts, and not much more."""
    open_ = config("rollout.siblings=4")
    counted = Counted(open_, ROLES)
    for n in SIZES:
        real, taken = footprints(filled(open_, n, n)).roles, counted.at(n, n).roles
        for role in ROLES:
            assert real[role].total <= taken[role].total * (1 + 1e-9)
            assert taken[role].activations <= 1.5 * real[role].activations + 0.5, (role, n)


@pytest.mark.slow
def test_roles_that_share_a_gpu_share_its_memory() -> None:
    shared = config(*SHARED)
    counted = Counted(shared, ROLES)
    card = tightest_gpu_mb(shared, counted.at(8, 8).roles, [node(1e6, 1e9)])[0] / MARGIN
    found, why = chosen(shared, [node(1e6, card * 1.00001)])
    assert min(numbers(found)) >= 8 and numbers(found) != (MOST, MOST)
    assert tightest_gpu_mb(shared, footprints(found).roles, [node(1e6, card)])[0] <= MARGIN * card * 1.00001
    assert f"a GPU of {card:,.0f} MB and 1,000,000 MB of main memory" in why
    small, _ = chosen(shared, [node(1e6, card * 1.00001, 80_000), node(1e6, 80_000)])
    assert numbers(small) == numbers(found)  # a worker may come to the smallest of them


@pytest.mark.slow
def test_activations_are_computed_again_only_where_two_states_do_not_fit_without() -> None:
    """On a GPU that has room for two states without, for one, and for a given number or less than that."""
    emoji = (*SHARED, "rollout.siblings=4", "teacher.model=emoji", "conditions.source=emoji")
    shared = config(*emoji)
    counted = Counted(shared, ROLES)

    def on(states: int, *overrides: str) -> tuple[Config, str]:
        card = tightest_gpu_mb(shared, counted.at(states, 1).roles, [node(1e6, 1e9)])[0] / MARGIN * 1.0001
        return chosen(config(*emoji, *overrides), [node(1e6, card)])

    without, with_, given = on(2), on(1), on(2, "learner.microbatch=2", "evaluation.batch=1")
    assert without[0].learner.activation_checkpointing is False and "checkpointing" not in without[1]
    assert with_[0].learner.activation_checkpointing is True and RECOMPUTE + "=true" in with_[1]
    assert given[0].learner.activation_checkpointing is False and given[1].startswith(f"{RECOMPUTE}=false: what fits")
    large = on(2, "learner.microbatch=8", "evaluation.batch=1")[0]
    assert large.learner.activation_checkpointing is True and large.learner.microbatch == 8
    assert on(1, f"{RECOMPUTE}=false")[0].learner.activation_checkpointing is False


def test_a_gpu_that_ranks_share_with_workers_holds_one_of_each() -> None:
    """Four rollout workers would fit into what a rank leaves of a GPU, by their parts alone."""
    turns = config(
        "pipeline.colocate=true",
        "rollout={max_workers: 4, gpus: 0.1, groups: 4, unit_groups: 1}",
        "reward={max_workers: 4, gpus: 0.1}",
        "learner={workers: 4, gpus: 0.6}",
    )
    roles = {"rollout": Footprint(100, 0, 10), "reward": Footprint(200, 0, 20), "learner": Footprint(150, 50, 30)}
    whole = max(100 + 10 + 200 + 20, 150 + 50 + 30) + 3 * OVERHEAD_MB
    assert tightest_gpu_mb(turns, roles, [node(1e6, *[1e6] * 4)])[0] == whole


@pytest.mark.slow
def test_each_role_fills_the_nodes_that_take_it() -> None:
    """The learner's number is that of its own large GPU, whatever the others' small one holds."""
    apart = config("ray.address=auto", "rollout.gpus=0.5", "reward.gpus=0.5", "learner.gpus=1", *APART)
    counted = Counted(apart, ROLES)
    others = {role: one for role, one in counted.at(1, 4).roles.items() if role != "learner"}
    small = tightest_gpu_mb(apart, others, [node(1e6, 1e9, size="small")])[0] / MARGIN * 1.00001
    found, _ = chosen(apart, [node(1e6, small, size="small"), node(1e6, 1e6, size="large")])
    states, images = numbers(found)
    assert states == MOST and images is not None and 4 <= images < MOST


@pytest.mark.parametrize("there", [[], [node(1e6)], [node(1e6, 80_000, size="other")]])
def test_where_no_gpu_is_known_both_are_small(there: list[Node]) -> None:
    found, why = chosen(config("ray.address=auto", *SHARED, *APART), there)
    assert numbers(found) == (4, 4)
    assert "no GPU is known that workers of rollout and reward and learner may be placed on" in why


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "there", "said"), [(SHARED, node(1e6, 100), "memory of a GPU"), ((), node(100), "main memory")]
)
def test_where_nothing_fits_both_are_one(overrides: tuple[str, ...], there: Node, said: str) -> None:
    found, why = chosen(config(*overrides), [there])
    assert numbers(found) == (1, 1) and f"too little {said}" in why and "redif doctor" in why


@pytest.mark.slow
def test_a_command_without_a_learner_chooses_for_its_workers_alone() -> None:
    """A search has reward workers only, so it chooses as if the learner needed nothing."""
    large = config("student.steps=4")
    counted = Counted(large, ROLES)
    alone = Counted(large, ("reward",))
    enough = main_memory_mb(large, alone.at(1, MOST)) / MARGIN * 1.00001
    assert main_memory_mb(large, counted.at(1, 1)) > MARGIN * enough
    found, why = chosen(large, [node(enough)], ("reward",))
    assert numbers(found) == (None, MOST) and why.startswith("evaluation.batch=32: ")


@pytest.mark.long
def test_a_network_of_real_size_is_counted_in_seconds(tmp_path: Path) -> None:
    """All three roles of SDXL on a GPU of 40 GB; 22 s of a slow core, of which another's work does not count."""
    recipe: Config = load(
        "sdxl_4step_lora", [f"teacher.model={stable_diffusion_xl(tmp_path)}", "reward.terms={mse: {}}"]
    )
    started = time.process_time()
    found, _ = chosen(recipe, [node(64_000, 40_000)])
    assert time.process_time() - started < 45
    states, images = numbers(found)
    assert states is not None and 4 <= states < MOST and images is not None and 8 <= images < MOST


def test_a_rank_has_whole_units_of_a_round() -> None:
    """Three units of four groups each, of which the first of two ranks gets two."""
    units = ("rollout.groups=4", "rollout.unit_groups=4", "rollout.siblings=1", "student.steps=1")
    method = ("method=consistency", "consistency.groups=12", "warm_start.rounds=0")
    one, two = (config(*units, *method, f"learner.workers={n}") for n in (1, 2))
    assert (_most_states(one), _most_states(two)) == (12, 8)
