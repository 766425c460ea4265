"""All that workers and learner compute, on a device that is not the CPU: nothing is left behind, results are the same.

A device that is none stands in for a GPU, and where there is a GPU it is its turn, too.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import device_run
import numpy as np
import pytest
import second_device
import torch
from cases import mostly_long
from short_runs import FAMILIES, SHORT, adapted, flat, rounds, told, written
from smoke_runs import last_weights, plain_weights, smoke, summary
from tiny_models import write_dit
from tiny_pipelines import write_sd
from torch import Tensor

from redif_ray.adaptive.observation import size
from redif_ray.adaptive.policy import Policy, static_table
from redif_ray.adaptive.tasks import Goal
from redif_ray.adaptive.worker import AdaptiveWorker
from redif_ray.config import Config, load
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Times
from redif_ray.evaluation.encoders import networks_of
from redif_ray.learner.learned_reward import LearnedReward
from redif_ray.learner.train_state import load_trained, trained
from redif_ray.learning.ema import ExponentialAverage
from redif_ray.loop import PlainLoop
from redif_ray.models.registry import load_model
from redif_ray.models.student import get_weights, trainable
from redif_ray.planning import factory
from redif_ray.rewards.base import RewardInputs
from redif_ray.types import Way, WorkUnit
from redif_ray.workers.reward import TeacherRewardWorker

pytestmark = pytest.mark.slow
GPUS = tuple(f"{role}.gpus=1" for role in ("rollout", "reward", "learner"))


@pytest.fixture(params=second_device.DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a role computes that asks for GPUs."""
    monkeypatch.setattr(factory, "device", lambda gpus: request.param if gpus else "cpu")
    return str(request.param)


def same_on_both(device: str, root: Path, *overrides: str) -> PlainLoop:
    """The loop on the device, whose weights moved as those on the CPU."""
    _, _, expected = rounds(smoke(root / "cpu", "cpu", *SHORT, *overrides))
    loop, before, found = rounds(smoke(root / "device", "device", *SHORT, *overrides, *GPUS))
    assert {p.device.type for p in trainable(loop.student).values()} == {device}
    moved, apart = (flat(expected) - flat(before)).norm(), (flat(found) - flat(expected)).norm()
    assert moved > 1e-3 and apart < 0.02 * moved
    return loop


@pytest.mark.parametrize(
    "overrides",
    [
        (
            "reward.terms={mse: {}, gradient_mse: {}, blurred_mse: {}, feature_cosine: {normalise: std}, "
            "classifier: {}}",
        ),
        ("exploration.one_step=true", "learner.anchor.weight=0", "exploration.last_step=true", "learner.microbatch=3"),
        ("learner.regulariser={kind: mse, weight: 0.1}", "rollout.guided=1", "learner.inner_epochs=2"),
        (
            "learner.anchor={gated: true, weight: 0.1}",
            "learner.loss=grpo_guard",
            "learner.activation_checkpointing=true",
            "learner.regulariser={kind: js, weight: 0.1}",
        ),
        ("method=draft", "learner.anchor.weight=0", "draft={groups: 2, minibatch: 1}"),
        (
            "method=output",
            "learner.anchor.weight=0",
            "output.groups=2",
            "reward.terms={jpeg_compressibility: {}, mse: {}}",
        ),
        ("method=contrast", "learner.anchor.weight=0", "contrast={groups: 4, noises: 2, draws: 2}"),
        ("method=distribution_matching", "learner.anchor.weight=0", "distribution_matching.groups=2"),
        ("method=consistency", "learner.anchor.weight=0", "consistency={groups: 2, draws: 2}"),
        (
            "method=progressive",
            "learner={rounds: 2, anchor: {weight: 0}}",
            "progressive={groups: 2, draws: 2, halvings: 2}",
        ),
    ],
    ids=[
        "rewards",
        "one step",
        "regulariser",
        "gate",
        "draft",
        "output",
        "contrast",
        "matching",
        "consistency",
        "progressive",
    ],
)
def test_rounds(overrides: tuple[str, ...], device: str, tmp_path: Path) -> None:
    teacher = () if "classifier" in overrides[0] else (f"teacher.model={write_dit(tmp_path / 'teacher')}",)
    same_on_both(device, tmp_path, *teacher, *overrides)


