from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptive_tasks import tiny_task

from redif_ray.adaptive import deploy
from redif_ray.adaptive.critic import Critic, squeezed
from redif_ray.adaptive.denoising import fractions
from redif_ray.adaptive.episodes import Task
from redif_ray.adaptive.job import check, goals
from redif_ray.adaptive.policy import Policy, static_table
from redif_ray.adaptive.report import Front, compared, report, verdict, write_results
from redif_ray.adaptive.tasks import Goal
from redif_ray.config import Config, ConfigError, load
from redif_ray.diffusion import noise, schedules, solvers


def searching(*overrides: str) -> Config:
    return load("smoke", ["search.steps=[2,3,4]", *overrides])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return tiny_task(tmp_path_factory.mktemp("tiny"))


def deployed(task: Task, policy: Policy, groups: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    conditions = [task.conditions[g] for g in groups]

    def predict_of(rows: torch.Tensor) -> Any:
        return task.model.predictor(task.model.encode([conditions[i] for i in rows.tolist()]), 1.0)

    unit = noise.initial_noise(groups, task.model.latent_shape, seed=task.seed, stream=task.stream)
    first = task.model.process.noisiest()
    return deploy.sample(task.model.process, predict_of, unit, first, policy)


def test_an_untrained_agent_makes_the_images_of_its_schedule(task: Task) -> None:
    process = task.model.process
    schedule = schedules.build(process, 3, "uniform_trailing")
    policy = Policy(task.size - 1, static_table(fractions(process, schedule).tolist(), task.max_calls))
    latents, calls = deployed(task, policy, [0, 1, 2])
    unit = noise.initial_noise([0, 1, 2], task.model.latent_shape, seed=task.seed, stream=task.stream)
    predict = task.model.predictor(task.model.encode([0, 1, 2]), 1.0)
    assert calls.tolist() == [3, 3, 3]
    assert torch.allclose(latents, solvers.sample("euler", predict, unit, schedule), atol=1e-5)


class Fickle(Policy):
    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Stops by what it sees of a corner of the image, which comes down to chance."""
        stop = (observations[:, 0] * 50).floor() % 3 - 1.5
        return torch.stack([observations[:, 1] - 1, stop], 1)


def test_images_stop_each_in_its_own_time_and_alike_in_any_batch(task: Task) -> None:
    policy = Fickle(task.size - 1, static_table([0.2] * 5, task.max_calls))
    together, calls = deployed(task, policy, list(range(12)))
    assert len(set(calls.tolist())) > 1
    assert calls.max() <= task.max_calls
    alone, own = deployed(task, policy, [4])
    assert own.tolist() == [calls[4]]
    assert torch.allclose(alone[0], together[4], atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.steps=[3]"], "compared between numbers of steps; give two or more"),
        (["search.adaptive.max_calls=3"], "search.adaptive.max_calls=3: expected at least 4"),
        (["search.solver=heun"], "search.solver=heun: agents move by euler"),
    ],
)
def test_what_cannot_be_compared_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(searching(*overrides))


def test_prices_follow_from_what_a_call_saves() -> None:
    found = {n: {"bank": d, "timesteps": [999.0, *range(n - 1, 0, -1)]} for n, d in ((2, 0.4), (3, 0.2), (4, 0.1))}
    (goal,) = goals(searching(), found)
    assert goal.price == pytest.approx(0.15)
    assert (goal.steps, goal.timesteps) == (3, (999.0, 2.0, 1.0))
    assert [g.steps for g in goals(searching("search.adaptive.prices=[0.3,0.01]"), found)] == [2, 4]
    (goal,) = goals(searching(), {n: found[n] for n in (2, 4)})
    assert goal.price == pytest.approx(0.15)
    with pytest.raises(ConfigError, match="no price can be derived"):
        goals(searching(), {2: found[4], 3: found[3], 4: found[2]})


def row(distance: np.ndarray, calls: np.ndarray, static: list[float]) -> dict[str, Any]:
    n = len(distance)
    base = noise.uniform(n, noise.Stream.SEARCH, seed=3)
    rows = [{"steps": s, "distances": (d + base).tolist()} for s, d in zip((2, 4), static, strict=True)]
    front = Front("searched", rows)
    goal = Goal(0.05, 2, (999.0, 500.0), 6)
    return compared(goal, {"distance": distance + base, "calls": calls}, front, resamples=60, seed=0)


@pytest.mark.slow
def test_an_agent_is_compared_at_its_own_mean_number_of_calls(tmp_path: Path) -> None:
    calls = np.array([2, 4, 3, 3] * 25)
    same = row(np.full(100, 0.3), calls, [0.4, 0.2])
    assert (same["calls"], same["change"]) == (3, pytest.approx(0, abs=1e-9))
    assert same["objective"] == pytest.approx(0.3 + 3 * 0.05 - 0.4 - 2 * 0.05)
    better, worse = row(np.full(100, 0.25), calls, [0.4, 0.2]), row(np.full(100, 0.35), calls, [0.4, 0.2])
    assert better["change"] == pytest.approx(-0.05)
    assert "the agent beats static schedules" in verdict(better)
    assert "the agent is worse" in verdict(worse)
    assert "not comparable" in verdict(row(np.full(100, 0.25), np.full(100, 5), [0.4, 0.2]))
    front = Front("searched", [{"steps": s, "distances": [d] * 100} for s, d in ((2, 0.4), (4, 0.2))])
    write_results(tmp_path, searching(), [better, worse], [front], 2)
    assert json.loads((tmp_path / "adaptive.json").read_text())["static"]["searched"]["4"] == pytest.approx(0.2)
    assert "each of these calls is 2 network calls" in report(searching(), [better], [front], 2)
    assert (tmp_path / "adaptive.png").stat().st_size > 1000


@pytest.mark.slow
def test_rllib_acts_as_the_policy_and_its_critic_knows_more(task: Task) -> None:
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from redif_ray.adaptive.agent import ScheduleModule
    from redif_ray.adaptive.env import spaces

    table = static_table([0.3, 0.6], task.max_calls)
    seen, actions = spaces(task)
    module = RLModuleSpec(
        module_class=ScheduleModule,
        observation_space=seen,
        action_space=actions,
        model_config={"table": table.tolist(), "steps": 3},
    ).build()
    policy = Policy(task.size - 1, table)
    policy.load_state_dict(module.policy.state_dict())
    batch = torch.rand(5, task.size)
    other = torch.cat([batch[:, :-1], batch[:, -1:] + 1], 1)
    acted = module.forward_inference({Columns.OBS: batch})[Columns.ACTION_DIST_INPUTS]
    assert torch.equal(acted[:, :2], policy(batch[:, :-1]))
    assert torch.allclose(acted[:, 2:].exp(), policy.spread.expand(5, 2))
    assert torch.equal(acted, module.forward_inference({Columns.OBS: other})[Columns.ACTION_DIST_INPUTS])
    values, others = (module.compute_values({Columns.OBS: o}) for o in (batch, other))
    assert values.shape == (5,)
    assert not torch.allclose(values, others)


def test_an_untrained_critic_expects_of_a_finished_image_what_it_has() -> None:
    agreement = np.array([-12.5, -0.3])
    for calls, share in ((1, 0.0), (2, 0.5), (3, 1.0), (5, 1.0)):
        seen = torch.zeros(2, 4 + 6 + 1)
        seen[:, 4 + calls - 1] = 1
        seen[:, -1] = torch.from_numpy(squeezed(agreement))
        values = Critic(10, 3, 6)(seen).detach().numpy()
        assert np.allclose(values, share * agreement, atol=1e-5)
