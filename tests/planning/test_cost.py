from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import mostly_long
from real_sizes import stable_diffusion_15, stable_diffusion_xl

from redif_ray.config import Lora, load
from redif_ray.data.conditions import Conditions
from redif_ray.diffusion import schedules, solvers
from redif_ray.evaluation.compute import decode_flops, prediction_flops, update_factor
from redif_ray.models.folder import without_weights
from redif_ray.models.registry import load_model
from redif_ray.models.student import make_student, trainable, trained_numbers
from redif_ray.planning import cost
from redif_ray.planning.cost import GPU_FLOPS, Batches, estimate
from redif_ray.planning.timing import Speed

CLASSES = Conditions(tuple(range(10)), tuple(range(10)))
REGRESSION = ("method=sfd", "warm_start={rounds: 10, groups: 64}", "learner.threads=1")  # two work units a round


@pytest.mark.slow
def test_rounds_share_the_seconds_of_their_phase() -> None:
    found = estimate(load("smoke"), CLASSES)
    seconds = found.seconds
    assert found.round_seconds["warm_start"] == seconds["warm start"] + seconds["warm start, update"]
    own = seconds["policy gradient"] + seconds["policy gradient, update"]
    assert 3 * found.round_seconds["policy"] == pytest.approx(own)


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, on which every call takes 1 ms an image, so that counts can be read from seconds."""

    def speeds(*given: Any) -> dict[int, Speed]:
        _, _, flops, decode_flops, rows, together, _ = given
        return dict.fromkeys(rows, Speed(dict.fromkeys(together, 1e-3), decode_flops / flops))

    monkeypatch.setattr(cost, "cpu_speed", speeds)
    monkeypatch.setattr(cost.os, "cpu_count", lambda: 2)


@pytest.mark.usefixtures("even")
def test_work_counted_by_hand() -> None:
    """Regression alone: 10 rounds of 64 rows, 4 steps, jumps of 3; the update is a forward and 1.9 for its backward."""
    found = estimate(load("fashion_mnist", [*REGRESSION, "reward.calibration=100"]), CLASSES)
    rows, call = 10 * 64 * 4, found.forward_ms / 1e3
    assert set(found.round_seconds) == {"warm_start"}
    assert found.seconds["warm start, update"] == pytest.approx(rows * 2.9 * call)
    assert set(found.seconds) == {
        "warm start",
        "warm start, update",
        "calibration",
        "validation",
        "evaluation",
        "start",
    }
    calls = {"warm start": rows * (1 + 3), "calibration": 100 * (4 + 2 * 20)}  # two images of the teacher a group
    assert found.seconds["calibration"] / found.seconds["warm start"] == pytest.approx(
        calls["calibration"] / calls["warm start"]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("even")
def test_guided_calls_count_twice() -> None:
    student = estimate(load("fashion_mnist", [*REGRESSION, "student.guidance=2"]), CLASSES)
    teacher = estimate(load("fashion_mnist", [*REGRESSION, "teacher.guidance=2"]), CLASSES)
    rows, jump = 10 * 64 * 4, 3
    call = student.forward_ms / 1e3
    assert student.seconds["warm start, update"] == pytest.approx(2 * rows * 2.9 * call)
    call = teacher.forward_ms / 1e3
    assert teacher.seconds["warm start, update"] == pytest.approx(rows * 2.9 * call)
    for found, own, jump_calls, target in ((student, 8, 1, 20), (teacher, 4, 2, 40)):
        ways = 2 * len(schedules.named(load_model("fashion-mnist").process, 4))
        warm, evaluation = 640 * (own + 4 * jump * jump_calls), 2000 * (4 * own + target) + 200 * (target + ways * own)
        assert found.seconds["warm start"] / found.seconds["evaluation"] == pytest.approx(warm / evaluation)


@pytest.mark.slow
@pytest.mark.usefixtures("even")
def test_the_update_of_the_policy_counted_by_hand() -> None:
    """Rounds of 6 groups of 4, 2 steps of which the first explores from a state that siblings share.

    Without sixteen bits and several steps, that state is predicted once more for 16 rows, to check their ratios.
    """
    base = ["learner.anchor.weight=0", "learner.threads=1"]
    half = [*base, "networks.precision=bfloat16"]
    rounds, groups, checked = 3, 6, 6
    for overrides, calls in (
        (half, groups * 2.9 + checked),
        ([*base, "learner.minibatch=5"], groups * 2.9 + checked),
        ([*half, "learner.minibatch=5"], groups * 3.9),
        ([*half, "pipeline.staleness=1"], groups * 3.9),
        ([*half, "learner.inner_epochs=2"], groups * (2 * 2.9 + 1)),
        (["learner.threads=1"], groups * (1 + 4) * 2.9 + checked),  # an anchor trains every step
    ):
        found = estimate(load("smoke", overrides), CLASSES)
        assert found.seconds["policy gradient, update"] * 1e3 == pytest.approx(int(rounds * calls))


@pytest.mark.slow
@pytest.mark.usefixtures("even")
def test_roles_work_at_once() -> None:
    """One worker of each role: the round takes as long as the slower one, and the other for one of two units."""
    own = ["rollout.max_workers=1", "reward.max_workers=1", "rollout.groups=4", "rollout.unit_groups=2"]
    found = estimate(load("smoke", [*own, "learner.anchor.weight=0", "learner.threads=1"]), CLASSES)
    teacher = load("smoke").teacher
    rollout, reward = 3 * (4 * 4 * 2 - 4 * 3), 3 * 4 * solvers.network_calls(teacher.solver, teacher.steps)
    slower, other = max(rollout, reward), min(rollout, reward)
    assert found.seconds["policy gradient"] * 1e3 == pytest.approx(max((rollout + reward) / 2, slower + other / 2))


@pytest.mark.parametrize(
    ("groups", "unit", "workers", "busiest"), [(48, 32, 2, 32), (5, 2, 2, 3), (8, 2, 2, 4), (6, 2, 4, 2), (3, 8, 2, 3)]
)
def test_the_busiest_worker_takes_whole_work_units(groups: int, unit: int, workers: int, busiest: int) -> None:
    """In turn, each by the worker that is free."""
    free = [0] * workers
    for first in range(0, groups, unit):
        free[free.index(min(free))] += min(unit, groups - first)
    assert max(free) == busiest
    assert Batches(groups, unit, {}).share(workers) == pytest.approx(busiest / groups)


CAPTIONS = Conditions(("a red fox", "a blue bird"), ("a green frog",))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("big")
    return {"sd15_coco_5step": stable_diffusion_15(root / "sd15"), "sdxl_4step_lora": stable_diffusion_xl(root / "xl")}


@pytest.mark.slow
def test_decoding_and_the_reference_are_counted(big: dict[str, Path]) -> None:
    """At 512 pixels a decode takes 2.5 TFLOPs, more than three calls of the network; a model of pixels has none."""
    folder = big["sd15_coco_5step"]
    with without_weights():
        model = load_model(folder, device="meta")
    assert decode_flops(model) == pytest.approx(2.51e12, rel=0.02)
    assert decode_flops(load_model("fashion-mnist")) == 0
    settings = "evaluation={held_out: 1000, search: 8, batch: 8, judge: random-features}"
    guidance, gpus = ("teacher.guidance=1", "student.guidance=1"), ("rollout.gpus=1", "reward.gpus=1")
    found = estimate(load("sd15_coco_5step", [f"teacher.model={folder}", settings, *guidance, *gpus]), CAPTIONS)
    own, target, decode = 5, 50, decode_flops(model) / prediction_flops(model)
    arms = 1000 * (3 * own + target + own + 5 * decode) + 1000 * (target + decode)
    chosen = 8 * (target + decode + 2 * len(schedules.named(model.process, 5)) * (own + decode))
    assert found.seconds["evaluation"] == pytest.approx((arms + chosen) * found.forward_ms / 1e3 / 2)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("recipe", "tflops", "gpus"),
    mostly_long(
        [(*recipe, gpus) for recipe in (("sd15_coco_5step", 0.80), ("sdxl_4step_lora", 6.7)) for gpus in (True, False)],
        lambda recipe, tflops, gpus: recipe == "sd15_coco_5step" and not gpus,
    ),
)
def test_a_network_of_real_size_is_counted_in_seconds(
    recipe: str, tflops: float, gpus: bool, big: dict[str, Path]
) -> None:
    """What a prediction of one image costs is published: .40 and 3.3 T multiply-adds without guidance."""
    on_cpus = [] if gpus else ["rollout.gpus=0", "reward.gpus=0", "learner.gpus=0"]
    config = load(recipe, [f"teacher.model={big[recipe]}", *on_cpus])
    started = time.process_time()
    found = estimate(config, CAPTIONS)
    assert time.process_time() - started < 20  # 4 to 8 s of an undisturbed core, which a slow phase may double
    assert config.learner.activation_checkpointing is None  # until it is chosen, the cheaper way is counted
    factor = update_factor(lora=config.student.lora.rank > 0, checkpointing=False)
    factor *= 1 if config.student.guidance == 1 else 2
    calls = config.warm_start.rounds * config.warm_start.groups * config.student.steps * factor
    rate = found.seconds["warm start, update"] / calls
    if gpus:
        precision = GPU_FLOPS[config.networks.precision]
        assert rate * precision / 1e12 == pytest.approx(tflops, rel=0.02)
        assert found.forward_ms == pytest.approx(1e3 * tflops * 1e12 / precision, rel=0.02) and found.gpu_flops > 1e15
    else:
        assert 1e9 < tflops * 1e12 / found.forward_ms * 1e3 < 1e12 and found.gpu_flops == 0


@pytest.mark.slow
def test_a_share_of_a_gpu_is_not_slower_than_its_card(big: dict[str, Path]) -> None:
    """Two roles of half a GPU each take turns on one; with one each they take half the time."""
    model = f"teacher.model={big['sd15_coco_5step']}"
    shares = [
        estimate(load("sd15_coco_5step", [model, f"rollout.gpus={g}", f"reward.gpus={g}"]), CAPTIONS) for g in (0.5, 1)
    ]
    half, one = (found.seconds["policy gradient"] for found in shares)
    assert half == pytest.approx(2 * one)


@pytest.mark.slow
def test_adapters_are_counted_as_they_are_made(big: dict[str, Path]) -> None:
    with without_weights():
        teacher = load_model(big["sd15_coco_5step"], device="meta")
    for lora in (Lora(), Lora(rank=8), Lora(rank=4, targets=("conv1", "to_q", "proj_in"))):
        made = trainable(make_student(teacher, lora)).values()
        assert trained_numbers(teacher.network, lora) == sum(p.numel() for p in made)


@pytest.mark.slow
def test_threads_of_the_process_stay_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        estimate(load("smoke"), CLASSES)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