@pytest.mark.parametrize("name", mostly_long(FAMILIES, lambda name: name in ("sd", "dit")))
def test_families(name: str, device: str, tmp_path: Path) -> None:
    loop = same_on_both(device, tmp_path, *written(name, tmp_path), *adapted(name))
    assert all(p.device.type == device for part in loop.reward.teacher.parts.values() for p in part.parameters())


@pytest.mark.parametrize("name", mostly_long(FAMILIES, lambda name: name in ("sd", "dit")))
def test_float32_adapters_of_networks_in_16_bits(name: str, device: str, tmp_path: Path) -> None:
    """A policy round's weights are no measure: Adam makes whole steps of what rounding in 16 bits made of gradients."""
    overrides = (*written(name, tmp_path), *adapted(name), *SHORT, "networks.precision=bfloat16")
    moved, metrics = [], []
    for where, gpus in (("cpu", ()), ("device", GPUS)):
        loop = PlainLoop(smoke(tmp_path / where, where, *overrides, *gpus))
        weights, found = [flat(get_weights(loop.student))], []
        for round in range(loop.plan.rounds):
            found.append(loop.round(round))
            weights.append(flat(get_weights(loop.student)))
        start, warm, policy = weights
        assert (policy - warm).norm() > 1e-3
        moved.append(warm - start), metrics.append(found)
    expected, apart = moved[0].norm(), (moved[1] - moved[0]).norm()
    assert expected > 1e-3 and apart < 0.4 * expected
    for here, there in zip(*metrics, strict=True):
        assert there["update/loss_anchor"] == pytest.approx(here["update/loss_anchor"], rel=0.1)
    assert metrics[1][1]["reward/mean"] == pytest.approx(metrics[0][1]["reward/mean"], rel=0.1)
    frozen = [p for p in loop.student.network.parameters() if not p.requires_grad]
    wide = {torch.float32} if name == "krea-2" else set()  # diffusers keeps its norms so
    assert {(p.dtype, p.device.type) for p in frozen} == {(dtype, device) for dtype in {torch.bfloat16, *wide}}
    assert {(p.dtype, p.device.type) for p in trainable(loop.student).values()} == {(torch.float32, device)}


def test_workers_that_take_turns(device: str, tmp_path: Path) -> None:
    """Everything that a call needs is on the device when it comes, wherever it was encoded or built."""
    teacher = write_sd(tmp_path / "teacher")
    text, made = told(tmp_path), []
    for name, more in (("cpu", ()), ("device", ("pipeline.colocate=true", *GPUS))):
        loop = PlainLoop(
            smoke(
                tmp_path / name,
                name,
                f"teacher.model={teacher}",
                "student.lora={rank: 2, targets: [to_v]}",
                *text,
                *more,
            )
        )
        workers = loop.reward, loop.rollout
        for unit in loop.plan.units(loop.plan.phases[-1].first_round)[:2]:
            for worker in workers:
                worker.offload.wake()
            assert {w.teacher.device.type for w in workers} == {device if name == "device" else "cpu"}
            made.append(loop.play(unit, get_weights(loop.student), "policy-1"))
            for worker in workers:
                worker.offload.rest()
            assert {p.device.type for w in workers for part in w.teacher.parts.values() for p in part.parameters()} == {
                "cpu"
            }
    for (_, here), (_, there) in zip(made[:2], made[2:], strict=True):
        np.testing.assert_allclose(there[0].latents, here[0].latents, atol=1e-3)
        for term, value in here[1].terms.items():
            np.testing.assert_allclose(there[1].terms[term], value, rtol=1e-3, atol=1e-4)


