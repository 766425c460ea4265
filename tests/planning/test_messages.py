"""The bytes of a round in the object store are counted as they are measured on the objects that workers make."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import mostly_long
from real_sizes import stable_diffusion_35_medium, stable_diffusion_xl
from tiny_pipelines import write_sdxl

from redif_ray.config import Config, load
from redif_ray.loop import PlainLoop
from redif_ray.methods import Deploy
from redif_ray.models.folder import without_weights
from redif_ray.models.registry import load_teacher
from redif_ray.models.student import get_weights
from redif_ray.planning import messages
from redif_ray.planning.paths import absolute

pytestmark = pytest.mark.slow

BIG = ("rollout.groups=4", "rollout.unit_groups=2", "rollout.siblings=16", "warm_start.groups=64")
SETTINGS = {
    "ratios": ("learner.loss=ppo_clip", "learner.anchor.weight=0"),
    "means": ("learner.loss=grpo_guard", "exploration.last_step=true", "learner.anchor.weight=0"),
    "16 bits": ("learner.loss=grpo_guard", "networks.precision=bfloat16", "learner.anchor.weight=0"),
    "jumps": ("learner.anchor={weight: 0.5, gated: true}", "rollout.guided=2"),
    "one step": ("exploration.one_step=true",),
    "one step alone": ("exploration.one_step=true", "learner.anchor.weight=0"),
    "learned": (
        "reward.terms={discriminator: {options: {steps: 1}}, mse: {}}",
        "learner.anchor.weight=0",
    ),
}


def config(root: Path, *overrides: str) -> Config:
    return absolute(load("smoke", [f"run.root={root}", "tracking.uri=off", *BIG, *overrides]))


def size(value: Any) -> int:
    """Bytes of a message as Ray stores it: the pickle with its arrays."""
    buffers: list[pickle.PickleBuffer] = []
    return len(pickle.dumps(value, protocol=5, buffer_callback=buffers.append)) + sum(
        buffer.raw().nbytes for buffer in buffers
    )


def measured(loop: PlainLoop, units: list[Any]) -> messages.Messages:
    """The messages of all units of a round, or of a deployment."""
    total = messages.Messages()
    for unit in units:
        phase = loop.reward.phases[unit.phase]
        _, targets = loop.reward.sent_targets(unit) if phase.teacher_images else loop.reward.encode(unit)
        _, trajectories, final = loop.rollout.rollout(unit, get_weights(loop.student), "policy-0")
        _, scored = loop.reward.score(
            unit, final, trajectories, targets, learned="discriminator-0" if loop.reward.rewards.learned else None
        )
        total = messages.Messages(
            total.trajectories + size(trajectories),
            total.final + size(final),
            total.targets + size(targets),
            total.scores + size(scored),
        )
    return total


@pytest.mark.parametrize("name", mostly_long(SETTINGS, lambda name: name in ("means", "one step", "learned")))
def test_a_round_is_counted_as_it_is_measured(name: str, tmp_path: Path) -> None:
    """The count is that of the largest round, where each round explores at another step."""
    made = config(tmp_path, *SETTINGS[name])
    loop = PlainLoop(made)
    loop.reward.load_learned = lambda *_: ""  # type: ignore[method-assign]  # Ray's store
    counted = messages.of_rounds(made, loop.rollout.teacher)
    for phase in loop.plan.phases:
        rounds = range(phase.first_round, phase.first_round + (made.student.steps if "one step" in name else 1))
        each = [measured(loop, loop.plan.units(round)) for round in rounds if loop.plan.phase(round) is phase]
        found = max(each, key=lambda of_round: of_round.total)
        assert found.total == pytest.approx(counted[phase.name].total, rel=0.01)
        for kind in ("trajectories", "final", "targets", "scores"):
            assert getattr(found, kind) == pytest.approx(getattr(counted[phase.name], kind), rel=0.02, abs=2000), kind
    carried = counted["policy"].trajectories
    assert (counted["warm_start"].final, counted["warm_start"].targets) == (0, 0)
    assert (counted["policy"].scores > carried / 2) == (name in ("jumps", "one step", "learned"))


def test_a_deployment_is_counted_as_it_is_measured(tmp_path: Path) -> None:
    made = config(tmp_path)
    loop = PlainLoop(made)
    units = loop.plan.deploy(messages.Stream.VALIDATION, 32)
    counted = messages.of_phase(made, Deploy(made), loop.rollout.teacher, 32)
    found, most = measured(loop, units), 4 * messages.LARGEST_FEATURES * 32
    assert found.final == pytest.approx(counted.final, rel=0.02, abs=2000)
    assert counted.trajectories == counted.targets == 0 and found.scores <= counted.scores <= found.scores + most


@pytest.mark.long
def test_a_work_unit_of_the_size_of_sdxl_is_measured(tmp_path: Path) -> None:
    """A small network on the latents of 1,024 pixels, in 16 bits: messages do not depend on the number of weights."""
    (tmp_path / "captions.txt").write_text("\n".join(f"a picture of {i}" for i in range(60)))
    folder = write_sdxl(tmp_path / "teacher")
    given = [
        f"teacher={{model: {folder}, height: 256, width: 256, steps: 2}}",
        f"conditions.source={tmp_path}/captions.txt",
        f"run.root={tmp_path}",
        "reward.terms={mse: {}}",
        "warm_start.rounds=0",
        *(f"{role}.gpus=0" for role in ("rollout", "reward", "learner")),
    ]
    made = absolute(load("sdxl_4step_lora", given))
    loop = PlainLoop(made)
    assert loop.student.latent_shape == (4, 128, 128)
    counted = messages.of_rounds(made, loop.rollout.teacher)["policy"]
    each = [(units, measured(loop, units[:1])) for units in map(loop.plan.units, range(made.student.steps))]
    units, one = max(each, key=lambda found: found[1].total)  # rounds explore another step each
    assert (one.trajectories + one.final) * len(units) == pytest.approx(counted.trajectories + counted.final, rel=0.01)
    images = 32 * 3 * 1024**2  # of a VAE that makes eight pixels of an edge where the small one makes two
    assert (one.trajectories + one.final) * len(units) + images == pytest.approx(201.5e6, rel=0.01)


EVERY_STEP = ("exploration.one_step=false", "rollout={groups: 8, siblings: 12, unit_groups: 1}")


@pytest.mark.parametrize(
    ("write", "recipe", "given", "round_mb", "before_mb"),
    [
        (stable_diffusion_xl, "sdxl_4step_lora", (), 210, 1260),
        (stable_diffusion_35_medium, "sd35_4step_lora", (), 160, 805),
        (stable_diffusion_xl, "sdxl_4step_lora", EVERY_STEP, 120, 430),
        (
            stable_diffusion_35_medium,
            "sd35_4step_lora",
            (*EVERY_STEP, "teacher={height: 1024, width: 1024}"),
            395,
            1100,
        ),
    ],
)
def test_rounds_of_real_size(
    write: Any, recipe: str, given: Sequence[str], round_mb: float, before_mb: float, tmp_path: Path
) -> None:
    """The recipes of docs/measurements.md, and half of what a round was when it carried means and targets twice."""
    made = load(recipe, [*given, f"teacher.model={write(tmp_path)}", f"run.root={tmp_path}"])
    with without_weights():
        model = load_teacher(made.teacher, device="meta", dtype=torch.bfloat16)
    found = messages.of_rounds(made, model)["policy"]
    assert 0.85 * round_mb < found.total / 1e6 < round_mb
    groups, latent = made.rollout.groups, 4 * torch.Size(model.latent_shape).numel()
    rows, steps, image = groups * made.rollout.siblings, 4, 4 * torch.Size(model.image_shape).numel()
    before = rows * (2 * steps + 1) * latent + 2 * groups * image
    assert before / 1e6 == pytest.approx(before_mb, rel=0.02)


def test_a_stale_run_keeps_two_rounds_and_one_that_takes_turns_makes_no_images_ahead(tmp_path: Path) -> None:
    made = config(tmp_path)
    kept, stale, turns = (
        messages.store(config(tmp_path, *options))
        for options in ((), ("pipeline.staleness=1",), ("pipeline.colocate=true",))
    )
    model = load_teacher(made.teacher)
    rounds = messages.of_rounds(made, model)
    assert kept.rounds == max(each.total for each in rounds.values()) and kept.ahead == rounds["policy"].targets
    assert stale.rounds == 2 * kept.rounds and (turns.rounds, turns.ahead) == (kept.rounds, 0)
    trained = sum(value.numel() for value in model.network.parameters())
    assert (kept.weights, stale.weights) == (4 * trained * 5, 4 * trained * 7)  # of each kind two or three, and one