def test_what_a_learner_keeps_comes_back(device: str, tmp_path: Path) -> None:
    teacher = f"teacher.model={write_dit(tmp_path / 'teacher')}"
    loop, _, weights = rounds(smoke(tmp_path, "kept", teacher, *SHORT, *GPUS))
    average = ExponentialAverage(trainable(loop.student), 0.9)
    average.update(trainable(loop.student))
    kept = trained(loop.student, loop.trainee.learning.optimizer, average)
    assert {type(tensor) for tensor in kept.values()} == {Tensor}
    again = PlainLoop(smoke(tmp_path, "again", teacher, *GPUS))
    optimizer = torch.optim.AdamW(trainable(again.student).values())
    other = ExponentialAverage(trainable(again.student), 0.9)
    load_trained(again.student, optimizer, other, kept)
    assert all(torch.equal(value, weights[name]) for name, value in get_weights(again.student).items())
    back = trained(again.student, optimizer, other)
    assert back.keys() == kept.keys() and all(torch.equal(back[name], kept[name]) for name in kept)
    other.update(trainable(again.student))
    for name, p in trainable(again.student).items():
        p.grad = torch.zeros_like(p)
        assert optimizer.state[p]["exp_avg"].device.type == device, name
    optimizer.step()


def images(count: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *shape), dtype=np.float32)


@pytest.mark.parametrize(
    ("recipe", "terms"),
    [
        ("fashion_mnist", "mse psnr ssim gradient_mse blurred_mse feature_cosine classifier jpeg_compressibility"),
        ("fashion_mnist", "histogram_kl discriminator"),
        ("emoji_4step", "mse clip text_image histogram_kl"),
    ],
)
def test_reward_terms(recipe: str, terms: str, device: str) -> None:
    encoder = "{options: {model: emoji_clip_a}}"
    chosen = ", ".join(f"{t}: {encoder if t in ('clip', 'text_image') else '{}'}" for t in terms.split())
    config: Config = load(recipe, [f"reward.terms={{{chosen}}}"])
    model = load_model(config.teacher.model)
    conditions: list[Any] = ["red apple", "blue car", "red apple"] if model.takes_captions else [3, 0, 3]
    found = {}
    for where in ("cpu", device):
        student, teacher = (torch.from_numpy(images(3, model.image_shape, s)).to(where) for s in (0, 1))
        inputs = RewardInputs(student.requires_grad_(), teacher, conditions)
        found[where] = factory.rewards(config, model, where)(inputs)
    for term, value in found[device].items():
        assert value.device.type == device
        torch.testing.assert_close(value.detach().cpu(), found["cpu"][term].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "judge"),
    [
        ("smoke", "fashion-mnist"),
        ("smoke", "random-features"),
        ("emoji_4step", "emoji_clip_b"),
    ],
)
def test_the_eyes_of_the_judge(recipe: str, judge: str, device: str, tmp_path: Path) -> None:
    """A reward worker has the judge on its device in its turn, and it sees there what it sees on the CPU."""
    overrides = (f"run.root={tmp_path}", f"evaluation.judge={judge}", "pipeline.colocate=true")
    shape = load_model(load(recipe, []).teacher.model).image_shape
    shown, beside = (torch.from_numpy(images(3, shape, seed)) for seed in (0, 1))
    unit = WorkUnit(0, 0, "deploy", Stream.HELD_OUT, (0, 1, 2), ("a", "b", "c") if recipe != "smoke" else (1, 2, 3))
    found = {}
    for where, gpus in (("cpu", ()), (device, GPUS)):
        worker = TeacherRewardWorker("reward-0", load(recipe, [*overrides, *gpus]))
        worker.offload.wake()
        found[where] = worker.measured(unit, shown.to(where), beside.to(where), judged=True)
        assert worker.judge is not None
        assert {p.device.type for n in networks_of(worker.judge) for p in n.parameters()} == {where}
        worker.offload.rest()
        assert {p.device.type for n in networks_of(worker.judge) for p in n.parameters()} == {"cpu"}
    here, there = found["cpu"], found[device]
    np.testing.assert_allclose(there.judged, here.judged, rtol=1e-3, atol=1e-4)
    told = {"fashion-mnist": {"class_accuracy"}, "emoji_clip_b": {"caption_cosine"}}
    assert there.fit.keys() == here.fit.keys() == told.get(judge, set())
    for name, value in here.fit.items():
        np.testing.assert_allclose(there.fit[name], value, rtol=1e-3)


def test_the_learned_reward(device: str, tmp_path: Path) -> None:
    """At a reward worker, at the learner, and back to the worker."""
    config = smoke(tmp_path, "learned", "reward.terms={mse: {}, discriminator: {}}", "learner.anchor.weight=0", *GPUS)
    term = factory.learned_reward(config, load_model("fashion-mnist"), device)
    assert term is not None
    learned = LearnedReward(config, term, None)
    before = {name: value.cpu() for name, value in learned.weights().items()}
    loop = PlainLoop(config)
    loop.reward.load_learned = lambda *_: None  # type: ignore[method-assign]  # Ray's store
    unit = replace(loop.plan.units(loop.plan.phases[-1].first_round)[0], index=0)
    _, targets = loop.reward.targets(unit)
    _, trajectories, final = loop.rollout.rollout(unit, get_weights(loop.student), "policy-1")
    meta, scored = loop.reward.score(unit, final, trajectories, targets, learned="discriminator-1")
    learned._check = lambda *_: None  # type: ignore[method-assign]
    found = learned.update(1, [(meta,)], {0: (trajectories, scored)})
    assert np.isfinite(list(found.values())).all()
    assert any(not torch.equal(value.cpu(), before[name]) for name, value in learned.weights().items())
    again = LearnedReward(config, term, None)
    again.load({name: tensor.cpu() for name, tensor in learned.state().items()})
    assert loop.reward.rewards.learned is not None
    loop.reward.rewards.learned.load({name: value.cpu() for name, value in learned.weights().items()})


@pytest.mark.long
def test_workers_of_a_search(device: str, tmp_path: Path) -> None:
    """Images and terms along a schedule, GITS's costs, the gradient of a schedule, an agent: as on the CPU."""
    overrides = (
        "search.descent={iterations: 2, batch: 2}",
        "teacher.steps=2",
        "search.frechet.weight=0.1",
        f"teacher.model={write_dit(tmp_path / 'teacher')}",
    )
    found = []
    for name, gpus in (("cpu", ()), ("second", GPUS)):
        worker = AdaptiveWorker("search-0", smoke(tmp_path / name, name, *overrides, *gpus))
        unit = WorkUnit(0, 0, "deploy", Stream.VALIDATION, (0, 1), (0, 1))
        times = Times((999.0, 600.0, 250.0))
        _, targets = worker.targets(unit)
        _, terms = worker.terms(unit, times, targets)
        _, schedules = worker.descend(unit, times.levels, targets, {"mse": 1.0})
        policy = Policy(size(1, 4), static_table([0.5, 0.5], 4))
        agent = {name: value.detach().numpy() for name, value in policy.state_dict().items()}
        goal = Goal(price=0.0, steps=3, timesteps=times.levels, max_calls=4)
        _, measured = worker.adapted(unit, goal, agent, {"mse": 1.0}, targets)
        found.append(
            [
                worker.see(unit, Way("euler", "uniform_trailing", 3, 1.0), judged=False)[1].pixel_mse,
                *terms.values(),
                worker.costs(unit)[1],
                np.array([s.levels for s in schedules]),
                *measured.values(),
            ]
        )
    for here, there in zip(*found, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-3)


@pytest.mark.cluster
@pytest.mark.long
def test_a_whole_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Resumed from a checkpoint, and evaluated: bit for bit what a plain loop makes of it on that device."""
    script = Path(__file__).with_name("device_run.py")
    done = subprocess.run([sys.executable, script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / device_run.NAME
    assert summary(folder)["arms"]["student"]["nfe"] == 2
    assert last_weights(folder) != plain_weights(smoke(tmp_path, "cpu"))
    monkeypatch.setattr(factory, "device", lambda gpus: second_device.NAME)
    assert last_weights(folder) == plain_weights(smoke(tmp_path, "plain"))
